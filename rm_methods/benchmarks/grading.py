"""Shared by all benchmark modules: metrics as weighted means of credits, strict comparison, seeded samples of items."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError, nearest

if TYPE_CHECKING:
    from rm_methods.benchmarks.sources import ItemReport

SAMPLING_OPTIONS: dict[str, dict[str, Any]] = {
    "limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "At most this many items of each subset, drawn at random, the same ones for one seed; "
        "null takes all.",
    },
    "sample_seed": {"type": "integer", "default": 0, "description": "Seed of the draw when `limit` is set."},
}


@dataclass(frozen=True)
class Metric:
    """A metric = sum over strata of weight x mean credit of the items in the stratum.

    It is undefined if a stratum is empty, or without strata.

    Attributes:
        name: as in metrics.json.
        credit: name of a credit that `grade` gives for an item.
        strata: name -> (weight, parts of the benchmark that are pooled in it). Weights sum to 1.
        strict: whether equal scores earn nothing; false only where the official rule of a benchmark differs.
        part_of: the part of an item; by default its subset.
        note: for the readers of the figures: which items it leaves out, and why; empty if it needs none.
        limits: the lowest and the highest value.
    """

    name: str
    credit: str
    strata: dict[str, tuple[float, tuple[str, ...]]]
    strict: bool = True
    part_of: Callable[[BenchmarkItem], str] = attrgetter("subset")
    note: str = ""
    limits: tuple[float, float] = (0.0, 1.0)


def pooled(name: str, credit: str, subsets: Iterable[str], strict: bool = True) -> Metric:
    """A metric that is the plain mean over all items of the subsets (a micro average)."""
    return Metric(name, credit, {name: (1.0, tuple(sorted(subsets)))}, strict)


def mean_of(name: str, credit: str, strata: Mapping[str, Sequence[str]]) -> Metric:
    """A metric that is the unweighted mean over strata, whatever their sizes (a macro average)."""
    return Metric(name, credit, {stratum: (1 / len(strata), tuple(subsets)) for stratum, subsets in strata.items()})


def wins_of_scores(scores: np.ndarray) -> np.ndarray:
    """Which response scores strictly above which, bool [n, n]; NaN is above nothing, and nothing above NaN."""
    return scores[:, None] > scores[None, :]


def best_is_strictly_above(label: Any, scores: np.ndarray) -> float:
    """Credit of an item whose label is the index of the best response: 1 if that scores strictly above all others.

    A tie is wrong. So is NaN, which compares false with everything.

    >>> best_is_strictly_above(0, np.array([1.0, 0.5])), best_is_strictly_above(0, np.array([1.0, 1.0]))
    (1.0, 0.0)
    """
    return float(all(scores[better] > scores[worse] for better, worse in best_against_others(label, len(scores))))


def best_against_others(label: Any, n_responses: int) -> list[tuple[int, int]]:
    """The comparisons (better, worse) of an item whose label is the index of its best response.

    Raises:
        DataError: the label is not such an index, or the item has only one response.
    """
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < n_responses:
        raise DataError(
            f"label {label!r} is not allowed; expected the index of the best of {n_responses} responses, from 0."
        )
    if n_responses < 2:
        raise DataError("an item needs at least two responses to compare, found one.")
    return [(label, other) for other in range(n_responses) if other != label]


def present_subsets(items: Sequence[BenchmarkItem], subsets: Iterable[str], benchmark: str) -> set[str]:
    """The subsets that occur in `items`.

    Args:
        subsets: all subsets of the benchmark.

    Raises:
        DataError: `items` is empty, or one has a subset that is not in `subsets`.
    """
    present = {item.subset for item in items}
    if not present:
        raise DataError(f"{benchmark}: no items to evaluate.")
    for subset in sorted(present - set(subsets)):
        example = next(item.item_id for item in items if item.subset == subset)
        raise DataError(f"{benchmark}: unknown subset {subset!r} (item {example!r}). {nearest(subset, subsets)}")
    return present


def size_notes(sizes: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """A note for the readers if present parts have other numbers of rows than the official data; else none.

    Parts without a row are not counted: another note says that they are missing.

    Args:
        sizes: part of the benchmark -> number of its rows that were read.
        official: part -> number of rows.

    >>> size_notes({"code": 227, "math": 529}, {"chat": 129, "code": 228, "math": 529})
    ['Expected 757 rows, got 756: code 227 of 228. Figures are not the official ones.']
    """
    differing = [
        f"{part} {sizes[part]:,} of {count:,}"
        for part, count in official.items()
        if sizes.get(part) and sizes[part] != count
    ]
    if not differing:
        return []
    present = [part for part in official if sizes.get(part)]
    expected = sum(official[part] for part in present)
    found = sum(sizes[part] for part in present)
    return [f"Expected {expected:,} rows, got {found:,}: {', '.join(differing)}. Figures are not the official ones."]


def sample_items(
    items: Iterable[BenchmarkItem], options: dict[str, Any], report: ItemReport
) -> Iterator[BenchmarkItem]:
    """All items, or at most `options["limit"]` of each subset; the report counts the others as excluded.

    The sample has the items with the smallest hash of seed and item id. So it depends neither on the order of a file
    nor on a random-number generator, and a smaller sample is part of a larger one.
    """
    limit = options["limit"]
    if limit is None:
        yield from items
        return
    items = list(items)
    draws_by_subset: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item in items:
        draw = hashlib.sha256(f"{options['sample_seed']}\0{item.item_id}".encode()).hexdigest()
        draws_by_subset[item.subset].append((draw, item.item_id))
    kept: set[str] = set()
    sizes = []
    for subset, draws in sorted(draws_by_subset.items()):
        kept.update(item_id for _, item_id in sorted(draws)[:limit])
        sizes.append(f"{subset} {min(len(draws), limit)} of {len(draws)}")
    if len(kept) < len(items):
        note = f"A sample (options.limit): {', '.join(sizes)} items"
        if len(sizes) > 1:
            note += "; figures that pool subsets weight them as drawn, not as the whole benchmark does"
        report.notes.append(f"{note}.")
    for item in items:
        if item.item_id in kept:
            yield item
        else:
            report.exclude("not drawn by options.limit", item.item_id)
