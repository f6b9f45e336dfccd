"""Sets of pairs to validate on: a split of the prepared pairs, a file, or a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rm_methods.errors import DataError, UserError, nearest

if TYPE_CHECKING:
    from rm_methods.benchmarks.item import BenchmarkItem
    from rm_methods.preferences.pair import PreferencePair


def kind_of_set(name: str) -> Literal["split", "file", "benchmark"]:
    """What a name in `training.validation.sets` means; a path has a slash or the ending of a preference format."""
    from rm_methods.benchmarks.cards import list_benchmark_cards, load_benchmark_card
    from rm_methods.preferences.file_formats import data_format

    if "/" in name or data_format(Path(name)) is not None:
        return "file"
    if name in list_benchmark_cards() and load_benchmark_card(name).module != "prepared_splits":
        return "benchmark"
    return "split"


def choosing_set(training: Mapping[str, Any]) -> str:
    """The set that chooses the checkpoint: `best.set` of the section `training`, or else the first validation set."""
    return training["best"]["set"] or training["validation"]["sets"][0]


def title_of_set(name: str) -> str:
    """The name of a set in metrics: that of a file without folders and endings."""
    return Path(name).name.split(".")[0] if kind_of_set(name) == "file" else name


def pairs_of_set(
    name: str, prepared: Path, benchmarks: Mapping[str, Any], max_pairs: int | None
) -> list[PreferencePair]:
    """The pairs of a validation set, at most `max_pairs` of them: a sample, always the same one.

    Args:
        name: of `training.validation.sets`.
        prepared: file of the prepared pairs.
        benchmarks: section of the configuration; names the local folders.

    Raises:
        UserError: no such split, no pair, or a benchmark without one best response for each item.
    """
    from rm_methods.preferences.pair import read_pairs
    from rm_methods.scoring.data import load_data

    where = f"training.validation.sets: '{name}'"
    if kind_of_set(name) == "split":
        pairs = read_pairs(prepared, splits=[name])
        if not pairs:
            splits = {pair.split for pair in read_pairs(prepared)}
            raise UserError(
                f"{where} is not a split of the prepared pairs, a path or a benchmark of single responses. "
                f"{nearest(name, splits)}"
            )
    else:
        entry = benchmarks.get(name) or {}
        root = entry.get("root")
        pairs = _pairs_of_items(load_data(name, Path(root) if root else None).items, where)
    if max_pairs is None or len(pairs) <= max_pairs:
        return pairs
    import numpy as np

    sample = np.random.default_rng(0).permutation(len(pairs))[:max_pairs]
    return [pairs[position] for position in sorted(sample)]


def _pairs_of_items(items: Sequence[BenchmarkItem], where: str) -> list[PreferencePair]:
    """The best response of each item beside each of the others."""
    from rm_methods.preferences.pair import make_pair

    pairs = []
    for item in items:
        best = item.label
        if isinstance(best, bool) or not isinstance(best, int) or not 0 <= best < len(item.responses):
            raise DataError(
                f"{where}: item {item.item_id} has the label {best!r}, which is not the number of its best response. "
                "Name a split, a file of pairs or another benchmark."
            )
        for position, response in enumerate(item.responses):
            if position != best:
                pairs.append(
                    make_pair(item.prompt, item.responses[best], response, split=item.subset, source=item.item_id)
                )
    if not pairs:
        raise DataError(f"{where} has no pairs.")
    return pairs
