"""Detectable difference against the number of seeds, one line a column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rm_methods.comparison.power import SEEDS, ColumnPower
from rm_methods.reporting.figures import GRAY, save_figure

MOST_LINES = 6
# Dark to light, so that the lines differ in gray print, too, beside their dashes and markers.
_STYLES = (
    ("#000000", "-", "o"),
    ("#0072B2", "--", "s"),
    ("#D55E00", "-", "^"),
    ("#009E73", ":", "D"),
    ("#CC79A7", "-.", "v"),
    ("#56B4E9", "--", "P"),
)


def write_power_figure(columns: Sequence[ColumnPower], difference: float, targets: Sequence[Path]) -> None:
    """Draw the columns that the pilot can judge, and save the figure to every target.

    Of more than six columns, the six are drawn whose detectable differences are spread most evenly.
    """
    save_figure(lambda: draw(columns, difference), targets)


def draw(columns: Sequence[ColumnPower], difference: float):
    """The figure (matplotlib, without pyplot: no window, no global state)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    shown = _shown([column for column in columns if column.sources is not None])
    figure = Figure(figsize=(4.8, 3.0 + 0.08 * len(shown)), layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for planned, (color, dashes, marker) in zip(shown, _STYLES, strict=False):
        values = [100 * planned.detectable(n_seeds) for n_seeds in SEEDS]
        label = planned.column.heading
        axis.plot(SEEDS, values, color=color, linestyle=dashes, marker=marker, markersize=4, linewidth=1.2, label=label)
    axis.axhline(100 * difference, color=GRAY, linewidth=0.9)
    axis.text(SEEDS[-1], 100 * difference, "wanted difference", color=GRAY, fontsize=7, ha="right", va="bottom")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(SEEDS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_formatter(NullFormatter())
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel("seeds of each method")
    axis.set_ylabel("detectable difference (points)")
    axis.grid(color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    left_out = sum(column.sources is not None for column in columns) - len(shown)
    title = f"{left_out} more columns in the table" if left_out else None
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, title=title, title_fontsize=8)
    return figure


def _shown(columns: Sequence[ColumnPower]) -> list[ColumnPower]:
    """At most six columns, from the hardest to the easiest at the most seeds."""
    ordered = sorted(columns, key=lambda planned: -planned.detectable(SEEDS[-1]))
    if len(ordered) <= MOST_LINES:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(k * last / (MOST_LINES - 1))] for k in range(MOST_LINES)]
