"""HelpSteer3-Preference, validation split (Wang et al. 2025, arXiv:2505.11475): which response do people prefer?

Format of the hub card nvidia/HelpSteer3 (`preference/validation.jsonl.gz`): `context` is a list of turns,
`overall_preference` goes from -3 (response 1 is much better) over 0 (about the same) to 3 (response 2 is much better).
NVIDIA's own reader takes the sign in the same way (github.com/NVIDIA-NeMo/RL @ 076c5c1,
nemo_rl/data/datasets/preference_datasets/helpsteer3.py). Rows with 0 have no better response: they are excluded and
counted. The metric is the accuracy, strict. NVIDIA publishes no official metric on this split.
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
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.length_control import length_controlled
from rm_methods.benchmarks.pair_items import STRICT, PairItems, grade_pair, messages_of, whole_number
from rm_methods.benchmarks.sources import ItemReport, hub_rows, local_files, local_rows, text_of
from rm_methods.errors import DataError, nearest

TIE_RULE = STRICT

SUBSETS = ("general", "code", "stem", "multilingual")

OPTIONS = {**SAMPLING_OPTIONS}

comparisons = best_against_others
grade = grade_pair


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from `preference/validation.jsonl.gz` below `root`, or from the hub if `root` is None."""
    yield from sample_items(_items(card, root, report), options, report)


def _items(card: BenchmarkCard, root: Path | None, report: ItemReport) -> Iterator[BenchmarkItem]:
    if root is None:
        rows = hub_rows(card, report, "validation", name="preference", split="validation")
    else:
        rows = local_rows(local_files(card, root), report)
    make = PairItems(report)
    for _, where, row in rows:
        item = _item(row, where, make)
        if item is not None:
            yield item


def _item(row: dict[str, Any], where: str, make: PairItems) -> BenchmarkItem | None:
    """The item of a row, or None if the row is counted as excluded."""
    domain = row.get("domain")
    if domain not in SUBSETS:
        raise DataError(f"{where}: domain {domain!r} is not one of HelpSteer3. {nearest(str(domain), SUBSETS)}")
    preference = whole_number(row, "overall_preference", range(-3, 4), where)
    prompt = messages_of(row, "context", where)
    responses = [text_of(row, key, where, may_be_empty=True) for key in ("response1", "response2")]
    if preference == 0:
        make.report.exclude("overall_preference is 0: neither response is better", where)
        return None
    if not make.can_use(prompt, where):
        return None
    return make.item(
        prompt,
        responses,
        int(preference > 0),
        subset=domain,
        where=where,
        meta={"language": row.get("language"), "overall_preference": preference},
    )


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """accuracy over all rows, the same with length controlled, and the accuracy of each domain."""
    present = present_subsets(items, SUBSETS, "helpsteer3")
    controlled = length_controlled("length_controlled", "accuracy", items, present)
    overall = [pooled("accuracy", "accuracy", present), controlled]
    return [*overall, *(pooled(domain, "accuracy", [domain]) for domain in SUBSETS if domain in present)]
