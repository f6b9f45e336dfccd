"""A metric against label noise as a picture: what the reference gets, and every variant's difference from it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rm_methods.comparison import marks
from rm_methods.comparison.result import Comparison, VariantRow
from rm_methods.config.variants import NoiseLevel
from rm_methods.reporting.figures import GRAY, save_figure
from rm_methods.statistics.cell import Cell
from rm_methods.statistics.intervals import Estimate

ACROSS = 4  # panels side by side

# Inches.
_PANEL_WIDTH = 1.75
_PANEL_HEIGHT = 1.35
_GAP = 0.55  # left of a panel: numbers and name of its axis
_TITLE_LINE = 0.14
_TITLE_GAP = 0.1
_AXIS = 0.28
_TITLE_CHARACTERS = 26

_KINDS = {"symmetric": marks.ANY_FLIPPED, "length": marks.LONGER_FLIPPED}


def write_noise_figure(
    levels: Sequence[NoiseLevel], comparisons: Sequence[Comparison], column: int, targets: Sequence[Path]
) -> None:
    """Draw one column against label noise and save it to every target.

    Args:
        comparisons: of each level.
    """
    save_figure(lambda: draw_noise(levels, comparisons, column), targets)


def draw_noise(levels: Sequence[NoiseLevel], comparisons: Sequence[Comparison], column: int):
    """The figure (matplotlib, without pyplot): the first panel has the reference's values, each other panel the
    differences of one variant to the reference of the same level.  Without a reference all panels have values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reference = comparisons[0].reference_row
    rows: dict[str, VariantRow] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            if row is not reference and (not row.is_line or reference is None):
                rows.setdefault(row.variant, row)
    if reference is not None:
        rows.pop(reference.variant, None)
    panels = [*([reference] if reference is not None else []), *rows.values()]
    across = min(ACROSS, len(panels))
    width = max(across * (_GAP + _PANEL_WIDTH) + 0.15, 5.6)
    figure = Figure(figsize=(width, 1))
    FigureCanvasAgg(figure)
    value_panels = [reference] if reference is not None else panels
    value_limits = _limits(comparisons, value_panels, column, is_value=True)
    difference_limits = _limits(comparisons, list(rows.values()), column, is_value=False)
    titles = [textwrap.wrap(row.label, _TITLE_CHARACTERS) for row in panels]
    for number, row in enumerate(panels):
        is_value = reference is None or row is reference
        axis = figure.add_axes((0, 0, 1, 1), label=row.variant)
        axis.set_ylim(value_limits if is_value else difference_limits)
        _draw_panel(axis, levels, comparisons, row, column, is_value)
        axis.set_title("\n".join(titles[number]), fontsize=8, loc="left", pad=4)
        if number % across == 0 or (number == 1 and reference is not None):
            axis.set_ylabel("percent" if is_value else "difference, points", fontsize=7.5, labelpad=2)
        marks.bare(axis, grid="y", spines=("bottom", "left"))
    boxes = []  # left and top of each panel, inches from the upper left corner
    top = 0.5
    for first in range(0, len(panels), across):
        numbers = range(first, min(first + across, len(panels)))
        top += _TITLE_LINE * max(len(titles[number]) for number in numbers) + _TITLE_GAP
        boxes += [(_GAP + (number - first) * (_GAP + _PANEL_WIDTH), top) for number in numbers]
        top += _PANEL_HEIGHT + _AXIS
    bottom = marks.legend_height(figure, width) + 0.35
    height = top + bottom
    figure.set_size_inches(width, height)
    for axis, (x, y) in zip(figure.axes, boxes, strict=True):
        axis.set_position((x / width, 1 - (y + _PANEL_HEIGHT) / height, _PANEL_WIDTH / width, _PANEL_HEIGHT / height))
    figure.text(0.1 / width, 1 - 0.1 / height, comparisons[0].columns[column].heading, fontweight="bold", va="top")
    sample = _sample_text(levels, comparisons, column)
    figure.text(0.1 / width, 1 - 0.28 / height, sample, fontsize=7.5, color=GRAY, va="top")
    figure.text(0.5, (bottom - 0.1) / height, "flipped training labels, percent", fontsize=8, ha="center", va="center")
    marks.legend(figure, _legend_title(comparisons[0]), width=width, y=0.08)
    return figure


def _draw_panel(
    axis,
    levels: Sequence[NoiseLevel],
    comparisons: Sequence[Comparison],
    row: VariantRow,
    column: int,
    is_value: bool,
) -> None:
    rates = sorted({100 * level.rate for level in levels})
    span = (rates[-1] - rates[0]) or 1.0
    axis.set_xlim(rates[0] - 0.08 * span, rates[-1] + 0.08 * span)
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    if not is_value:
        marks.reference_line(axis, 0.0, along="y")
    chance = comparisons[0].columns[column].chance
    if is_value and chance is not None:
        marks.chance_line(axis, 100 * chance, along="y")
    kinds = [kind for kind in _KINDS if any(level.kind == kind and level.rate for level in levels)] or ["symmetric"]
    twice = {level.rate for level in levels if sum(other.rate == level.rate for other in levels) > 1}
    for order, kind in enumerate(kinds):
        points = []
        for level, comparison in zip(levels, comparisons, strict=True):
            if level.kind != kind and level.rate:
                continue
            for level_row, cell, estimate in _estimates([comparison], row.variant, column, is_value):
                # Two kinds of the same rate get marks side by side.  The level without noise belongs to both.
                beside = 0.02 * span * (2 * order - 1) if level.rate in twice else 0.0
                x = 100 * level.rate + beside
                points.append((x, 100 * estimate.mean))
                if level.rate or order == 0:
                    mark = marks.mark_of(comparison, level_row, cell)
                    interval = marks.interval_of(level_row, estimate)
                    marks.draw_estimate(axis, x, estimate, mark=mark, interval=interval, along="y")
        marks.level_line(axis, points, _KINDS[kind])


def _estimates(
    comparisons: Sequence[Comparison], variant: str, column: int, is_value: bool
) -> list[tuple[VariantRow, Cell, Estimate]]:
    """A variant's defined values, or differences, with the rows and cells that they are of."""
    estimates = []
    for comparison in comparisons:
        for row in comparison.rows:
            cell = row.cells[column]
            if row.variant != variant or cell is None:
                continue
            if is_value:
                estimate = cell.estimate
            elif cell.difference is not None:
                estimate = cell.difference.estimate
            else:
                continue
            if not math.isnan(estimate.mean):
                estimates.append((row, cell, estimate))
    return estimates


def _limits(
    comparisons: Sequence[Comparison], rows: Sequence[VariantRow], column: int, is_value: bool
) -> tuple[float, float]:
    """One scale for all panels of values, and one for all of differences."""
    estimates = [estimate for row in rows for _, _, estimate in _estimates(comparisons, row.variant, column, is_value)]
    if not is_value:
        return marks.panel_limits(estimates, [0.0], bounds=(-100.0, 100.0))
    chance = comparisons[0].columns[column].chance
    return marks.panel_limits(estimates, [] if chance is None else [100 * chance], bounds=(0.0, 100.0))


def _sample_text(levels: Sequence[NoiseLevel], comparisons: Sequence[Comparison], column: int) -> str:
    texts = [marks.sample_text(comparison, column) for comparison in comparisons]
    if len(set(texts)) == 1:
        return f"{texts[0]} at each level"
    return "; ".join(f"{level.heading}: {text}" for level, text in zip(levels, texts, strict=True))


def _legend_title(comparison: Comparison) -> str:
    if comparison.reference_row is None:
        return "Means and intervals"
    return f"First panel: values. Others: differences from {comparison.reference_row.label} on the same level."
