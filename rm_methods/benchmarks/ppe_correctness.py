"""PPE Correctness (Frick et al., "How to Evaluate Reward Models for RLHF", arXiv:2410.14872).

32 answers per prompt, each right or wrong. Five benchmarks: MMLU-Pro, MATH, GPQA, IFEval, MBPP-Plus. The metrics follow
the paper, because the official code is not public (docs/benchmarks.md lists the open questions):

* accuracy: share of the row's sampled conflict pairs (one right answer, one wrong) that the scores order right, ties
  wrong;
* auc: area under the ROC curve of scores against correctness within a prompt, ties half;
* best_of_all: correctness of the answer with the highest score, the end of the best-of-K curve ("end score").

Each is a mean over the prompts of a benchmark. Overall figures are unweighted means over the benchmarks.
"""

from __future__ import annotations

from collections import Counter
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
from rm_methods.benchmarks.pool_grading import (
    GOLD_RULE,
    agreement,
    candidate_gold,
    gold_comparisons,
    gold_of_top,
    gold_ties,
)
from rm_methods.benchmarks.sources import (
    ItemReport,
    SourceRow,
    check_plain,
    hub_rows,
    id_of,
    local_files,
    local_rows,
    text_of,
)
from rm_methods.errors import DataError
from rm_methods.preferences.pair import prompt_group
from rm_methods.validation import kind_of

TIE_RULE = f"{GOLD_RULE}; `auc`: half; `best_of_all_expected`: mean of those at the top"

HUB_IDS = {
    "mmlu_pro": "lmarena-ai/PPE-MMLU-Pro-Best-of-K",
    "math": "lmarena-ai/PPE-MATH-Best-of-K",
    "gpqa": "lmarena-ai/PPE-GPQA-Best-of-K",
    "ifeval": "lmarena-ai/PPE-IFEval-Best-of-K",
    "mbpp_plus": "lmarena-ai/PPE-MBPP-Plus-Best-of-K",
}
SUBSETS = tuple(HUB_IDS)
_ROWS = 2555  # of all five together; the sizes of the single ones are not published

OPTIONS = {
    "benchmarks": {
        "type": ["array", "null"],
        "items": {"enum": list(SUBSETS)},
        "minItems": 1,
        "uniqueItems": True,
        "default": None,
        "description": "Benchmarks to evaluate; null takes all that are present. Without all five, overall figures are "
        "not PPE Correctness.",
    },
    **SAMPLING_OPTIONS,
}


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the Parquet files of the five benchmarks below `root`, or from their hub repositories."""
    rows: Iterator[SourceRow]
    if root is None:
        present = options["benchmarks"] or list(SUBSETS)
        rows = _rows_of_hub(card, present, report)
    else:
        files = local_files(card, root, names=options["benchmarks"])
        present = list(files)
        rows = local_rows(files, report)
    missing = [name for name in SUBSETS if name not in present]
    if missing:
        report.notes.append(
            f"Benchmarks missing: {', '.join(missing)}. Overall figures are means over the others, not PPE Correctness."
        )
    yield from sample_items(_items(rows, report), options, report)


def _rows_of_hub(card: BenchmarkCard, names: Sequence[str], report: ItemReport) -> Iterator[SourceRow]:
    for name in names:
        yield from hub_rows(replace(card, hub_id=HUB_IDS[name]), report, name, split="train")


def _items(rows: Iterator[SourceRow], report: ItemReport) -> Iterator[BenchmarkItem]:
    seen: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for subset, where, row in rows:
        sizes[subset] += 1
        item = _item(row, subset, where, report)
        if item is None:
            continue
        seen[item.item_id] += 1
        if seen[item.item_id] > 1:
            report.count("question of one model occurs more than once, kept", where)
            item = replace(item, item_id=f"{item.item_id}#{seen[item.item_id]}")
        yield item
    if set(sizes) == set(SUBSETS):
        report.notes += size_notes({"all five benchmarks": sizes.total()}, {"all five benchmarks": _ROWS})


def _item(row: dict[str, Any], subset: str, where: str, report: ItemReport) -> BenchmarkItem | None:
    """The item of a row, or None if the row is counted as excluded."""
    prompt = text_of(row, "prompt", where)
    question = id_of(row, "question_id", where)
    model = id_of(row, "model_name", where)
    correct = row.get("scores")
    if not isinstance(correct, (list, tuple)) or not correct or not all(value in (0, 1) for value in correct):
        raise DataError(
            f"{where}: `scores` must be a list of true and false, one a response, found {str(correct)[:80]!r}."
        )
    responses = []
    for k in range(1, len(correct) + 1):
        response = row.get(f"response_{k}")
        if not isinstance(response, str):
            raise DataError(
                f"{where}: `scores` has {len(correct)} values, but `response_{k}` is {kind_of(response)}, not a text."
            )
        check_plain(response, f"{where}: `response_{k}`")
        responses.append(response)
    if row.get(f"response_{len(correct) + 1}") is not None:
        raise DataError(f"{where}: more responses than the {len(correct)} values of `scores`.")
    pairs = _conflict_pairs(row.get("sampled_conflict_pairs"), correct, where, report)
    if not pairs:
        report.exclude("no conflict pair of a right and a wrong response", where)
        return None
    if len(set(responses)) < len(responses):
        report.count("some responses repeat the text of another, kept", where)
    messages = [{"role": "user", "content": prompt}]
    return BenchmarkItem(
        item_id=f"{subset}/{question}/{model}",
        subset=subset,
        prompt=messages,
        responses=responses,
        label={"gold": [float(value) for value in correct], "conflict_pairs": pairs},
        group=prompt_group(messages),
        meta={"model_name": model},
    )


def _conflict_pairs(raw_pairs: Any, correct: Sequence[bool], where: str, report: ItemReport) -> list[list[int]]:
    """Pairs [right, wrong] of response indices from 0, repetitions kept as in the official list."""
    if not isinstance(raw_pairs, (list, tuple)):
        raise DataError(
            f"{where}: `sampled_conflict_pairs` must be a list of pairs of indices, found {str(raw_pairs)[:80]!r}."
        )
    pairs = []
    for pair in raw_pairs:
        is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not is_pair or not all(type(k) is int and 0 <= k < len(correct) for k in pair):
            raise DataError(f"{where}: conflict pair {pair!r} is not two indices from 0 to {len(correct) - 1}.")
        first, second = pair
        if correct[first] == correct[second]:
            report.count("conflict pair of two equally correct responses, left out", where)
            continue
        pairs.append([first, second] if correct[first] else [second, first])
    return pairs


def comparisons(label: Any, n_responses: int) -> list[tuple[int, int]]:
    """All pairs (right, wrong) of responses.

    Raises:
        DataError: the label is not {"gold": [...], "conflict_pairs": [[right, wrong], ...]} of this many responses.
    """
    return gold_comparisons(_parts(label, n_responses)[0])


def check_label(label: Any, n_responses: int) -> None:
    """Refuse what `comparisons` refuses, without listing them: their number grows with the square of the responses."""
    _parts(label, n_responses)


def tie_counts(label: Any, scores: np.ndarray) -> tuple[int, int]:
    """Number of comparisons with equal scores, and of all."""
    return gold_ties(candidate_gold(label, len(scores)), scores)


def _parts(label: Any, n_responses: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = label.get("conflict_pairs") if isinstance(label, dict) else None
    if not isinstance(pairs, list) or not pairs:
        expected = '{"gold": [...], "conflict_pairs": [[right, wrong], ...]}'
        raise DataError(f"label {str(label)[:80]!r} is not allowed; expected {expected}.")
    return candidate_gold(label, n_responses), np.asarray(pairs, dtype=np.int64)


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credits of one item: accuracy on conflict pairs, best_of_all (strict, expected), agreement on all pairs, AUC."""
    gold, pairs = _parts(label, len(scores))
    strict, expected = gold_of_top(gold, scores)
    right = scores[gold == 1][:, None]
    wrong = scores[gold == 0][None, :]
    return {
        "accuracy": float((scores[pairs[:, 0]] > scores[pairs[:, 1]]).mean()),
        "best_of_all": strict,
        "best_of_all_expected": expected,
        "agreement": agreement(gold, scores),
        "auc": float(((right > wrong) + 0.5 * (right == wrong)).mean()),
    }


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """Each metric as the mean over the benchmarks present; accuracy and best_of_all of each benchmark."""
    present = present_subsets(items, SUBSETS, "ppe_correctness")
    strata = {subset: (subset,) for subset in SUBSETS if subset in present}
    result = [mean_of(name, name, strata) for name in ("accuracy", "best_of_all", "agreement")]
    result += [replace(mean_of(name, name, strata), strict=False) for name in ("best_of_all_expected", "auc")]
    for subset in strata:
        result.append(pooled(subset, "accuracy", [subset]))
        result.append(pooled(f"{subset}_best_of_all", "best_of_all", [subset]))
    return result
