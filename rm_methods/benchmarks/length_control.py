"""Length control: accuracy over pairs that are matched on the lengths of both responses, in characters.

Giving all pairs whose chosen response is longer the same weight as all pairs whose chosen one is shorter stops only
scorers that always prefer length. A rule such as "the longer one, unless it is much longer" still gains, because the
two kinds of pairs differ in their lengths. So pairs are matched in cells of like lengths: bins of the ratio of the two
lengths, and in each of them bins of their sum. These two numbers say everything about the lengths but which response is
the chosen one.

In each cell the pairs with the longer chosen response and those with the shorter one have equal weight. Whoever prefers
the longer response in a whole cell, or the shorter one, gets 50% in it. A rule can only gain within cells;
docs/benchmarks.md has measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from rm_methods.benchmarks.grading import Metric
from rm_methods.benchmarks.item import BenchmarkItem

MOST_CELLS = 64
PAIRS_PER_CELL = 5  # of the rarer kind, on average; fewer pairs make fewer cells
LEFT_OUT = -1


def length_controlled(name: str, credit: str, items: Sequence[BenchmarkItem], subsets: Iterable[str]) -> Metric:
    """A metric over the pairs of `subsets`, matched on the lengths of their responses.

    A cell with l pairs whose chosen response is longer and s pairs whose chosen one is shorter has a weight in
    proportion to min(l, s), the pairs that can be matched one to one; half of it goes to each kind. Pairs of equal
    length and cells that lack one kind are left out, and counted in the metric's note. The metric is undefined if all
    pairs are of one kind.

    Args:
        items: all of the benchmark. Those of `subsets` have two responses, and the index of the better one as label.
    """
    controlled = frozenset(subsets)
    pairs = [item for item in items if item.subset in controlled]
    chosen = np.array([len(item.responses[item.label]) for item in pairs], dtype=np.int64)
    rejected = np.array([len(item.responses[1 - item.label]) for item in pairs], dtype=np.int64)
    cell = length_cells(chosen, rejected)
    longer = chosen > rejected
    n_cells = int(cell.max(initial=LEFT_OUT)) + 1
    n_longer = np.bincount(cell[longer & (cell != LEFT_OUT)], minlength=n_cells)
    n_shorter = np.bincount(cell[~longer & (cell != LEFT_OUT)], minlength=n_cells)
    matched = np.minimum(n_longer, n_shorter)
    if not matched.sum():
        note = (
            f"{name}: undefined; it needs pairs whose chosen response is longer and pairs whose chosen one is shorter."
        )
        return Metric(name, credit, {}, note=note)
    strata: dict[str, tuple[float, tuple[str, ...]]] = {}
    for number in np.flatnonzero(matched):
        weight = float(matched[number] / matched.sum() / 2)
        for is_longer in (True, False):
            part = _stratum(int(number), is_longer)
            strata[part] = (weight, (part,))
    parts = {
        item.item_id: _stratum(int(number), bool(is_longer))
        for item, number, is_longer in zip(pairs, cell, longer, strict=True)
        if number != LEFT_OUT and matched[number]
    }

    def part_of(item: BenchmarkItem) -> str:
        return parts.get(item.item_id, "")

    equal = int((chosen == rejected).sum())
    cells = "1 cell" if len(strata) == 2 else f"{len(strata) // 2} cells"
    note = (
        f"{name}: {len(parts)} of {len(pairs)} pairs, in {cells} of like lengths; left out: {equal} of equal length, "
        f"{len(pairs) - len(parts) - equal} without a counterpart of like lengths."
    )
    return Metric(name, credit, strata, part_of=part_of, note=note)


def length_cells(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """The cell of each pair: bins of |log((1 + chosen) / (1 + rejected))|, and within each bins of chosen + rejected.

    The limits are quantiles over the rarer kind of pairs (whose chosen response is longer, or shorter), so that the
    pairs of that kind spread evenly over the cells.

    Args:
        chosen, rejected: lengths, int64 [pairs].

    Returns:
        int64 [pairs], from 0; `LEFT_OUT` for pairs of equal length. Some numbers may not occur.
    """
    longer = chosen > rejected
    shorter = chosen < rejected
    rarer = longer if longer.sum() < shorter.sum() else shorter
    n_cells = min(MOST_CELLS, max(1, int(rarer.sum()) // PAIRS_PER_CELL))
    ratio_bins = math.ceil(math.sqrt(n_cells))
    sum_bins = n_cells // ratio_bins
    by_ratio = _bins(np.abs(np.log1p(chosen) - np.log1p(rejected)), rarer, ratio_bins)
    cell = np.full(len(chosen), LEFT_OUT, dtype=np.int64)
    for number in range(ratio_bins):
        members = (by_ratio == number) & (longer | shorter)
        by_sum = _bins((chosen + rejected)[members], rarer[members], sum_bins)
        cell[members] = number * sum_bins + by_sum
    return cell


def _bins(values: np.ndarray, standard: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each value, int64 from 0; the limits are quantiles of the values that `standard` marks.

    Repeated values make fewer bins, and no values make one bin.
    """
    if not standard.any():
        return np.zeros(len(values), dtype=np.int64)
    limits = np.quantile(values[standard], np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf")
    return np.searchsorted(np.unique(limits), values, side="left")


def _stratum(cell: int, chosen_is_longer: bool) -> str:
    return f"cell {cell}, chosen is {'longer' if chosen_is_longer else 'shorter'}"
