"""What all benchmark modules share: a metric as a weighted mean of credits, strict comparison, and seeded sampling of items."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError, nearest

SAMPLING_OPTIONS = {
    "limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "At most this many items of each subset, drawn at random but always the same ones for one seed; null takes all.",
    },
    "sample_seed": {"type": "integer", "default": 0, "description": "Seed of the draw when `limit` is set."},
}


@dataclass(frozen=True)
class Metric:
    """A metric = sum over strata of weight x mean credit of the items in the stratum; undefined where a stratum has no items.

    Attributes:
        name: as in metrics.json.
        credit: which of the credits that `grade` gives for an item.
        strata: name -> (weight, parts of the benchmark that are pooled in it).  Weights sum to 1.
        strict: whether equal scores earn nothing; false only where a benchmark's official rule says otherwise.
        part_of: the part that an item is of; its subset, unless the metric says otherwise.
    """

    name: str
    credit: str
    strata: dict[str, tuple[float, tuple[str, ...]]]
    strict: bool = True
    part_of: Callable[[BenchmarkItem], str] = attrgetter("subset")


def pooled(name: str, credit: str, subsets: Iterable[str], strict: bool = True) -> Metric:
    """A metric that is the plain mean over all items of the subsets (a micro average)."""
    return Metric(name, credit, {name: (1.0, tuple(sorted(subsets)))}, strict)


def mean_of(name: str, credit: str, strata: dict[str, tuple[str, ...]]) -> Metric:
    """A metric that is the unweighted mean over strata, whatever their sizes (a macro average)."""
    return Metric(name, credit, {stratum: (1 / len(strata), tuple(subsets)) for stratum, subsets in strata.items()})


def length_controlled(name: str, credit: str, subsets: Iterable[str]) -> Metric:
    """A metric in which pairs whose chosen response is the longer one, in characters, weigh as much as those where it is the shorter one.

    A scorer that goes by length gets 50%, however often the longer response is chosen.  Pairs of equal length are left out.  Items need
    two responses, and the index of the better one as label.
    """
    asked, longer, shorter = frozenset(subsets), "chosen is longer", "chosen is shorter"

    def part_of(item: BenchmarkItem) -> str:
        difference = len(item.responses[item.label]) - len(item.responses[1 - item.label])
        return "" if item.subset not in asked or not difference else longer if difference > 0 else shorter

    return Metric(name, credit, {part: (0.5, (part,)) for part in (longer, shorter)}, part_of=part_of)


def best_is_strictly_above(label: Any, scores: np.ndarray) -> float:
    """Credit of an item whose label is the index of its best response: 1 if that scores strictly above every other, else 0.

    A tie is wrong, and so is NaN, which compares false with everything.

    >>> best_is_strictly_above(0, np.array([1.0, 0.5])), best_is_strictly_above(0, np.array([1.0, 1.0]))
    (1.0, 0.0)
    """
    return float(all(scores[better] > scores[worse] for better, worse in best_against_others(label, len(scores))))


def best_against_others(label: Any, n_responses: int) -> list[tuple[int, int]]:
    """The comparisons (better, worse) of an item whose label is the index of its best response.

    Raises:
        DataError: the label is not such an index, or there is nothing to compare with.
    """
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < n_responses:
        raise DataError(
            f"label {label!r} is not allowed; expected the index of the best of {n_responses} responses, from 0."
        )
    if n_responses < 2:
        raise DataError("an item needs at least two responses to compare, found one.")
    return [(label, other) for other in range(n_responses) if other != label]


def present_subsets(items: Sequence[BenchmarkItem], known: Iterable[str], benchmark: str) -> set[str]:
    """The subsets that occur in `items`.

    Raises:
        DataError: there are no items, or one has a subset that is not in `known`.
    """
    present = {item.subset for item in items}
    if not present:
        raise DataError(f"{benchmark}: there are no items to evaluate.")
    for subset in sorted(present - set(known)):
        example = next(item.item_id for item in items if item.subset == subset)
        raise DataError(f"{benchmark}: unknown subset {subset!r} (item {example!r}). {nearest(subset, known)}")
    return present


def sample_items(items: Iterable[BenchmarkItem], options: dict[str, Any], report) -> Iterator[BenchmarkItem]:
    """Items as given, or at most `options["limit"]` of each subset; those left out are counted in the report.

    The draw takes the items with the smallest hash of seed and item id, so that it depends neither on the order of a file nor on a
    random-number generator, and a smaller sample is part of a larger one.
    """
    if options["limit"] is None:
        yield from items
        return
    items = list(items)
    by_subset = defaultdict(list)
    for item in items:
        draw = hashlib.sha256(f"{options['sample_seed']}\0{item.item_id}".encode()).hexdigest()
        by_subset[item.subset].append((draw, item.item_id))
    kept = {item_id for drawn in by_subset.values() for _, item_id in sorted(drawn)[: options["limit"]]}
    if len(kept) < len(items):
        sizes = ", ".join(
            f"{subset} {min(len(drawn), options['limit'])} of {len(drawn)}"
            for subset, drawn in sorted(by_subset.items())
        )
        weights = (
            "; figures that pool subsets weigh them as drawn, not as the whole benchmark does"
            if len(by_subset) > 1
            else ""
        )
        report.notes.append(f"A sample (options.limit): {sizes} items{weights}.")
    for item in items:
        if item.item_id in kept:
            yield item
        else:
            report.exclude("not drawn by options.limit", item.item_id)
