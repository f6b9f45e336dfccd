"""RewardBench (Lambert et al. 2024, arXiv:2403.13787): pairs in 23 subsets and four sections.

The metric follows the official code (github.com/allenai/reward-bench @ 05a9005, rewardbench/constants.py and
`calculate_scores_per_section` in rewardbench/utils.py).  A pair is right if the chosen response scores strictly higher.
A section is the mean over its subsets, weighted by `WEIGHTS`: the numbers of pairs, but 984 for the 447 of math-prm, so
that mathematics counts as much as code.  `overall` is what the leaderboard reports, the plain mean of the sections.

The paper's first score also has four prior test sets, with half the weight of a section (analysis/
get_benchmark_results.py there); `prior_sets: true` adds them and `overall_with_prior_sets`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import (
    SAMPLING_OPTIONS,
    Metric,
    best_against_others,
    pooled,
    present_subsets,
    sample_items,
    size_notes,
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.pair_items import PairItems, grade_pair
from rm_methods.benchmarks.sources import ItemReport, SourceRow, hub_rows, id_of, local_files, local_rows, text_of
from rm_methods.errors import DataError, nearest
from rm_methods.preferences.pair import Message

TIE_RULE = "equal scores are wrong (official)"

SECTIONS: dict[str, tuple[str, ...]] = {
    "chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "chat_hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
WEIGHTS = {
    "alpacaeval-easy": 100,
    "alpacaeval-length": 95,
    "alpacaeval-hard": 95,
    "mt-bench-easy": 28,
    "mt-bench-med": 40,
    "mt-bench-hard": 37,
    "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134,
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 250,
    "donotanswer": 136,
    "math-prm": 984,
    "hep-cpp": 164,
    "hep-go": 164,
    "hep-java": 164,
    "hep-js": 164,
    "hep-python": 164,
    "hep-rust": 164,
}
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
PRIOR_HUB_ID = "allenai/pref-test-sets"
SUBSETS = (*WEIGHTS, *PRIOR_SETS)
_MATH_PAIRS = 447  # of math-prm; the other weights are numbers of pairs
_CORE = "filtered"  # name of the split, and of its file in the card
_PRIOR_WEIGHT = 0.5  # of the prior sets; a section counts 1

OPTIONS = {
    "prior_sets": {
        "type": "boolean",
        "default": False,
        "description": "Also read the four prior test sets, for `overall_with_prior_sets`, the score of the paper's "
        "first version; the leaderboard leaves them out.",
    },
    **SAMPLING_OPTIONS,
}


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the split `filtered` (and the prior sets) below `root`, or from the hub."""
    names = [_CORE, *(PRIOR_SETS if options["prior_sets"] else ())]
    if root is None:
        rows = _rows_of_hub(card, names, report)
    else:
        rows = local_rows(local_files(card, root, names=names), report)
    items = list(_items(rows, report))
    present = {item.subset for item in items}
    missing = [subset for subset in WEIGHTS if subset not in present]
    if missing:
        report.notes.append(
            f"Subsets missing: {', '.join(missing)}. Sections and `overall` are means over the others, not the "
            "official figures."
        )
    sizes = Counter(item.subset for item in items)
    report.notes += size_notes(sizes, WEIGHTS | {"math-prm": _MATH_PAIRS})
    yield from sample_items(items, options, report)


def _rows_of_hub(card: BenchmarkCard, names: Sequence[str], report: ItemReport) -> Iterator[SourceRow]:
    for name in names:
        repository = card if name == _CORE else replace(card, hub_id=PRIOR_HUB_ID, revision=None)
        yield from hub_rows(repository, report, name, split=name)


def _items(rows: Iterator[SourceRow], report: ItemReport) -> Iterator[BenchmarkItem]:
    make = PairItems(report)
    for name, where, row in rows:
        if name == _CORE:
            subset = row.get("subset")
            if subset not in WEIGHTS:
                raise DataError(
                    f"{where}: subset {subset!r} is not one of RewardBench. {nearest(str(subset), WEIGHTS)}"
                )
            messages = [{"role": "user", "content": text_of(row, "prompt", where)}]
            source_id = id_of(row, "id", where)
        else:
            subset = name
            messages = _conversation(row.get("prompt"), where)
            source_id = None  # the prior sets have no ids: the content is the id, so repeated rows are counted
        yield make.item(
            messages,
            [text_of(row, key, where, may_be_empty=True) for key in ("chosen", "rejected")],
            0,
            subset=subset,
            where=where,
            source_id=source_id,
            meta={key: row[key] for key in ("chosen_model", "rejected_model") if row.get(key) is not None},
        )


def _conversation(turns: Any, where: str) -> list[Message]:
    """The prompt of a prior set: as in the official code, roles follow from the position, and the last turn asks."""
    is_list = isinstance(turns, (list, tuple)) and all(isinstance(turn, Mapping) for turn in turns)
    if not is_list or not all(isinstance(turn.get("content"), str) for turn in turns) or len(turns) % 2 == 0:
        raise DataError(
            f"{where}: `prompt` must be a list of turns with `content`, an odd number that ends with the user, found "
            f"{str(turns)[:80]!r}."
        )
    return [
        {"role": "assistant" if number % 2 else "user", "content": turn["content"]} for number, turn in enumerate(turns)
    ]


comparisons = best_against_others
grade = grade_pair


def section_strata(section: str, present: set[str], share: float) -> dict[str, tuple[float, tuple[str, ...]]]:
    """The strata of a section: its present subsets with the official weights, which sum to `share`."""
    subsets = [subset for subset in SECTIONS[section] if subset in present]
    total = sum(WEIGHTS[subset] for subset in subsets)
    return {subset: (share * WEIGHTS[subset] / total, (subset,)) for subset in subsets}


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """overall, the sections, the subsets; with prior sets their mean and the score that counts them."""
    present = present_subsets(items, SUBSETS, "rewardbench")
    sections = [section for section, subsets in SECTIONS.items() if present & set(subsets)]
    prior = [subset for subset in PRIOR_SETS if subset in present]
    result = []
    if sections:
        overall: dict[str, tuple[float, tuple[str, ...]]] = {}
        for section in sections:
            overall |= section_strata(section, present, 1 / len(sections))
        result.append(Metric("overall", "accuracy", overall))
        result += [Metric(section, "accuracy", section_strata(section, present, 1.0)) for section in sections]
    if sections and prior:
        total = len(sections) + _PRIOR_WEIGHT
        both: dict[str, tuple[float, tuple[str, ...]]] = {}
        for section in sections:
            both |= section_strata(section, present, 1 / total)
        both |= {subset: (_PRIOR_WEIGHT / len(prior) / total, (subset,)) for subset in prior}
        result.append(Metric("overall_with_prior_sets", "accuracy", both))
    if prior:
        result.append(Metric("prior_sets", "accuracy", {subset: (1 / len(prior), (subset,)) for subset in prior}))
    return result + [pooled(subset, "accuracy", [subset]) for subset in SUBSETS if subset in present]
