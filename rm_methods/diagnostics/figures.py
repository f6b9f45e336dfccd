"""The findings as figures: attention per stage of the sequence, and accuracy with the start of the text hidden."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.diagnostics.findings import ALL, GROUPS, Finding, Findings, Scope
from rm_methods.diagnostics.position_bins import STAGES, uniform_mass
from rm_methods.experiment.diagnosed_runs import MEASURES, MODES, SHOWN_VERSIONS
from rm_methods.files import written_atomically
from rm_methods.reporting.figures import BLUE, GRAY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe-Ito, as in the comparison; the reference is orange.
_OTHERS = (BLUE, "#009E73", "#CC79A7", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)))
LineStyle = dict[str, Any]  # properties of matplotlib's lines, whose types differ
_CORRECT, _MISCLASSIFIED = GROUPS
_GROUP_STYLES: dict[str, LineStyle] = {
    _CORRECT: {"color": BLUE, "marker": "o"},
    _MISCLASSIFIED: {"color": ORANGE, "marker": "D", "markerfacecolor": "white"},
}
_BASELINE: LineStyle = {"color": GRAY, "linewidth": 0.9, "linestyle": (0, (2, 2))}
_PANELS_PER_ROW = 4


def write_figures(findings: Findings, benchmark: str, reference: str, folder: Path) -> None:
    """Draw the figures of a benchmark into `folder`, as PNG (200 dpi) and SVG with text as text.

    Their names are `experiment.diagnosed_runs.figure_names`.
    """
    import matplotlib

    settings: dict[Any, Any] = {
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "rm-methods",
        "axes.unicode_minus": False,
    }
    with matplotlib.rc_context(settings):
        for measure in MEASURES:
            for version in SHOWN_VERSIONS:
                figure = draw_attention(findings, benchmark, measure, version)
                _save(figure, folder / f"{benchmark}_attention_{measure}_{version}")
        pooled = findings.scopes(benchmark)
        subsets = list(dict.fromkeys(scope.subset for scope in pooled if scope.subset != ALL)) or [ALL]
        _save(draw_masking(findings, benchmark, [ALL], reference), folder / f"{benchmark}_masking")
        _save(draw_masking(findings, benchmark, subsets, reference), folder / f"{benchmark}_masking_subsets")


def _save(figure: Figure, target: Path) -> None:
    for suffix in ("png", "svg"):
        # Without a date, the same summary gives the same bytes.
        metadata = {"Date": None} if suffix == "svg" else {}
        with written_atomically(target.with_name(f"{target.name}.{suffix}")) as path:
            figure.savefig(path, format=suffix, dpi=200, metadata=metadata)


def draw_attention(findings: Findings, benchmark: str, measure: str, version: str) -> Figure:
    """Mass per stage, and cumulative mass: two panels per variant, correct against misclassified sequences."""
    from matplotlib.lines import Line2D

    places = [scope for scope in findings.scopes(benchmark) if scope.subset == ALL]

    def panel(axis: Axes, column: int, row: int) -> None:
        quantity = ("stage_mass", "cumulative_mass")[row]
        _draw_stages(axis, findings, places[column], quantity, measure, version)

    rows = ("mass per stage (%)", "cumulative mass (%)")
    figure = _grid([scope.variant for scope in places], rows, panel, "stage of the sequence", share="row")
    handles = [Line2D([], [], markersize=3.5, label=group, **style) for group, style in _GROUP_STYLES.items()]
    handles.append(Line2D([], [], label="uniform attention", **_BASELINE))
    name = MEASURES[measure]
    comparison = "raw" if version == "raw" else "same lengths, text tokens only"
    title = f"{name[0].upper()}{name[1:]}, {benchmark} ({comparison}); mean and 95% band over items"
    _legend(figure, handles, title)
    return figure


def _draw_stages(axis: Axes, findings: Findings, scope: Scope, quantity: str, measure: str, version: str) -> None:
    stages = range(1, STAGES + 1)
    uniform = 100 * uniform_mass(measure)
    axis.plot(stages, uniform.cumsum() if quantity == "cumulative_mass" else uniform, zorder=1, **_BASELINE)
    missing = []
    for group, style in _GROUP_STYLES.items():
        by_stage = findings.find(scope, quantity, measure, version, group)
        if not by_stage or math.isnan(by_stage[0].value):
            missing.append(group)
            continue
        _line_with_band(axis, by_stage, style)
    if missing and quantity == "stage_mass":
        text = f"no {missing[0]} pair" if len(missing) == 1 else "no pair decided"
        axis.text(
            0.5,
            0.97,
            text,
            color=GRAY,
            fontsize=8,
            horizontalalignment="center",
            verticalalignment="top",
            transform=axis.transAxes,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axis.set_xlim(0.6, STAGES + 0.4)
    axis.set_xticks((1, 4, 7, 10))
    axis.set_ylim(bottom=0)


def draw_masking(findings: Findings, benchmark: str, subsets: Sequence[str], reference: str) -> Figure:
    """Accuracy against the percent of the text that is hidden: a panel per subset and mode, with all variants."""
    from matplotlib.lines import Line2D

    variants = [scope.variant for scope in findings.scopes(benchmark) if scope.subset == ALL]
    styles = _styles(variants, reference)

    def panel(axis: Axes, column: int, row: int) -> None:
        axis.axhline(50, zorder=1, **_BASELINE)
        for variant in variants:
            by_percent = findings.find(Scope(benchmark, subsets[column], variant), "accuracy", tuple(MODES)[row])
            # Many bands on top of each other hide the lines.
            _line_with_band(axis, by_percent, styles[variant], band=0.15 if len(variants) <= 4 else 0.05)
        axis.set_xlim(-2, 92)
        axis.set_xticks((0, 30, 60, 90))

    if list(subsets) == [ALL]:
        # The modes are the columns.
        modes = list(MODES.values())

        def panel_of_mode(axis: Axes, column: int, row: int) -> None:
            panel(axis, 0, column)

        figure = _grid(modes, ("accuracy (%)",), panel_of_mode, "hidden (%)", width=3.0, height=2.5)
    else:
        rows = [f"{name.replace(' hidden', '')}\naccuracy (%)" for name in MODES.values()]
        figure = _grid(subsets, rows, panel, "hidden (%)")
    handles = [Line2D([], [], label=variant, **style) for variant, style in styles.items()]
    handles.append(Line2D([], [], label="chance", **_BASELINE))
    _legend(figure, handles, f"Pair accuracy on {benchmark}; mean and 95% band over items")
    return figure


def _styles(variants: Sequence[str], reference: str) -> dict[str, LineStyle]:
    """Color and dashes of each variant. After the last color the dashes change."""
    styles: dict[str, LineStyle] = {}
    others = [variant for variant in variants if variant != reference]
    for k, variant in enumerate(others):
        dashes = _DASHES[k // len(_OTHERS) % len(_DASHES)]
        styles[variant] = {"color": _OTHERS[k % len(_OTHERS)], "linestyle": dashes}
    return {variant: styles.get(variant, {"color": ORANGE, "linestyle": "-"}) for variant in variants}


def _line_with_band(axis: Axes, findings: Sequence[Finding], style: LineStyle, band: float = 0.15) -> None:
    """A line in percent over the findings' positions, with a band of their limits.

    Args:
        band: opacity.
    """
    positions = [finding.position for finding in findings if finding.position is not None]
    values = [100 * finding.value for finding in findings]
    low = [100 * finding.low for finding in findings]
    high = [100 * finding.high for finding in findings]
    axis.fill_between(positions, low, high, color=style["color"], alpha=band, linewidth=0, zorder=2)
    axis.plot(positions, values, linewidth=1.4, markersize=3.5, zorder=3, **style)


def _grid(
    columns: Sequence[str],
    rows: Sequence[str],
    panel: Callable[[Axes, int, int], None],
    x_label: str,
    *,
    share: str = "all",
    width: float = 2.1,
    height: float = 1.75,
) -> Figure:
    """A figure of panels: below each column's title one panel per row, at most four columns next to each other.

    Args:
        columns: titles.
        rows: labels of the vertical axes.
        panel: draws into (axis, column, row).
        x_label: of the horizontal axes.
        share: the panels that have one vertical scale, "all" or those of a "row".
        width, height: of a panel, in inches.
    """
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    blocks = math.ceil(len(columns) / _PANELS_PER_ROW)
    across = math.ceil(len(columns) / blocks)
    size = (max(width * across, 3.6) + 0.6, (height * len(rows) + 0.35) * blocks + 0.25)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.05))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows) * blocks, across, squeeze=False)
    axes_of_scale: dict[int, list[Axes]] = {}
    for column in range(across * blocks):
        block, column_of_block = divmod(column, across)
        for row, label in enumerate(rows):
            axis = axes[block * len(rows) + row, column_of_block]
            if column >= len(columns):
                axis.set_visible(False)
                continue
            panel(axis, column, row)
            is_leftmost = column_of_block == 0
            is_lowest = row == len(rows) - 1
            _tidy(axis, labelleft=is_leftmost, labelbottom=is_lowest)
            axes_of_scale.setdefault(row if share == "row" else 0, []).append(axis)
            if row == 0:
                axis.set_title("\n".join(textwrap.wrap(columns[column], int(14 * width))), fontsize=9, loc="left")
            if is_leftmost:
                axis.set_ylabel(label, fontsize=8)
            if is_lowest:
                axis.set_xlabel(x_label, fontsize=8)
    for axes_together in axes_of_scale.values():
        limits = [axis.get_ylim() for axis in axes_together]
        for axis in axes_together:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


def _tidy(axis: Axes, *, labelleft: bool, labelbottom: bool) -> None:
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.locator_params(axis="y", nbins=5)
    axis.tick_params(labelsize=8, labelleft=labelleft, labelbottom=labelbottom)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(figure: Figure, handles: Sequence[Line2D], title: str) -> None:
    """A legend below the panels, with as many entries per row as fit. The figure grows by its height."""
    import textwrap

    from matplotlib.font_manager import FontProperties

    entry_width = 0.55 + 0.06 * max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(len(handles), int(figure.get_figwidth() / entry_width)))
    lines = textwrap.wrap(title, int(14 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.17 * (math.ceil(len(handles) / across) + len(lines)) + 0.1)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False, fontsize=8)
    legend.set_title("\n".join(lines), prop=FontProperties(size=8))
    legend.get_title().set_multialignment("center")
