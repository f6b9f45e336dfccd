"""Benchmarks made of prepared pairs: held-out splits of the training data, or the splits of the controlled world.

Metrics: one per split, and `mean`, the unweighted mean over the splits. Held-out splits also have a length-controlled
one, and a split of a mixture one per source. By convention the chosen response has index 0, and the label is 0. Scoring
reads each response alone and grading is strict, so the position reveals nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import LENGTH_CONTROLLED_SUFFIX, BenchmarkCard
from rm_methods.benchmarks.grading import (
    SAMPLING_OPTIONS,
    Metric,
    best_against_others,
    best_is_strictly_above,
    mean_of,
    pooled,
    sample_items,
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.length_control import length_controlled
from rm_methods.benchmarks.sources import ItemReport
from rm_methods.errors import DataError, UserError
from rm_methods.files import file_hash
from rm_methods.preferences.data_sources import source_metric, source_name
from rm_methods.preferences.pair import read_pairs

TIE_RULE = "equal scores are wrong (strict)"

OPTIONS = {
    "splits": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "uniqueItems": True,
        "default": ["test"],
        "description": "Splits of the prepared pairs to evaluate, of those that the card allows.",
    },
    **SAMPLING_OPTIONS,
}

comparisons = best_against_others


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the splits `options["splits"]` of the prepared pairs in the file `pairs`."""
    if pairs is None:
        raise UserError(
            f"Benchmark {card.name!r} is made of the experiment's prepared pairs. "
            "Make them with `rm-methods prepare`, then its items with `rm-methods prepare-benchmark --pairs`."
        )
    if root is not None:
        raise UserError(
            f"benchmarks.{card.name}.root: {root} is not used: this benchmark is made of the pairs of the experiment. "
            "Remove it."
        )
    yield from sample_items(_read_splits(card, pairs, options["splits"], report), options, report)


def _read_splits(card: BenchmarkCard, pairs: Path, splits: list[str], report: ItemReport) -> Iterator[BenchmarkItem]:
    all_pairs = read_pairs(pairs)
    sizes = Counter(pair.split for pair in all_pairs)
    if empty := [f"{split!r} has no pairs" for split in splits if not sizes[split]]:
        present = ", ".join(f"{split} ({size})" for split, size in sorted(sizes.items())) or "none"
        raise DataError(
            f"benchmarks.{card.name}.options.splits: {'; '.join(empty)}. The splits of {pairs} are: {present}."
        )
    report.sources.append({"file": str(pairs), "sha256": file_hash(pairs, length=64)})
    first_row: dict[str, int] = {}
    for row, pair in enumerate(all_pairs, start=1):
        if pair.split not in splits:
            continue
        report.row()
        item_id = f"{pair.split}/{pair.pair_id}"  # two splits of the controlled world may have the same pair
        if item_id in first_row:
            raise DataError(
                f"{pairs}, row {row}: the pair {pair.pair_id!r} is also in row {first_row[item_id]}. "
                "The prepare stage removes repeated pairs, so the file was edited: run it again."
            )
        first_row[item_id] = row
        if pair.meta.get("flipped"):
            report.count("label flipped by injected noise, kept", item_id)
        yield BenchmarkItem(
            item_id=item_id,
            subset=pair.split,
            prompt=pair.prompt,
            responses=[pair.chosen, pair.rejected],
            label=0,
            group=pair.group,
            meta={"source": pair.source, "strength": pair.strength} | pair.meta,
        )


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credit of one item: accuracy, 1 if the chosen response scores strictly higher."""
    return {"accuracy": best_is_strictly_above(label, scores)}


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """One metric per split, and their mean; held-out splits also with length controlled, and by source in a mixture.

    The splits of the controlled world control length by their cue.
    """
    splits = sorted({item.subset for item in items})
    controlled = [
        length_controlled(split + LENGTH_CONTROLLED_SUFFIX, "accuracy", items, [split])
        for split in splits
        if split in ("test", "validation")
    ]
    each = [pooled(split, "accuracy", [split]) for split in splits]
    by_source = [metric for split in splits for metric in _by_source(split, items)]
    return [*each, *controlled, *by_source, mean_of("mean", "accuracy", {split: (split,) for split in splits})]


def _by_source(split: str, items: Sequence[BenchmarkItem]) -> list[Metric]:
    """The accuracy on each source of a split; none if all its pairs have one source."""
    sources = sorted({_source_of(item) for item in items if item.subset == split})
    if len(sources) < 2:
        return []
    return [
        Metric(source_metric(split, source), "accuracy", {source: (1.0, (_part(split, source),))}, part_of=_part_of)
        for source in sources
    ]


def _source_of(item: BenchmarkItem) -> str:
    return source_name(item.meta.get("source", ""))


def _part_of(item: BenchmarkItem) -> str:
    return _part(item.subset, _source_of(item))


def _part(split: str, source: str) -> str:
    return f"{split} of {source}"
