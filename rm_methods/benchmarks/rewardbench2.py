"""RewardBench 2 (Malik et al. 2025, arXiv:2506.01937): the best of four answers, and answers that are equally right.

The metric follows the official code (github.com/allenai/reward-bench @ 05a9005, rewardbench/utils.py:
`reroll_and_score_dataset`, `process_single_model`).

* All subsets but Ties: one chosen and three rejected answers.  `official`: 1 / (number of scores at the top) if the
  chosen one is among them, else 0.  So four equal scores earn 1/4.  `strict`: 1 only strictly above all others.
* Ties: prompts k in two rows, `ref:k` with one right answer and `tied:k` with several.  With d = the spread of the
  scores of right answers in tied:k, and g = the least of them minus the highest wrong one:

      Ties = mean over k of .30 [g_tied > 0] + .30 [g_ref > 0] + .20 [g_tied > d] + .20 [min(g_ref, g_tied) > d]
             + .01 tanh(min(g_ref, g_tied) / d - 1),    with 0 / 0 - 1 = 0 in the last term

  This is between -.01 and 1.01 and is not clipped.

`overall` is the unweighted mean of the six subsets.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import (
    SAMPLING_OPTIONS,
    Metric,
    mean_of,
    pooled,
    present_subsets,
    sample_items,
    size_notes,
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.sources import (
    ItemReport,
    check_plain,
    hub_rows,
    id_of,
    local_files,
    local_rows,
    text_of,
    unique_id,
)
from rm_methods.errors import DataError, nearest
from rm_methods.preferences.pair import prompt_group

TIE_RULE = (
    "best of four: 1 / (number of scores at the top) if the chosen one is among them (official); Ties: equal scores "
    "fail each strict comparison"
)

BEST_OF_FOUR = {
    "Factuality": "factuality",
    "Precise IF": "precise_if",
    "Math": "math",
    "Safety": "safety",
    "Focus": "focus",
}
TIES = "ties"
SUBSETS = {**BEST_OF_FOUR, "Ties": TIES}
_SIZES = {"factuality": 475, "precise_if": 160, "math": 183, "safety": 450, "focus": 495, TIES: 102}
_REF = "ref"  # kinds of the rows of Ties
_TIED = "tied"
_ACCURACY, _PREFERRED, _PREFERRED_HARD, _MARGIN = 0.30, 0.20, 0.20, 0.01
_TIED_SHARE = 1 - _ACCURACY  # of the weight of Ties; the rest is on the ref rows

OPTIONS = dict(SAMPLING_OPTIONS)

METRIC_DETAILS = {
    "kind": "of a row of Ties: ref (one right answer) or tied (several)",
    "ties": "of a row of Ties: number of its prompt, the same for the rows ref and tied",
}


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the official file below `root`, or from the hub; both rows of a Ties prompt, or none."""
    if root is None:
        rows = hub_rows(card, report, "test", split="test")
    else:
        rows = local_rows(local_files(card, root), report)
    seen: Counter[str] = Counter()
    items = [_item(row, where, seen, report) for _, where, row in rows]
    sizes = Counter(item.subset for item in items)
    items = list(_with_partner(items, report))
    present = {item.subset for item in items}
    missing = [subset for subset in SUBSETS.values() if subset not in present]
    if missing:
        report.notes.append(
            f"Subsets missing: {', '.join(missing)}. `overall` is the mean over the others, not the official figure."
        )
    report.notes += size_notes(sizes, _SIZES)
    # A draw takes both rows of a Ties prompt: it sees only the first, and the second follows.
    tied = {item.meta["ties"]: item for item in items if item.meta.get("kind") == _TIED}
    for item in sample_items([item for item in items if item.meta.get("kind") != _TIED], options, report):
        yield item
        if item.subset == TIES:
            yield tied.pop(item.meta["ties"])
    for item in tied.values():
        report.exclude("not drawn by options.limit", item.item_id)


def _item(row: dict[str, Any], where: str, seen: Counter[str], report: ItemReport) -> BenchmarkItem:
    subset = row.get("subset")
    if subset not in SUBSETS:
        raise DataError(f"{where}: subset {subset!r} is not one of RewardBench 2. {nearest(str(subset), SUBSETS)}")
    number = id_of(row, "id", where)
    answers = {key: _texts(row, key, where) for key in ("chosen", "rejected")}
    n_correct = len(answers["chosen"])
    stated = row.get("num_correct")
    if stated is not None and stated != n_correct:
        raise DataError(f"{where}: `num_correct` is {stated!r}, but `chosen` has {n_correct} answers.")
    if set(answers["chosen"]) & set(answers["rejected"]):
        report.count("a chosen and a rejected answer are the same text: always a tie, kept", where)
    messages = [{"role": "user", "content": text_of(row, "prompt", where)}]
    meta: dict[str, Any] = {}
    group = prompt_group(messages)
    if subset == "Ties":
        kind, prompt_number = _ties_id(number, where)
        if (n_correct == 1) != (kind == _REF):
            needed = "one right answer" if kind == _REF else "several right answers"
            raise DataError(f"{where}: a row {kind}:k of Ties needs {needed} in `chosen`, found {n_correct}.")
        meta = {"kind": kind, "ties": prompt_number}
        group = f"ties/{prompt_number}"  # its two rows are graded together
    elif n_correct != 1:
        raise DataError(f"{where}: `chosen` must have one answer in {subset}, found {n_correct}.")
    slug = SUBSETS[subset]
    return BenchmarkItem(
        item_id=unique_id(f"{slug}/{number}", where, seen, report),  # official ids repeat across subsets
        subset=slug,
        prompt=messages,
        responses=[*answers["chosen"], *answers["rejected"]],
        label={"correct": n_correct},
        group=group,
        meta=meta,
    )


def _texts(row: dict[str, Any], key: str, where: str) -> list[str]:
    answers = row.get(key)
    is_list = isinstance(answers, (list, tuple)) and bool(answers)
    if not is_list or not all(isinstance(answer, str) for answer in answers or ()):
        raise DataError(f"{where}: `{key}` must be a list of texts that is not empty, found {str(answers)[:80]!r}.")
    for answer in answers or ():
        check_plain(answer, f"{where}: `{key}`")
    return list(answers or ())


def _ties_id(number: str, where: str) -> tuple[str, str]:
    """Kind and prompt number of an id such as "tied:12"."""
    kind, _, prompt_number = number.partition(":")
    if kind not in (_REF, _TIED) or not prompt_number.isdigit():
        raise DataError(f"{where}: `id` of a Ties row must be ref:NUMBER or tied:NUMBER, found {number!r:.40}.")
    return kind, prompt_number


def _with_partner(items: Sequence[BenchmarkItem], report: ItemReport) -> Iterator[BenchmarkItem]:
    """All items but the rows of Ties whose prompt does not have exactly one row of each kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.subset == TIES:
            kinds[item.meta["ties"]].append(item.meta["kind"])
    for item in items:
        if item.subset == TIES and sorted(kinds[item.meta["ties"]]) != [_REF, _TIED]:
            report.exclude("Ties row without exactly one partner (ref:k and tied:k)", item.item_id)
        else:
            yield item


def _correct(label: Any, n_responses: int) -> int:
    """The number of right responses, which come first.

    Raises:
        DataError: the label is not {"correct": number}, or leaves no wrong response.
    """
    count = label.get("correct") if isinstance(label, dict) else None
    if type(count) is not int or not 0 < count < n_responses:
        raise DataError(
            f'label {label!r} is not allowed; expected {{"correct": N}}, with N from 1 to {n_responses - 1}.'
        )
    return count


def comparisons(label: Any, n_responses: int) -> list[tuple[int, int]]:
    """All pairs (right, wrong) of responses.

    Raises:
        DataError: as `_correct`.
    """
    correct = _correct(label, n_responses)
    return [(better, worse) for better in range(correct) for worse in range(correct, n_responses)]


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credits of one item alone.  A missing score earns nothing.

    Returns:
        "strict": every right response scores above every wrong one; "official": the same, but a single right response
        shares the top with equal ones.
    """
    correct = _correct(label, len(scores))
    if not np.isfinite(scores).all():
        return {"official": 0.0, "strict": 0.0}
    strict = float(scores[:correct].min() > scores[correct:].max())
    if correct > 1:
        return {"official": strict, "strict": strict}
    top = scores == scores.max()
    return {"official": float(top[0]) / int(top.sum()), "strict": strict}


def grade_all(items: Sequence[BenchmarkItem], scores: Sequence[np.ndarray]) -> list[dict[str, float]]:
    """Credits of all items; those of the rows of Ties depend on their partner's scores.

    Returns:
        as `grade`.  A row of Ties has "official" (its part of the Ties score), "accuracy", and in row tied:k
        "preferred", "preferred_hard" and "margin".

    Raises:
        DataError: as `_check_ties`.
    """
    _check_ties(items)
    graded = [grade(item.label, item_scores) for item, item_scores in zip(items, scores, strict=True)]
    reference_gap = {
        item.meta["ties"]: _gap(item, item_scores)
        for item, item_scores in zip(items, scores, strict=True)
        if item.meta.get("kind") == _REF
    }
    for number, (item, item_scores) in enumerate(zip(items, scores, strict=True)):
        if item.subset != TIES:
            continue
        accuracy = graded[number]["strict"]
        if item.meta["kind"] == _REF:
            graded[number] = {"official": accuracy, "accuracy": accuracy}
        else:
            graded[number] = _tied_credits(item, item_scores, reference_gap[item.meta["ties"]])
    return graded


def _check_ties(items: Sequence[BenchmarkItem]) -> None:
    """Refuse rows of Ties that cannot be graded together.

    Raises:
        DataError: a row does not say its kind and prompt, has one right answer in tied or several in ref, or a prompt
            does not have exactly one row of each kind.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if item.subset != TIES:
            continue
        kind = item.meta.get("kind")
        number = item.meta.get("ties")
        if kind not in (_REF, _TIED) or number is None:
            raise DataError(
                f"rewardbench2: item {item.item_id!r} of Ties needs `kind` (ref or tied) and `ties`, the number of its "
                f"prompt, found {kind!r} and {number!r}."
            )
        if (_correct(item.label, len(item.responses)) == 1) != (kind == _REF):
            raise DataError(f"rewardbench2: item {item.item_id!r}: ref has one right answer, tied several.")
        kinds[number].append(kind)
    for number, of_prompt in kinds.items():
        if sorted(of_prompt) != [_REF, _TIED]:
            raise DataError(
                f"rewardbench2: prompt {number!r} of Ties has the rows {', '.join(of_prompt)}; expected one ref and "
                "one tied."
            )


def _gap(item: BenchmarkItem, scores: np.ndarray) -> float:
    """The lowest right score minus the highest wrong one, fp64; NaN if a score is missing."""
    correct = _correct(item.label, len(scores))
    scores = scores.astype(np.float64)
    return float(np.min(scores[:correct]) - np.max(scores[correct:]))


def _tied_credits(item: BenchmarkItem, scores: np.ndarray, reference_gap: float) -> dict[str, float]:
    """The credits of a row tied:k.  A missing score fails its comparisons, and the margin is then 0 (official)."""
    correct = _correct(item.label, len(scores))
    spread = float(np.ptp(scores[:correct].astype(np.float64)))
    gap = _gap(item, scores)
    both = float(np.minimum(gap, reference_gap))  # NaN if one of them is
    accuracy = float(gap > 0)
    preferred = float(gap > spread)
    preferred_hard = float(both > spread)
    if math.isnan(both):
        margin = 0.0
    elif spread == 0:
        margin = float(np.sign(both))
    else:
        margin = math.tanh(both / spread - 1)
    total = _ACCURACY * accuracy + _PREFERRED * preferred + _PREFERRED_HARD * preferred_hard + _MARGIN * margin
    return {
        "official": total / _TIED_SHARE,
        "accuracy": accuracy,
        "preferred": preferred,
        "preferred_hard": preferred_hard,
        "margin": margin,
    }


def _part(item: BenchmarkItem) -> str:
    return f"{TIES}_{item.meta['kind']}" if item.subset == TIES else item.subset


_TIES_STRATA: dict[str, tuple[float, tuple[str, ...]]] = {
    "ties_ref": (1 - _TIED_SHARE, ("ties_ref",)),
    "ties_tied": (_TIED_SHARE, ("ties_tied",)),
}
_TIES_LIMITS = (-_MARGIN, 1 + _MARGIN)


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """overall, the subsets, the strict best-of-four figures, and the parts of Ties."""
    present = present_subsets(items, SUBSETS.values(), "rewardbench2")
    four = [subset for subset in BEST_OF_FOUR.values() if subset in present]
    has_ties = TIES in present
    share = 1 / (len(four) + has_ties)
    strata: dict[str, tuple[float, tuple[str, ...]]] = {subset: (share, (subset,)) for subset in four}
    limits = (0.0, 1.0)
    if has_ties:
        strata |= {name: (share * weight, parts) for name, (weight, parts) in _TIES_STRATA.items()}
        limits = (-_MARGIN * share, 1 + _MARGIN * share)
    result = [Metric("overall", "official", strata, strict=False, part_of=_part, limits=limits)]
    result += [pooled(subset, "official", [subset], strict=False) for subset in four]
    if has_ties:
        result.append(Metric(TIES, "official", _TIES_STRATA, part_of=_part, limits=_TIES_LIMITS))
    if four:
        result.append(mean_of("best_of_four_strict", "strict", {subset: (subset,) for subset in four}))
    result += [pooled(f"{subset}_strict", "strict", [subset]) for subset in four]
    if has_ties:
        for name, credit, part in (
            ("ties_ref_accuracy", "accuracy", "ties_ref"),
            ("ties_tied_accuracy", "accuracy", "ties_tied"),
            ("ties_preferred", "preferred", "ties_tied"),
            ("ties_preferred_hard", "preferred_hard", "ties_tied"),
            ("ties_margin", "margin", "ties_tied"),
        ):
            metric = replace(pooled(name, credit, [part]), part_of=_part)
            result.append(replace(metric, limits=(-1.0, 1.0)) if credit == "margin" else metric)
    return result
