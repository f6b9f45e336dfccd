"""What a reader sees first: for each column, who differs from the reference, by how much, how sure, at what cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rm_methods.comparison.result import Comparison, VariantRow
from rm_methods.comparison.tables import cell_text, difference_cell_text, method_text
from rm_methods.reporting import sentences
from rm_methods.statistics.cell import Cell

SHARE_MARGIN = 0.08  # of the axis, left and right of the widest interval
SMALLEST_REACH = 0.02  # of the axis: two points, so that a table of equal rows is not magnified
# Of the drawing, in units of its coordinates.
WIDTH = 320
HALF_DOT = 3.0


@dataclass(frozen=True)
class Bar:
    """A difference and its interval on the axis of a column, in units of the drawing.

    Attributes:
        dot: its position; at the end of the axis if the difference is beyond it.
        beyond: the difference is "left" or "right" of the axis; "" if it is on it.
        low, high: the part of the interval that is on the axis; None without one.
    """

    dot: float
    beyond: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GlanceRow:
    """One variant in one column.

    Attributes:
        label: for readers.
        value, difference: as in the table, such as ``76.6 ±4.9``.
        verdict: "reference", "better", "worse", "not told apart", "too few runs", "not tested", "no result".
        cost: training tokens of one run, relative to the reference: ``1.4×``; "" where unknown.
        bar: None for the reference, and where no difference is defined.
    """

    label: str
    value: str
    difference: str
    verdict: str
    cost: str
    bar: Bar | None


@dataclass(frozen=True)
class Glance:
    """One column at a glance.

    Attributes:
        heading: of the column.
        zero: position of no difference, in units of the drawing.
        ticks: (position, text) on the axis, in points.
        detectable: the least detectable difference in points, "" where no method is tested.
        rows: the reference first, then trained methods from the largest difference to the smallest, then the others.
    """

    heading: str
    zero: float
    ticks: tuple[tuple[float, str], ...]
    detectable: str
    rows: tuple[GlanceRow, ...]


def glances(comparison: Comparison) -> list[Glance]:
    """Every column of a comparison that has a reference; none without one."""
    if comparison.reference_row is None:
        return []
    return [_glance(comparison, number) for number in range(len(comparison.columns))]


def verdict_word(cell: Cell | None) -> str:
    """What a cell says about its row, in one or two words."""
    if cell is None:
        return "no result"
    difference = cell.difference.estimate.mean if cell.difference is not None else math.nan
    return sentences.verdict_word(cell.verdict, cell.estimate.mean, difference)


def relative_cost(row: VariantRow, reference: VariantRow) -> str:
    """Training tokens of one run, relative to those of the reference."""
    if row.is_line or not row.cost.tokens or not reference.cost.tokens:
        return ""
    ratio = row.cost.tokens / reference.cost.tokens
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def _glance(comparison: Comparison, number: int) -> Glance:
    reference = comparison.reference_row
    assert reference is not None
    rows = [row for row in comparison.rows if row is not reference]
    by_difference = sorted(rows, key=lambda row: (row.is_line, -_mean_difference(row.cells[number])))
    reach = _reach(row.cells[number] for row in rows if not row.is_line)
    unit = WIDTH / (2 * reach * (1 + SHARE_MARGIN))
    zero = WIDTH / 2
    shown = [_row(row, reference, number, zero, unit) for row in (reference, *by_difference)]
    value = comparison.detectable[number] if comparison.detectable else math.nan
    detectable = "" if math.isnan(value) else f"{100 * value:.1f}"
    ticks = tuple((zero + share * unit, f"{100 * share:+.0f}" if share else "0") for share in _ticks(reach))
    return Glance(comparison.columns[number].heading, zero, ticks, detectable, tuple(shown))


def _row(row: VariantRow, reference: VariantRow, number: int, zero: float, unit: float) -> GlanceRow:
    cell = row.cells[number]
    return GlanceRow(
        label=method_text(row),
        value=cell_text(cell, row),
        difference="" if row is reference else difference_cell_text(cell, row),
        verdict="reference" if row is reference else verdict_word(cell),
        cost=relative_cost(row, reference),
        bar=None if row is reference else _bar(cell, zero, unit),
    )


def _bar(cell: Cell | None, zero: float, unit: float) -> Bar | None:
    if cell is None or cell.difference is None or math.isnan(cell.difference.estimate.mean):
        return None
    estimate = cell.difference.estimate
    position = zero + estimate.mean * unit
    beyond = "left" if position < 0 else "right" if position > WIDTH else ""
    dot = min(max(position, HALF_DOT), WIDTH - HALF_DOT)
    low = zero + estimate.low * unit
    high = zero + estimate.high * unit
    if math.isnan(estimate.low) or high <= 0 or low >= WIDTH:
        return Bar(dot, beyond)
    return Bar(dot, beyond, max(low, 0.0), min(high, float(WIDTH)))


def _mean_difference(cell: Cell | None) -> float:
    if cell is None or cell.difference is None or math.isnan(cell.difference.estimate.mean):
        return -math.inf
    return cell.difference.estimate.mean


def _reach(cells: Iterable[Cell | None]) -> float:
    """The largest distance from 0 that the axis shows: all differences, and the limits of intervals up to 50 points."""
    reach = SMALLEST_REACH
    for cell in cells:
        if cell is None or cell.difference is None or math.isnan(cell.difference.estimate.mean):
            continue
        estimate = cell.difference.estimate
        ends = [abs(end) for end in (estimate.low, estimate.high) if not math.isnan(end)]
        reach = max(reach, abs(estimate.mean), *(min(end, 0.5) for end in ends))
    return reach


def _ticks(reach: float) -> list[float]:
    """Round shares on both sides of 0: at most three a side."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        count = int(reach / step)
        if count <= 3:
            return [step * k for k in range(-count, count + 1)]
    return [0.0]
