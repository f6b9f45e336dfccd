"""Mean ranks and their critical difference as a picture: one row a method, the best first; bars join methods that are
not told apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rm_methods.comparison.figures import LINE_HEIGHT, PITCH, TIGHT_PITCH, row_label, text_width
from rm_methods.comparison.marks import bare
from rm_methods.comparison.ranks import MIN_COLUMNS, MIN_SEEDS, RankTable
from rm_methods.comparison.result import Comparison
from rm_methods.reporting.figures import BLUE, GRAY, ORANGE, save_figure

NO_RANKS = (
    f"No mean ranks: they need two trained methods that have at least {MIN_COLUMNS} columns and {MIN_SEEDS} seeds in "
    "common."
)
INTERVAL = "mean rank, 95% interval"
REFERENCE = "reference"
GROUP = "not told apart"
CRITICAL = "critical difference"

_PANEL_WIDTH = 3.6  # inches
_LANE = 0.11  # inches from bar to bar
_LABEL_SIZE = 8.0
_MANY_ROWS = 12


def write_rank_figure(comparison: Comparison, targets: Sequence[Path], no_ranks: str = NO_RANKS) -> None:
    """Draw the mean ranks once and save them to every target.

    Args:
        no_ranks: what the figure says in place of ranks where the comparison has none.
    """
    save_figure(lambda: draw_ranks(comparison, no_ranks), targets)


def draw_ranks(comparison: Comparison, no_ranks: str = NO_RANKS):
    """The figure (matplotlib, without pyplot: no window, no global state)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = comparison.ranks
    if table is None:
        figure = Figure(figsize=(text_width([no_ranks], 9) + 0.4, 0.6))
        FigureCanvasAgg(figure)
        figure.text(0.5, 0.5, no_ranks, fontsize=9, color=GRAY, ha="center", va="center")
        return figure
    labels_of_variants = {row.variant: row_label(row.label).replace("\n", " ") for row in comparison.rows}
    labels = [labels_of_variants[rank.variant] for rank in table.ranks]
    lanes = group_lanes(table.groups)
    left = text_width(labels, _LABEL_SIZE) + 0.2
    bars_width = _LANE * (max(lanes, default=-1) + 1) + 0.1
    panel_height = (len(labels) + 1) * (TIGHT_PITCH if len(labels) > _MANY_ROWS else PITCH)
    top, bottom = 0.75, 0.85
    width = max(left + _PANEL_WIDTH + bars_width + 0.15, 5.6)
    height = top + panel_height + bottom
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axis = figure.add_axes((left / width, bottom / height, _PANEL_WIDTH / width, panel_height / height))
    axis.set_xlim(0.7, max(len(labels), 1 + table.critical_difference) + 0.3)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    _draw_methods(axis, comparison, table)
    axis.set_yticks(range(len(labels)), labels)
    bare(axis, grid="x", spines=("bottom",))
    axis.tick_params(axis="y", labelsize=_LABEL_SIZE, length=0)
    axis.locator_params(axis="x", nbins=8, integer=True)
    axis.set_xlabel("mean rank, 1 is the best", fontsize=7.5, labelpad=2)
    for text, rank in zip(axis.get_yticklabels(), table.ranks, strict=True):
        text.set_fontweight("bold" if rank.variant == comparison.reference else "normal")
    for (first, last), lane in zip(table.groups, lanes, strict=True):
        # Along x in fractions of the panel: the bars are to its right.
        x = 1 + (0.12 + _LANE * lane) / _PANEL_WIDTH
        (line,) = axis.plot((x, x), (first - 0.2, last + 0.2), transform=axis.get_yaxis_transform())
        line.update({"color": "black", "linewidth": 2, "clip_on": False, "label": GROUP, "solid_capstyle": "butt"})
    _draw_critical_difference(axis, table, height=panel_height)
    sample = f"{table.n_columns} columns, {table.n_seeds} seeds; trained methods with several runs"
    figure.text(0.1 / width, 1 - 0.1 / height, "Mean ranks", fontsize=9, fontweight="bold", va="top")
    figure.text(0.1 / width, 1 - (0.1 + LINE_HEIGHT) / height, sample, fontsize=7.5, color=GRAY, va="top")
    _legend(figure, axis, y=0.08 / height)
    return figure


def group_lanes(groups: Sequence[tuple[int, int]]) -> list[int]:
    """For each group the first lane in which its bar does not touch another bar."""
    ends: list[int] = []  # last row of the latest bar of each lane
    lanes = []
    for first, last in groups:
        free = [lane for lane, end in enumerate(ends) if end < first]
        lane = free[0] if free else len(ends)
        if not free:
            ends.append(last)
        ends[lane] = last
        lanes.append(lane)
    return lanes


def _draw_methods(axis, comparison: Comparison, table: RankTable) -> None:
    for position, rank in enumerate(table.ranks):
        is_reference = rank.variant == comparison.reference
        color = ORANGE if is_reference else BLUE
        (line,) = axis.plot((rank.low, rank.high), (position, position))
        line.update({"color": color, "linewidth": 1.4, "label": INTERVAL, "solid_capstyle": "butt"})
        (dot,) = axis.plot(rank.mean, position)
        label = REFERENCE if is_reference else INTERVAL
        style = {"color": color, "marker": "D" if is_reference else "o", "linestyle": "none", "label": label}
        dot.update(style | {"markersize": 4.5 if is_reference else 5, "zorder": 4})


def _draw_critical_difference(axis, table: RankTable, height: float) -> None:
    """A bar of the critical difference above the panel, in the units of its axis."""
    y = 1 + 0.12 / height
    (line,) = axis.plot((1, 1 + table.critical_difference), (y, y), transform=axis.get_xaxis_transform())
    style = {"color": GRAY, "linewidth": 1.4, "marker": "|", "markersize": 7, "clip_on": False, "label": CRITICAL}
    line.update(style)
    text = axis.text(1 + table.critical_difference, y, f"  {table.critical_difference:.2f}")
    text.update({"transform": axis.get_xaxis_transform(), "fontsize": 7.5, "color": GRAY, "va": "center"})


def _legend(figure, axis, y: float) -> None:
    """What the marks mean, only those that occur."""
    from matplotlib.lines import Line2D

    styles: dict[str, dict] = {
        REFERENCE: {"color": ORANGE, "marker": "D", "markersize": 4.5, "linewidth": 1.4},
        INTERVAL: {"color": BLUE, "marker": "o", "markersize": 5, "linewidth": 1.4},
        GROUP: {"color": "black", "linewidth": 2},
        CRITICAL: {"color": GRAY, "linewidth": 1.4, "marker": "|", "markersize": 7},
    }
    drawn = {str(line.get_label()) for line in axis.lines}
    handles = []
    for label, style in styles.items():
        if label in drawn:
            handles.append(Line2D([], [], label=label))
            handles[-1].update(style)
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, y),
        ncols=2,
        frameon=False,
        fontsize=8,
        borderaxespad=0,
        borderpad=0,
        columnspacing=1.2,
    )
