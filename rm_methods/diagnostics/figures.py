"""The findings as pictures: attention per stage of the sequence, and accuracy with the start of the text hidden."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rm_methods.diagnostics.findings import ALL, GROUPS, Finding, Findings, Place
from rm_methods.diagnostics.position_bins import STAGES, uniform_mass
from rm_methods.experiment.diagnosed_runs import MEASURES, MODES, SHOWN_VERSIONS
from rm_methods.files import written_atomically
from rm_methods.reporting.figures import BLUE, GRAY, ORANGE

# Okabe-Ito, as in the comparison; the reference is orange.
_OTHERS = (BLUE, "#009E73", "#CC79A7", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)))
_GROUP_STYLES = dict(
    zip(
        GROUPS,
        ({"color": BLUE, "marker": "o"}, {"color": ORANGE, "marker": "D", "markerfacecolor": "white"}),
        strict=True,
    )
)
_BASELINE = {"color": GRAY, "linewidth": 0.9, "linestyle": (0, (2, 2))}
_ACROSS = 4  # panels beside each other


def write_figures(findings: Findings, benchmark: str, reference: str, folder: Path) -> None:
    """Draw every figure of a benchmark into `folder`, as PNG (200 dpi) and SVG with text as text (names: `runs.figure_names`)."""
    import matplotlib

    with matplotlib.rc_context(
        {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "rm-methods", "axes.unicode_minus": False}
    ):
        for measure in MEASURES:
            for version in SHOWN_VERSIONS:
                _save(
                    draw_attention(findings, benchmark, measure, version),
                    folder / f"{benchmark}_attention_{measure}_{version}",
                )
        pooled = findings.places(benchmark)
        subsets = list(dict.fromkeys(place.subset for place in pooled if place.subset != ALL)) or [ALL]
        _save(draw_masking(findings, benchmark, [ALL], reference), folder / f"{benchmark}_masking")
        _save(draw_masking(findings, benchmark, subsets, reference), folder / f"{benchmark}_masking_subsets")


def _save(figure, target: Path) -> None:
    for suffix in ("png", "svg"):
        # Without a date the same summary gives the same bytes.
        metadata = {"Date": None} if suffix == "svg" else {}
        with written_atomically(target.with_name(f"{target.name}.{suffix}")) as path:
            figure.savefig(path, format=suffix, dpi=200, metadata=metadata)


def draw_attention(findings: Findings, benchmark: str, measure: str, version: str):
    """Mass per stage and cumulative, one panel of each for a variant; correct against misclassified sequences."""
    from matplotlib.lines import Line2D

    places = [place for place in findings.places(benchmark) if place.subset == ALL]

    def panel(axis, column: int, row: int) -> None:
        quantity = ("stage_mass", "cumulative_mass")[row]
        _draw_stages(axis, findings, places[column], quantity, measure, version)

    rows = ("mass per stage (%)", "cumulative mass (%)")
    figure = _grid([place.variant for place in places], rows, panel, "stage of the sequence", share="row")
    handles = [Line2D([], [], markersize=3.5, label=group, **style) for group, style in _GROUP_STYLES.items()]
    handles.append(Line2D([], [], label="uniform attention", **_BASELINE))
    what = "raw" if version == "raw" else "same lengths, text tokens only"
    title = f"{MEASURES[measure][0].upper()}{MEASURES[measure][1:]}, {benchmark} ({what}); mean and 95% band over items"
    _legend(figure, handles, title)
    return figure


def _draw_stages(axis, findings: Findings, place: Place, quantity: str, measure: str, version: str) -> None:
    stages = range(1, STAGES + 1)
    uniform = 100 * uniform_mass(measure)
    axis.plot(stages, uniform.cumsum() if quantity == "cumulative_mass" else uniform, zorder=1, **_BASELINE)
    missing = []
    for group, style in _GROUP_STYLES.items():
        found = findings.find(place, quantity, measure, version, group)
        if not found or math.isnan(found[0].value):
            missing.append(group)
            continue
        _line_with_band(axis, found, **style)
    if missing and quantity == "stage_mass":
        text = f"no {missing[0]} pair" if len(missing) == 1 else "no pair decided"
        place = {"ha": "center", "va": "top", "transform": axis.transAxes}
        axis.text(
            0.5,
            0.97,
            text,
            color=GRAY,
            fontsize=8,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            **place,
        )
    axis.set_xlim(0.6, STAGES + 0.4)
    axis.set_xticks((1, 4, 7, 10))
    axis.set_ylim(bottom=0)


def draw_masking(findings: Findings, benchmark: str, subsets: Sequence[str], reference: str):
    """Accuracy against the percent of the text that is hidden, all variants in a panel; one panel for each subset and mode."""
    from matplotlib.lines import Line2D

    variants = [place.variant for place in findings.places(benchmark) if place.subset == ALL]
    styles = _styles(variants, reference)

    def panel(axis, column: int, row: int) -> None:
        axis.axhline(50, zorder=1, **_BASELINE)
        for variant in variants:
            found = findings.find(Place(benchmark, subsets[column], variant), "accuracy", tuple(MODES)[row])
            # Many bands on top of each other hide the lines.
            _line_with_band(axis, found, band=0.15 if len(variants) <= 4 else 0.05, **styles[variant])
        axis.set_xlim(-2, 92)
        axis.set_xticks((0, 30, 60, 90))

    if list(subsets) == [ALL]:
        # One panel a mode, beside each other.
        modes = list(MODES.values())
        figure = _grid(
            modes, ("accuracy (%)",), lambda axis, mode, _: panel(axis, 0, mode), "hidden (%)", width=3.0, height=2.5
        )
    else:
        rows = [f"{name.replace(' hidden', '')}\naccuracy (%)" for name in MODES.values()]
        figure = _grid(subsets, rows, panel, "hidden (%)")
    handles = [Line2D([], [], label=variant, **style) for variant, style in styles.items()]
    handles.append(Line2D([], [], label="chance", **_BASELINE))
    _legend(figure, handles, f"Pair accuracy on {benchmark}; mean and 95% band over items")
    return figure


def _styles(variants: Sequence[str], reference: str) -> dict[str, dict]:
    """Colour and dashes of each variant; where colours run out the dashes change."""
    others = [variant for variant in variants if variant != reference]
    count = len(_OTHERS)
    styles = {
        v: {"color": _OTHERS[k % count], "linestyle": _DASHES[k // count % len(_DASHES)]} for k, v in enumerate(others)
    }
    return {variant: styles.get(variant, {"color": ORANGE, "linestyle": "-"}) for variant in variants}


def _line_with_band(axis, found: Sequence[Finding], band: float = 0.15, **style) -> None:
    places = [f.position for f in found]
    value, low, high = ([100 * getattr(f, name) for f in found] for name in ("value", "low", "high"))
    axis.fill_between(places, low, high, color=style["color"], alpha=band, linewidth=0, zorder=2)
    axis.plot(places, value, linewidth=1.4, markersize=3.5, zorder=3, **style)


def _grid(
    columns: Sequence[str],
    rows: Sequence[str],
    panel: Callable,
    below: str,
    share: str = "all",
    width: float = 2.1,
    height: float = 1.75,
):
    """A figure of panels (matplotlib, without pyplot): under each column's title one for each row, at most four columns
    beside each other.

    Args:
        columns: titles.
        rows: labels of the vertical axes.
        panel: draws into (axis, column, row).
        below: label of the horizontal axes.
        share: which panels have one vertical scale, "all" or those of a "row".
        width, height: of a panel, in inches.
    """
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = math.ceil(len(columns) / _ACROSS)
    across = math.ceil(len(columns) / blocks)
    figure = Figure(
        figsize=(max(width * across, 3.6) + 0.6, (height * len(rows) + 0.35) * blocks + 0.25), layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.05)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows) * blocks, across, squeeze=False)
    scales: dict[int, list] = {}
    for place in range(across * blocks):
        block, beside = divmod(place, across)
        for row, label in enumerate(rows):
            axis = axes[block * len(rows) + row, beside]
            if place >= len(columns):
                axis.set_visible(False)
                continue
            panel(axis, place, row)
            _tidy(axis, labelleft=beside == 0, labelbottom=row == len(rows) - 1)
            scales.setdefault(row if share == "row" else 0, []).append(axis)
            if row == 0:
                axis.set_title("\n".join(textwrap.wrap(columns[place], int(14 * width))), fontsize=9, loc="left")
            if beside == 0:
                axis.set_ylabel(label, fontsize=8)
            if row == len(rows) - 1:
                axis.set_xlabel(below, fontsize=8)
    for together in scales.values():
        limits = [axis.get_ylim() for axis in together]
        for axis in together:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


def _tidy(axis, **labels: bool) -> None:
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.locator_params(axis="y", nbins=5)
    axis.tick_params(labelsize=8, **labels)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(figure, handles: Sequence, title: str) -> None:
    """Below the panels, as many entries beside each other as fit; the figure grows by what it needs."""
    import textwrap

    entry = 0.55 + 0.06 * max(len(handle.get_label()) for handle in handles)
    across = max(1, min(len(handles), int(figure.get_figwidth() / entry)))
    lines = textwrap.wrap(title, int(14 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.17 * (math.ceil(len(handles) / across) + len(lines)) + 0.1)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False, fontsize=8)
    legend.set_title("\n".join(lines), prop={"size": 8})
    legend.get_title().set_multialignment("center")
