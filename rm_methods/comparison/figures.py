"""The comparison as a picture: two panels a column, values and differences from the reference; a line a variant.

Without a reference it has only the panels of values.  The grid grows downward, so any number of columns fits a page.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rm_methods.comparison import marks
from rm_methods.comparison.result import Comparison, VariantRow
from rm_methods.reporting.figures import GRAY, save_figure
from rm_methods.statistics.cell import Cell
from rm_methods.statistics.intervals import Estimate

# Inches.
PITCH = 0.2  # from row to row
TIGHT_PITCH = 0.17  # of a table with many rows
MANY_ROWS = 12
PANEL_WIDTH = 1.75
WIDE_PANEL = 2.5  # of a figure of one column
PANEL_GAP = 0.18  # between the values and the differences of a column
COLUMN_GAP = 0.32
AXIS_HEIGHT = 0.5  # numbers and name of the horizontal axis
LINE_HEIGHT = 0.16  # of a title
SAMPLE_HEIGHT = 0.22  # of the line below a title, which names seeds and items

_LABEL_SIZE = 8.0  # points
_LABEL_CHARACTERS = 34  # more than this take two lines
_LINE_CHARACTERS = 44


def write_figures(comparison: Comparison, targets: Sequence[Path]) -> None:
    """Draw the comparison once and save it to every target."""
    save_figure(lambda: draw(comparison), targets)


def draw(comparison: Comparison):
    """The figure (matplotlib, without pyplot: no window, no global state)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = ("values", "differences") if comparison.reference_row is not None else ("values",)
    labels = [row_label(row.label) for row in comparison.rows]
    positions = _positions(comparison, labels)
    n_columns = len(comparison.columns)
    across = min(n_columns, 4 // len(kinds))
    panel_width = WIDE_PANEL if n_columns == 1 else PANEL_WIDTH
    panel_height = (positions[-1] + 1.2) * (TIGHT_PITCH if len(labels) > MANY_ROWS else PITCH)
    column_width = len(kinds) * panel_width + (len(kinds) - 1) * PANEL_GAP
    left = text_width(labels, _LABEL_SIZE) + 0.2
    width = left + across * column_width + (across - 1) * COLUMN_GAP + 0.15
    figure = Figure(figsize=(width, 1))
    FigureCanvasAgg(figure)
    boxes = []  # of each axis: left, top and its size, inches from the upper left corner
    top = 0.05
    for first in range(0, n_columns, across):
        numbers = range(first, min(first + across, n_columns))
        titles = {n: textwrap.wrap(comparison.columns[n].heading, int(column_width / 0.085)) for n in numbers}
        top += LINE_HEIGHT * max(len(title) for title in titles.values()) + SAMPLE_HEIGHT
        for number in numbers:
            for order, kind in enumerate(kinds):
                x = left + (number - first) * (column_width + COLUMN_GAP) + order * (panel_width + PANEL_GAP)
                boxes.append((x, top, panel_width, panel_height))
                axis = figure.add_axes((0, 0, 1, 1), label=f"{kind} {number}")
                axis.set_ylim(positions[-1] + 0.6, -0.6)
                if kind == "values":
                    _draw_values(axis, comparison, number, positions)
                    _title(axis, "\n".join(titles[number]), marks.sample_text(comparison, number))
                else:
                    _draw_differences(axis, comparison, number, positions)
                marks.bare(axis, grid="x", spines=("bottom",))
                axis.locator_params(axis="x", nbins=5 if n_columns == 1 else 4)
                axis.set_yticks([])
                if number == first and order == 0:
                    _label_rows(axis, comparison, labels, positions)
        top += panel_height + AXIS_HEIGHT
    height = top + marks.legend_height(figure, width) + 0.1
    figure.set_size_inches(width, height)
    for axis, (x, y, box_width, box_height) in zip(figure.axes, boxes, strict=True):
        axis.set_position((x / width, 1 - (y + box_height) / height, box_width / width, box_height / height))
    marks.legend(figure, _legend_title(comparison), width=width, y=0.08)
    return figure


def row_label(label: str) -> str:
    """The label of a row, on two lines where it is long: never cut, because variants may differ in their last letters
    only."""
    if len(label) <= _LABEL_CHARACTERS:
        return label
    name, opening, title = label.partition(" (")
    lines = [*textwrap.wrap(name, _LINE_CHARACTERS), f"({title}" if opening else ""]
    return "\n".join(line for line in lines if line)


def text_width(texts: Sequence[str], size: float) -> float:
    """Inches of the widest line of the texts.

    Args:
        size: of the font, points.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(size=size, weight="bold")
    measure = TextToPath().get_text_width_height_descent
    lines = [line for text in texts for line in text.split("\n")]
    return max((measure(line, font, False)[0] for line in lines), default=0.0) / 72


def _title(axis, heading: str, sample: str) -> None:
    """The column's heading, and what its numbers are of."""
    axis.set_title(heading, fontsize=9, fontweight="bold", loc="left", pad=72 * SAMPLE_HEIGHT)
    style = {"fontsize": 7.5, "color": GRAY, "annotation_clip": False}
    axis.annotate(sample, (0, 1), xytext=(0, 5), xycoords="axes fraction", textcoords="offset points").update(style)


def _draw_values(axis, comparison: Comparison, column: int, positions: Sequence[float]) -> None:
    """Metrics in percent."""
    cells = [row.cells[column] for row in comparison.rows]
    chance = comparison.columns[column].chance
    points = [100 * chance] if chance is not None else []
    estimates = [cell.estimate for cell in cells if cell is not None]
    left, right = marks.panel_limits(estimates, points, bounds=(0.0, 100.0))
    axis.set_xlim(left, right)
    axis.set_xlabel("percent", fontsize=7.5, labelpad=2)
    if chance is not None:
        marks.chance_line(axis, 100 * chance, along="x")
    for row, cell, position in zip(comparison.rows, cells, positions, strict=True):
        if cell is None or math.isnan(cell.estimate.mean):
            _no_result(axis, position)
            continue
        if row.variant == comparison.reference:
            marks.reference_line(axis, 100 * cell.estimate.mean, along="x")
        _draw_row(axis, comparison, row, cell, cell.estimate, position)


def _draw_differences(axis, comparison: Comparison, column: int, positions: Sequence[float]) -> None:
    """Differences from the reference in points: its line is 0, and the band is what the column could hardly show."""
    cells = [row.cells[column] for row in comparison.rows]
    differences = [cell.difference.estimate for cell in cells if cell is not None and cell.difference is not None]
    detectable = 100 * comparison.detectable[column] if comparison.detectable else math.nan
    left, right = marks.panel_limits(differences, [0.0, detectable, -detectable], bounds=(-100.0, 100.0))
    axis.set_xlim(left, right)
    axis.set_xlabel("difference, points", fontsize=7.5, labelpad=2)
    if not math.isnan(detectable):
        marks.detectable_band(axis, detectable)
    marks.reference_line(axis, 0.0, along="x")
    for row, cell, position in zip(comparison.rows, cells, positions, strict=True):
        if cell is not None and cell.difference is not None and not math.isnan(cell.difference.estimate.mean):
            _draw_row(axis, comparison, row, cell, cell.difference.estimate, position)
        elif row.variant != comparison.reference:
            _no_result(axis, position)


def _draw_row(axis, comparison: Comparison, row: VariantRow, cell: Cell, estimate: Estimate, position: float) -> None:
    mark = marks.mark_of(comparison, row, cell)
    marks.draw_estimate(axis, position, estimate, mark=mark, interval=marks.interval_of(row, estimate), along="x")


def _no_result(axis, position: float) -> None:
    text = axis.text(0.5, position, "no result", transform=axis.get_yaxis_transform(), zorder=4)
    text.update({"color": GRAY, "fontsize": 7, "ha": "center", "va": "center"})
    text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})


def _label_rows(axis, comparison: Comparison, labels: Sequence[str], positions: Sequence[float]) -> None:
    axis.set_yticks(positions, labels)
    axis.tick_params(axis="y", labelsize=_LABEL_SIZE, length=0)
    for text, row in zip(axis.get_yticklabels(), comparison.rows, strict=True):
        text.set_color(GRAY if row.is_line else "black")
        text.set_fontweight("bold" if row.variant == comparison.reference else "normal")


def _positions(comparison: Comparison, labels: Sequence[str]) -> list[float]:
    """The middle of each row: a label of two lines needs more space, and half a row is between trained and
    content-blind variants."""
    positions: list[float] = []
    edge = -0.5
    for row, before, label in zip(comparison.rows, (None, *comparison.rows), labels, strict=False):
        if before is not None and row.is_line != before.is_line:
            edge += 0.5
        space = 1 + 0.7 * label.count("\n")
        positions.append(edge + space / 2)
        edge += space
    return positions


def _legend_title(comparison: Comparison) -> str:
    reference = comparison.reference_row
    if reference is None:
        return "Means and intervals"
    title = f"Left: values. Right: differences from {reference.label}."
    if any(cell is not None and cell.tested for row in comparison.rows for cell in row.cells):
        title += f" Holm's correction is over the {comparison.correction}."
    return title
