"""The comparison as a picture: one panel a column, one line a variant, a dot for the mean and a bar for the 95%
interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rm_methods.comparison.result import Comparison, VariantRow
from rm_methods.reporting.figures import BLUE, GRAY, ORANGE, save_figure


def write_figures(comparison: Comparison, targets: Sequence[Path]) -> None:
    """Draw the comparison once and save it to every target."""
    save_figure(lambda: draw(comparison), targets)


def draw(comparison: Comparison):
    """The figure (matplotlib, without pyplot: no window, no global state)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    n_panels = len(comparison.columns)
    n_rows = len(comparison.rows)
    across = min(n_panels, 4)
    down = math.ceil(n_panels / across)
    label_width = 0.075 * max(len(_label(row.label)) for row in comparison.rows) + 0.2
    panel_height = 0.24 * n_rows + 0.75
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06)
    figure = Figure(figsize=(label_width + 2.1 * across, panel_height * down + 0.5), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, sharey=True, squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index < n_panels:
            _draw_panel(axis, comparison, index)
        else:
            axis.set_visible(False)
    _legend(figure, comparison)
    return figure


def _label(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"


def _draw_panel(axis, comparison: Comparison, column: int) -> None:
    import textwrap

    positions = _positions(comparison)
    left, right = _limits(comparison, column)
    axis.set_xlim(left, right)
    chance = comparison.columns[column].chance
    if chance is not None:
        axis.axvline(100 * chance, color=GRAY, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    for row, position in zip(comparison.rows, positions, strict=True):
        cell = row.cells[column]
        if cell is None or math.isnan(cell.estimate.mean):
            axis.text(
                0.5,
                position,
                "no result",
                color=GRAY,
                fontsize=7,
                zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                horizontalalignment="center",
                verticalalignment="center",
                transform=axis.get_yaxis_transform(),
            )
            continue
        is_reference = row.variant == comparison.reference
        color = _color(row, is_reference)
        mean = 100 * cell.estimate.mean
        low = 100 * cell.estimate.low
        high = 100 * cell.estimate.high
        if is_reference:
            axis.axvline(mean, color=ORANGE, linewidth=0.8, alpha=0.5, zorder=1)
        if not math.isnan(low):
            items_only = row.counts_items_only(cell.estimate)
            axis.plot(
                (max(low, left), min(high, right)),
                (position, position),
                color=color,
                linewidth=0.8 if items_only else 1.4,
                linestyle=(0, (3, 2)) if items_only else "-",
                solid_capstyle="butt",
                zorder=3,
            )
            for end, cut, arrow in ((left, low < left, "<"), (right, high > right, ">")):
                if cut:
                    axis.plot(end, position, marker=arrow, markersize=4, color=color, clip_on=False, zorder=3)
        filled = is_reference or cell.verdict in ("significant", "")
        axis.plot(
            mean,
            position,
            marker="D" if is_reference else "o",
            markersize=5,
            color=color,
            markerfacecolor=color if filled else "white",
            zorder=4,
        )
    axis.set_title("\n".join(textwrap.wrap(comparison.columns[column].heading, 24)), fontsize=9, loc="left")
    axis.set_yticks(positions, [_label(row.label) for row in comparison.rows])
    if axis.get_subplotspec().is_first_col():
        for label, row in zip(axis.get_yticklabels(), comparison.rows, strict=True):
            label.set_color(GRAY if row.content_blind else "black")
            label.set_fontweight("bold" if row.variant == comparison.reference else "normal")
    axis.set_ylim(max(positions) + 0.6, -0.6)
    axis.locator_params(axis="x", nbins=5)
    axis.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _color(row: VariantRow, is_reference: bool) -> str:
    if row.content_blind:
        return GRAY
    return ORANGE if is_reference else BLUE


def _limits(comparison: Comparison, column: int) -> tuple[float, float]:
    """Limits of a panel: every mean, the chance level and ordinary intervals fit; one of two seeds may be so wide that
    it is cut."""
    cells = [row.cells[column] for row in comparison.rows]
    estimates = [cell.estimate for cell in cells if cell is not None and not math.isnan(cell.estimate.mean)]
    points = [100 * e.mean for e in estimates]
    chance = comparison.columns[column].chance
    if chance is not None:
        points.append(100 * chance)
    if not points:
        return 0.0, 100.0
    reaches = sorted(100 * e.half_width for e in estimates if not math.isnan(e.half_width))
    allowed = 4 * reaches[len(reaches) // 2] if reaches else 0.0
    shown = [(100 * e.mean, min(100 * e.half_width, allowed)) for e in estimates if not math.isnan(e.half_width)]
    # Metrics are shares: an interval may reach past 0 or 100%, the axis does not.
    low = max(min([*points, *(mean - reach for mean, reach in shown)]), 0.0)
    high = min(max([*points, *(mean + reach for mean, reach in shown)]), 100.0)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _positions(comparison: Comparison) -> list[float]:
    """One line a variant, with half a line between trained and content-blind ones."""
    gap = 0.5 if len({row.content_blind for row in comparison.rows}) == 2 else 0.0
    return [index + (gap if row.content_blind else 0.0) for index, row in enumerate(comparison.rows)]


def _legend(figure, comparison: Comparison) -> None:
    """What colors and shapes mean, only those that occur."""
    from matplotlib.lines import Line2D

    def dot(color: str, marker: str, filled: bool, label: str) -> Line2D:
        face = color if filled else "white"
        return Line2D(
            [], [], color=color, marker=marker, markersize=5, markerfacecolor=face, linestyle="none", label=label
        )

    verdicts = {
        cell.verdict for row in comparison.rows if not row.content_blind for cell in row.cells if cell is not None
    }
    handles = []
    if comparison.reference is not None:
        handles.append(dot(ORANGE, "D", True, "reference"))
    if "significant" in verdicts:
        handles.append(dot(BLUE, "o", True, "differs from reference (Holm)"))
    if verdicts & {"not significant", "not enough evidence"}:
        handles.append(dot(BLUE, "o", False, "not shown to differ"))
    if "" in verdicts:
        handles.append(dot(BLUE, "o", True, "method"))
    if any(row.content_blind for row in comparison.rows):
        handles.append(dot(GRAY, "o", True, "content-blind"))
    if any(column.chance is not None for column in comparison.columns):
        handles.append(Line2D([], [], color=GRAY, linewidth=0.9, linestyle=(0, (2, 2)), label="chance"))
    across = max(1, min(len(handles), int(figure.get_figwidth() / 1.9)))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False, fontsize=8)
    legend.set_title("Percent; mean and 95% interval", prop={"size": 8})
