"""Marks of the comparison's figures: one shape for one meaning, and a legend of those that occur.

Every artist that means something has its meaning as its label, one of the constants below. The legend is made from
the labels.

    mark       diamond: the reference; circle: tested, filled if significant after Holm's correction; cross: a trained
               method that is not tested; square: a combination of runs; gray circle: content-blind; gray
               triangle: computed
    interval   solid: all that is known to vary; dashed and thin: items only, another training would change it by more;
               dotted: seeds only
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rm_methods.comparison.result import Comparison, VariantRow
from rm_methods.reporting.figures import BLUE, GRAY, GREEN, ORANGE
from rm_methods.statistics.cell import Cell
from rm_methods.statistics.intervals import Estimate

REFERENCE = "reference"
SIGNIFICANT = "differs significantly (Holm)"
NOT_SIGNIFICANT = "not shown to differ"
NOT_TESTED = "not tested"
METHOD = "method"
COMBINATION = "combination of runs, not tested"
CONTENT_BLIND = "content-blind, not tested"
COMPUTED = "computed, not tested"
EXTERNAL = "from elsewhere, not tested"
INTERVAL = "95% interval"
ITEMS_ONLY = "95% interval, one model: items only"
SEEDS_ONLY = "95% interval, seeds only"
BEYOND = "interval goes on beyond the panel"
CHANCE = "chance"
ANY_FLIPPED = "any labels flipped"
LONGER_FLIPPED = "labels flipped to the longer response"
DETECTABLE = "± least detectable difference"

_MARKS: dict[str, dict[str, Any]] = {
    REFERENCE: {"color": ORANGE, "marker": "D", "markersize": 4.5},
    SIGNIFICANT: {"color": BLUE, "marker": "o"},
    NOT_SIGNIFICANT: {"color": BLUE, "marker": "o", "markerfacecolor": "white"},
    NOT_TESTED: {"color": BLUE, "marker": "x", "markeredgewidth": 1.3},
    METHOD: {"color": BLUE, "marker": "o"},
    COMBINATION: {"color": GREEN, "marker": "s", "markersize": 4.5},
    CONTENT_BLIND: {"color": GRAY, "marker": "o"},
    COMPUTED: {"color": GRAY, "marker": "^"},
    EXTERNAL: {"color": GRAY, "marker": "v"},
}
_INTERVALS: dict[str, dict[str, Any]] = {
    INTERVAL: {"linewidth": 1.4, "linestyle": "-"},
    ITEMS_ONLY: {"linewidth": 0.8, "linestyle": (0, (3, 2))},
    SEEDS_ONLY: {"linewidth": 1.4, "linestyle": (0, (1, 1))},
}
_LINES: dict[str, dict[str, Any]] = {
    ANY_FLIPPED: {"color": GRAY, "linewidth": 0.8, "linestyle": "-"},
    LONGER_FLIPPED: {"color": GRAY, "linewidth": 0.8, "linestyle": (0, (4, 1.2, 1, 1.2))},
}
_ARROW: dict[str, Any] = {"label": BEYOND, "markersize": 4, "linestyle": "none", "zorder": 3}
_REFERENCE_LINE: dict[str, Any] = {"color": ORANGE, "linewidth": 0.8, "alpha": 0.6}
_CHANCE_LINE: dict[str, Any] = {"color": GRAY, "linewidth": 0.9, "linestyle": (0, (2, 2))}
_BAND: dict[str, Any] = {"facecolor": "#EEEEEE", "edgecolor": "none"}
_GRID = "#E5E5E5"


def mark_of(comparison: Comparison, row: VariantRow, cell: Cell) -> str:
    """The meaning of a row's mark in a column."""
    if row.variant == comparison.reference:
        return REFERENCE
    if row.is_line:
        return {"computed": COMPUTED, "external": EXTERNAL}.get(row.role, CONTENT_BLIND)
    if row.role == "combined":
        return COMBINATION
    marks = {"significant": SIGNIFICANT, "not significant": NOT_SIGNIFICANT, "": METHOD}
    return marks.get(cell.verdict, NOT_TESTED)


def interval_of(row: VariantRow, estimate: Estimate) -> str:
    """What an interval counts."""
    if row.counts_items_only(estimate):
        return ITEMS_ONLY
    return SEEDS_ONLY if estimate.basis == "seeds" else INTERVAL


def in_percent(estimate: Estimate) -> tuple[float, float, float]:
    """Mean and limits, times 100."""
    return 100 * estimate.mean, 100 * estimate.low, 100 * estimate.high


def draw_estimate(
    axis, position: float, estimate: Estimate, *, mark: str, interval: str, along: Literal["x", "y"]
) -> None:
    """A mark at the mean and a line for the interval, which is cut at the limits of the axis.

    Args:
        position: on the other axis.
        mark, interval: their meanings.
        along: the axis of the values; its limits are final.
    """
    mean, low, high = in_percent(estimate)
    if math.isnan(mean):
        return
    first, last = sorted(axis.get_xlim() if along == "x" else axis.get_ylim())
    color = _MARKS[mark]["color"]

    def plot(values: Sequence[float], style: Mapping[str, Any]) -> None:
        positions = [position] * len(values)
        (line,) = axis.plot(values, positions) if along == "x" else axis.plot(positions, values)
        line.update(style)

    if not math.isnan(low):
        line_style = {"color": color, "label": interval, "zorder": 3, "solid_capstyle": "butt", "marker": ""}
        plot((max(low, first), min(high, last)), line_style | _INTERVALS[interval])
        arrows = "<>" if along == "x" else "v^"
        for end, is_cut, arrow in ((first, low < first, arrows[0]), (last, high > last, arrows[1])):
            if is_cut:
                plot([end], _ARROW | {"color": color, "marker": arrow, "clip_on": False})
    plot([mean], _mark(mark) | {"linestyle": "none"})


def panel_limits(
    estimates: Sequence[Estimate], points: Sequence[float], bounds: tuple[float, float]
) -> tuple[float, float]:
    """Limits of the axis of values, in percent: every mean, the points and ordinary intervals fit; one of two seeds may
    be so wide that it is cut.

    Args:
        points: in percent.
        bounds: what a value can be, in percent; an interval may reach further, the axis does not.
    """
    values = [in_percent(estimate) for estimate in estimates if not math.isnan(estimate.mean)]
    inside = [mean for mean, _, _ in values] + [point for point in points if not math.isnan(point)]
    if not inside:
        return bounds
    reaches = sorted((high - low) / 2 for _, low, high in values if not math.isnan(low))
    allowed = 4 * reaches[len(reaches) // 2] if reaches else 0.0
    for mean, low, high in values:
        if not math.isnan(low):
            inside += [max(low, mean - allowed, min(mean, bounds[0])), min(high, mean + allowed, max(mean, bounds[1]))]
    margin = 0.05 * (max(inside) - min(inside)) or 1.0
    return min(inside) - margin, max(inside) + margin


def legend(figure, title: str, width: float, y: float) -> None:
    """What the marks mean, only those that occur, in the order of the constants above.

    Args:
        title: what the marks show.
        width: of the figure, inches.
        y: bottom of the legend, inches.
    """
    handles = legend_handles(figure)
    height = figure.get_figheight()
    drawn = figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, y / height),
        ncols=_legend_columns(len(handles), width),
        frameon=False,
        fontsize=8,
        borderaxespad=0,
        borderpad=0,
        columnspacing=1.2,
        handlelength=1.8,
    )
    drawn.set_title(title, prop={"size": 8})


def _legend_columns(n_entries: int, width: float) -> int:
    """Columns of a legend in a figure of a width in inches."""
    return max(1, min(n_entries, int(width / 2.3)))


def legend_height(figure, width: float) -> float:
    """Inches that the legend of a figure takes, with its title; the figure may get its size later.

    Args:
        width: that the figure will have, inches.
    """
    n_entries = len(legend_handles(figure))
    return 0.17 * math.ceil(n_entries / _legend_columns(n_entries, width)) + 0.2


def legend_handles(figure) -> list:
    """A handle for each meaning that occurs in the figure."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    drawn = {
        str(artist.get_label()) for axis in figure.axes for artist in (*axis.lines, *axis.collections, *axis.patches)
    }
    black = {"color": "black"}
    styles: dict[str, dict[str, Any]] = {}
    for label in _MARKS:
        line = _REFERENCE_LINE | {"alpha": 1} if label == REFERENCE else {"linestyle": "none"}
        styles[label] = line | _mark(label)
    styles |= {label: black | style for label, style in _INTERVALS.items()}
    styles |= {BEYOND: black | _ARROW | {"marker": ">"}, CHANCE: _CHANCE_LINE} | _LINES
    handles: list = []
    for label, style in styles.items():
        if label in drawn:
            handles.append(Line2D([], [], label=label))
            handles[-1].update(style)
    if DETECTABLE in drawn:
        handles.append(Patch(label=DETECTABLE))
        handles[-1].update(_BAND)
    return handles


def level_line(axis, points: Sequence[tuple[float, float]], label: str) -> None:
    """A line through the means of several levels of label noise."""
    ordered = sorted(points)
    (line,) = axis.plot([x for x, _ in ordered], [y for _, y in ordered])
    line.update(_LINES[label] | {"label": label, "zorder": 2})


def reference_line(axis, value: float, along: Literal["x", "y"]) -> None:
    """A line at the reference's value, under the marks."""
    line = axis.axvline(value) if along == "x" else axis.axhline(value)
    line.update(_REFERENCE_LINE | {"label": REFERENCE, "zorder": 1})


def chance_line(axis, value: float, along: Literal["x", "y"]) -> None:
    """A line at the chance level, under the marks."""
    line = axis.axvline(value) if along == "x" else axis.axhline(value)
    line.update(_CHANCE_LINE | {"label": CHANCE, "zorder": 1})


def detectable_band(axis, reach: float) -> None:
    """A band of differences that are smaller than the least detectable one, along x."""
    axis.axvspan(-reach, reach).update(_BAND | {"label": DETECTABLE, "zorder": 0})


def _mark(label: str) -> dict[str, Any]:
    return {"markersize": 5, "label": label, "zorder": 4} | _MARKS[label]


def bare(axis, grid: Literal["x", "y", "both"], spines: Sequence[str]) -> None:
    """A light grid, small tick labels, and only these sides of the frame."""
    axis.grid(axis=grid, color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=7.5, length=2)
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(side in spines)


def sample_text(comparison: Comparison, column: int) -> str:
    """What a column's numbers are of: ``10 seeds, 1,327 items``; seeds are those of the trained methods."""
    trained = [row for row in comparison.rows if row.role == "trained"] or list(comparison.rows)
    seeds = [cell.estimate.n_seeds for row in trained if (cell := row.cells[column]) is not None]
    estimates = [cell.estimate for row in comparison.rows if (cell := row.cells[column]) is not None]
    items = [estimate.n_items for estimate in estimates if estimate.n_items]
    groups = [estimate.n_clusters for estimate in estimates if estimate.n_items]
    parts = [_counted(seeds, "seed")] if seeds else []
    if items:
        parts.append(_counted(items, "item"))
        if groups != items:
            parts[-1] += f" in {_counted(groups, 'group')}"
    return ", ".join(parts)


def _counted(counts: Sequence[int], noun: str) -> str:
    low, high = min(counts), max(counts)
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{number} {noun}" if high == 1 else f"{number} {noun}s"
