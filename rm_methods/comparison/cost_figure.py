"""Cost against quality: how much training each method needs, and what it gains over the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_methods.comparison import marks
from rm_methods.comparison.figures import text_width
from rm_methods.comparison.result import Comparison, VariantRow
from rm_methods.reporting.figures import BLUE, GRAY, ORANGE, save_figure

MAX_PANELS = 4  # columns of the table that are drawn, the first ones
MAX_NAMES = 40  # beside a panel; more would make the figure longer than a page
# Inches.
_PANEL_WIDTH = 2.3
_PANEL_HEIGHT = 2.4
_LEFT = 0.5  # numbers of the vertical axis, and its name
_GAP = 0.25  # between a panel and its labels, and behind the labels
_TOP = 0.3
_BOTTOM = 0.5
_LINE_HEIGHT = 0.125  # of a label
_LABEL_SIZE = 7.5  # points


def write_cost_figure(comparison: Comparison, targets: Sequence[Path]) -> bool:
    """Draw the figure once and save it to every target.

    Returns:
        Whether it was drawn: it needs the recorded cost of the reference and of another row.
    """
    rows = costed_rows(comparison)
    if not any(row is comparison.reference_row for row in rows) or len(rows) < 2:
        return False
    save_figure(lambda: draw(comparison, rows), targets)
    return True


def costed_rows(comparison: Comparison) -> list[VariantRow]:
    """Rows whose training cost is recorded."""
    return [row for row in comparison.rows if not row.is_line and row.cost.tokens]


@dataclass(frozen=True)
class Dot:
    """A method in one panel.

    Attributes:
        label: name of the method.
        column: heading of the panel.
        cost: relative to the reference.
        difference: from the reference, as a fraction of 1; its `interval` is None where it is not known.
        verdict: "reference", "significant", "not significant", or anything else for a method that is not tested.
    """

    label: str
    column: str
    cost: float
    difference: float
    interval: tuple[float, float] | None
    verdict: str


def draw(comparison: Comparison, rows: Sequence[VariantRow]):
    """The figure, with training tokens of one run as the cost."""
    reference = comparison.reference_row
    assert reference is not None
    assert reference.cost.tokens
    dots = []
    for number, column in enumerate(comparison.columns):
        for row in rows:
            assert row.cost.tokens
            cost = row.cost.tokens / reference.cost.tokens
            cell = row.cells[number]
            if row is reference:
                dots.append(Dot(row.label, column.heading, cost, 0.0, None, "reference"))
            elif cell is not None and cell.difference is not None and not math.isnan(cell.difference.estimate.mean):
                estimate = cell.difference.estimate
                interval = None if math.isnan(estimate.low) else (estimate.low, estimate.high)
                verdict = cell.verdict if cell.tested else "not tested"
                dots.append(Dot(row.label, column.heading, cost, estimate.mean, interval, verdict))
    return draw_dots(dots, "training tokens, relative to the reference")


def draw_dots(dots: Sequence[Dot], cost: str):
    """The figure (matplotlib, without pyplot: no window, no global state), one panel for each of the first columns.

    Horizontal: the cost, on a logarithmic axis.  Vertical: difference from the reference in points, with its 95%
    interval.  Filled: significant after Holm's correction.  Of more than `MAX_NAMES` dots of a panel, only the
    highest and the reference are named.

    Args:
        cost: name of the horizontal axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    headings = list(dict.fromkeys(dot.column for dot in dots))[:MAX_PANELS]
    across = min(len(headings), 2)
    down = math.ceil(len(headings) / across)
    names = {dot.label for dot in dots}
    # Labels of many methods would not fit beside a low panel; with room, their lines cross less.
    panel_height = max(_PANEL_HEIGHT, 1.3 * min(len(names), MAX_NAMES) * _LINE_HEIGHT)
    cell_width = _LEFT + _PANEL_WIDTH + _GAP + text_width(sorted(names), _LABEL_SIZE)
    cell_height = _TOP + panel_height + _BOTTOM
    width = across * cell_width
    height = down * cell_height
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for number, heading in enumerate(headings):
        left = (number % across) * cell_width + _LEFT
        bottom = height - (number // across) * cell_height - _TOP - panel_height
        axis = figure.add_axes((left / width, bottom / height, _PANEL_WIDTH / width, panel_height / height))
        _draw_panel(axis, [dot for dot in dots if dot.column == heading], panel_height)
        axis.set_title(heading, fontsize=9, fontweight="bold", loc="left")
        axis.set_ylabel("difference, points", fontsize=_LABEL_SIZE, labelpad=2)
        axis.set_xlabel(cost, fontsize=_LABEL_SIZE, labelpad=2)
    return figure


def _draw_panel(axis, dots: Sequence[Dot], height: float) -> None:
    for dot in dots:
        y = 100 * dot.difference
        if dot.verdict == "reference":
            axis.plot([dot.cost], [y], marker="D", markersize=4.5, color=ORANGE, linestyle="none", zorder=3)
            continue
        if dot.interval is not None:
            low, high = dot.interval
            axis.plot([dot.cost, dot.cost], [100 * low, 100 * high], color=BLUE, linewidth=1.1, zorder=2)
        fill = BLUE if dot.verdict == "significant" else "white"
        marker = "o" if dot.verdict in ("significant", "not significant") else "s"
        style = {"markerfacecolor": fill, "markeredgecolor": BLUE, "markersize": 5, "linestyle": "none", "zorder": 3}
        axis.plot([dot.cost], [y], marker=marker, **style)
    axis.axhline(0, color=GRAY, linewidth=0.8, zorder=1)
    ratios = [dot.cost for dot in dots]
    axis.set_xscale("log")
    axis.set_xlim(min(*ratios, 0.8) / 1.15, max(*ratios, 1.25) * 1.15)
    _name_ticks(axis, ratios)
    marks.bare(axis, grid="y", spines=("bottom", "left"))
    _label(axis, named([(dot.cost, 100 * dot.difference, dot.label) for dot in dots], _reference(dots)), height)


def _name_ticks(axis, ratios: Sequence[float]) -> None:
    """Ticks at round ratios, written out: powers of ten would be the only labels otherwise."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    round_ratios = [value for value in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if value <= max(ratios) * 1.3]
    shown = [value for value in round_ratios if value >= min(ratios) / 1.3] or [1]
    axis.xaxis.set_major_locator(FixedLocator(shown))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xticklabels([f"{value:g}×" for value in shown], fontsize=_LABEL_SIZE)


def named(places: Sequence[tuple[float, float, str]], reference: str | None) -> list[tuple[float, float, str]]:
    """The dots (x, y, label) whose names are written: the highest ones, and that of the reference."""
    best_first = sorted(places, key=lambda place: (place[2] != reference, -place[1]))
    return best_first[:MAX_NAMES]


def _reference(dots: Sequence[Dot]) -> str | None:
    """The name of the reference, if it is drawn."""
    return next((dot.label for dot in dots if dot.verdict == "reference"), None)


def _label(axis, places: Sequence[tuple[float, float, str]], height: float) -> None:
    """Write the names beside the panel, in the order of their dots, moved apart where they would overlap.

    Args:
        height: of the panel, in inches.
    """
    low, high = axis.get_ylim()
    step = (high - low) * _LINE_HEIGHT / height
    in_order = sorted(places, key=lambda place: place[1])
    heights = spread([y for _, y, _ in in_order], step)
    line = {"arrowstyle": "-", "color": GRAY, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)}
    style = {"fontsize": _LABEL_SIZE, "va": "center", "annotation_clip": False, "arrowprops": line}
    for (x, y, label), label_height in zip(in_order, heights, strict=True):
        position = (1.04, (label_height - low) / (high - low))
        axis.annotate(label, (x, y), xytext=position, textcoords="axes fraction", **style)
    axis.set_ylim(low, high)


def spread(heights: Sequence[float], step: float) -> list[float]:
    """Heights in rising order, moved apart to at least `step`, with the smallest sum of squared moves.

    >>> spread([0.0, 0.1, 5.0], 1.0)
    [-0.45, 0.55, 5.0]
    """
    # Pool adjacent violators on the heights less their steps: blocks of touching labels share one offset.
    blocks: list[tuple[float, int]] = []  # mean offset, number of labels
    for index, height in enumerate(heights):
        blocks.append((height - index * step, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (first, n_first), (second, n_second) = blocks[-2], blocks[-1]
            blocks[-2:] = [((first * n_first + second * n_second) / (n_first + n_second), n_first + n_second)]
    offsets = [offset for offset, count in blocks for _ in range(count)]
    return [offset + index * step for index, offset in enumerate(offsets)]
