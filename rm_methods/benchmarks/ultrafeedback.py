"""UltraFeedback, binarized for Zephyr, split test_prefs (Tunstall et al. 2023, arXiv:2310.16944).

Format of the hub card HuggingFaceH4/ultrafeedback_binarized: `chosen` and `rejected` are whole conversations. The
chosen answer has the highest `overall_score` that GPT-4 gave to four answers, the rejected one is another of the four,
drawn at random. So some rows have equal scores, and then the label says nothing. They are counted; by default they
stay, as in the published split. The metric is the accuracy, strict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from rm_methods.benchmarks.length_control import length_controlled
from rm_methods.benchmarks.pair_items import STRICT, PairItems, grade_pair, messages_of
from rm_methods.benchmarks.sources import ItemReport, hub_rows, id_of, local_files, local_rows
from rm_methods.errors import DataError

TIE_RULE = STRICT

SPLIT = "test_prefs"
SIZES = {SPLIT: 2000}  # rows

OPTIONS = {
    "equal_scores": {
        "enum": ["keep", "exclude"],
        "default": "keep",
        "description": "Rows whose two answers have equal scores, so that the label says nothing: keep them as in the "
        "published split, or exclude them.",
    },
    **SAMPLING_OPTIONS,
}

comparisons = best_against_others
grade = grade_pair


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from `test_prefs-*.parquet` below `root`, or from the hub if `root` is None."""
    exclude_equal = options["equal_scores"] == "exclude"
    yield from sample_items(_items(card, root, exclude_equal, report), options, report)


def _items(card: BenchmarkCard, root: Path | None, exclude_equal: bool, report: ItemReport) -> Iterator[BenchmarkItem]:
    if root is None:
        rows = hub_rows(card, report, SPLIT, split=SPLIT)
    else:
        rows = local_rows(local_files(card, root), report)
    make = PairItems(report)
    sizes = {SPLIT: 0}
    for _, where, row in rows:
        sizes[SPLIT] += 1
        item = _item(row, where, exclude_equal, make)
        if item is not None:
            yield item
    report.notes += size_notes(sizes, SIZES)


def _item(row: dict[str, Any], where: str, exclude_equal: bool, make: PairItems) -> BenchmarkItem | None:
    """The item of a row, or None if the row is counted as excluded."""
    source_id = id_of(row, "prompt_id", where)
    *prompt, chosen = messages_of(row, "chosen", where)
    *rejected_prompt, rejected = messages_of(row, "rejected", where)
    scores = [_score(row, key, where) for key in ("score_chosen", "score_rejected")]
    if prompt != rejected_prompt:
        make.report.exclude("the prompts of chosen and rejected differ", where)
        return None
    if not chosen["role"] == rejected["role"] == "assistant":
        make.report.exclude("the answer is not an assistant turn", where)
        return None
    if not make.can_use(prompt, where):
        return None
    if scores[0] == scores[1] and exclude_equal:
        make.report.exclude("both answers have the same score (options.equal_scores)", where)
        return None
    if scores[0] == scores[1]:
        make.report.count("both answers have the same score: the label says nothing, kept", where)
    if scores[0] < scores[1]:
        make.report.count("the rejected answer has the higher score, kept", where)
    responses = [chosen["content"], rejected["content"]]
    return make.item(
        prompt,
        responses,
        0,
        subset=SPLIT,
        where=where,
        source_id=source_id,
        meta={"score_chosen": scores[0], "score_rejected": scores[1]},
    )


def _score(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise DataError(f"{where}: `{key}` is {value!r:.60}; expected a number.")
    return float(value)


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """accuracy over all rows, and the same with length controlled."""
    present = present_subsets(items, (SPLIT,), "ultrafeedback")
    controlled = length_controlled("length_controlled", "accuracy", items, present)
    return [pooled("accuracy", "accuracy", present), controlled]
