"""Benchmarks made of prepared pairs: held-out splits of the training data, or the splits of the controlled world.

One metric a split and `mean`, the unweighted mean over the splits; held-out splits have a length-controlled one, too.  The chosen
response stands at index 0 by convention and the label is 0; scoring sees each response alone and grading is strict, so the position
gives nothing away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import (
    SAMPLING_OPTIONS,
    Metric,
    best_against_others,
    best_is_strictly_above,
    length_controlled,
    mean_of,
    pooled,
    sample_items,
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.sources import ItemReport
from rm_methods.errors import DataError, UserError
from rm_methods.files import file_hash
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
            f"Benchmark {card.name!r} is made of the prepared pairs of the experiment; run the prepare stage of its data first."
        )
    if root is not None:
        raise UserError(
            f"benchmarks.{card.name}.root: {root} is not used: this benchmark is made of the experiment's own pairs. Remove it."
        )
    yield from sample_items(_read_splits(card, pairs, options["splits"], report), options, report)


def _read_splits(card: BenchmarkCard, pairs: Path, splits: list[str], report: ItemReport) -> Iterator[BenchmarkItem]:
    everything = read_pairs(pairs)
    present = Counter(pair.split for pair in everything)
    if empty := [f"{split!r} has no pairs" for split in splits if not present[split]]:
        raise DataError(
            f"benchmarks.{card.name}.options.splits: {'; '.join(empty)}. The splits of {pairs} are: "
            f"{', '.join(f'{split} ({count})' for split, count in sorted(present.items())) or 'none'}."
        )
    report.sources.append({"file": str(pairs), "sha256": file_hash(pairs, length=64)})
    seen: dict[str, int] = {}
    for row, pair in enumerate(everything, start=1):
        if pair.split not in splits:
            continue
        report.row()
        item_id = f"{pair.split}/{pair.pair_id}"  # the same pair may stand in two splits of the controlled world
        if (first := seen.setdefault(item_id, row)) != row:
            raise DataError(
                f"{pairs}, row {row}: the pair {pair.pair_id!r} is also in row {first}. The prepare stage leaves out "
                "repeated pairs, so the file was edited: run it again."
            )
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
    """One metric a split, and their mean; for held-out splits with length controlled, too (those of the world control it by their cue)."""
    splits = sorted({item.subset for item in items})
    controlled = [
        length_controlled(f"{split}_length_controlled", "accuracy", [split])
        for split in splits
        if split in ("test", "validation")
    ]
    each = [pooled(split, "accuracy", [split]) for split in splits]
    return [*each, *controlled, mean_of("mean", "accuracy", {split: (split,) for split in splits})]
