"""Pictures of over-optimization: gold and proxy against n (Best-of-N) or against the updates (PPO), with the KL
divergence above."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rm_methods.overoptimization.kl import kl_bound
from rm_methods.overoptimization.variant_curves import VariantCurves
from rm_methods.reporting.figures import BLUE, GRAY, ORANGE, save_figure
from rm_methods.statistics.intervals import Estimate

ACROSS = 3  # panels beside each other
_DASHED = (0, (4, 1.5))
_DOTTED = (0, (1, 2))


def write_best_of_n_figure(variants: Sequence[VariantCurves], reference: str | None, targets: Sequence[Path]) -> None:
    """Draw Best-of-N of all variants on one pool and save it to every target."""
    save_figure(lambda: draw_best_of_n(variants, reference), targets)


def write_ppo_figure(variants: Sequence[VariantCurves], reference: str | None, targets: Sequence[Path]) -> None:
    """Draw the PPO runs of all variants and save them to every target."""
    save_figure(lambda: draw_ppo(variants, reference), targets)


def draw_best_of_n(variants: Sequence[VariantCurves], reference: str | None):
    """One panel a variant: gold (solid, left) and standardized proxy (dashed, right) against n, the reference
    behind."""

    def panel(axis, right, curves: VariantCurves, is_first_row: bool) -> None:
        axis.set_xscale("log", base=2)
        axis.set_xlim(1, curves.axis[-1])
        ticks = _spread_ticks(curves.axis)
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        if is_first_row:
            _kl_axis(axis, {n: float(kl_bound(n)) for n in ticks})

    figure = _draw(variants, reference, lambda curves: curves.axis, panel, "n (log scale)")
    pool, prompts = variants[0].pool, len(variants[0].groups)
    title = (
        f"Best-of-N on {pool}, {prompts} prompts; mean and 95% band over prompts and seeds; dot: highest gold. Proxy "
        "in its standard deviations within a prompt, 0 at n = 1. KL: upper bound, nats"
    )
    _legend(figure, variants, reference, title)
    return figure


def draw_ppo(variants: Sequence[VariantCurves], reference: str | None):
    """One panel a variant: gold (solid, left) and standardized proxy (dashed, right) against updates, the reference
    behind.

    Not against the KL divergence, which PPO does not raise steadily: its values are above each panel.
    """
    last = max(int(curves.axis[-1]) for curves in variants)

    def panel(axis, right, curves: VariantCurves, is_first_row: bool) -> None:
        axis.set_xlim(0, max(last, 1))
        axis.locator_params(axis="x", nbins=5, integer=True)
        some = slice(None, None, math.ceil(len(curves.axis) / 5))
        _kl_axis(axis, dict(zip(curves.axis[some].tolist(), curves.kl[some].tolist(), strict=True)))

    figure = _draw(variants, reference, lambda curves: curves.axis, panel, "updates")
    title = (
        f"PPO, {len(variants[0].groups)} evaluation prompts; mean and 95% band over prompts and seeds at each "
        "evaluation; dot: highest gold. Proxy in its standard deviations before training. KL: estimate, nats"
    )
    _legend(figure, variants, reference, title)
    return figure


def _color(curves: VariantCurves, reference: str | None) -> str:
    return ORANGE if curves.variant == reference else BLUE


def _draw(variants: Sequence[VariantCurves], reference: str | None, places, panel, below: str):
    """The grid of panels (matplotlib, without pyplot): all share their left and right scales, so that panels
    compare."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    down = math.ceil(len(variants) / ACROSS)
    across = math.ceil(len(variants) / down)
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)
    figure = Figure(figsize=(max(2.5 * across + 1.1, 4.6), 2.05 * down + 0.6), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False)
    bands = {curves.variant: (curves.bands(curves.gold), curves.bands(curves.proxy)) for curves in variants}
    behind = next((curves for curves in variants if curves.variant == reference), None)
    drawn = []
    for number, axis in enumerate(axes.flat):
        if number >= len(variants):
            axis.set_visible(False)
            continue
        curves = variants[number]
        right = axis.twinx()
        axis.axhline(curves.mean_gold[0], color=GRAY, linewidth=0.9, linestyle=_DOTTED, zorder=1)
        if behind is not None and behind is not curves:
            _lines(axis, right, places(behind), bands[behind.variant], ORANGE, strong=False)
        color = _color(curves, reference)
        _lines(axis, right, places(curves), bands[curves.variant], color, strong=True)
        axis.plot(
            places(curves)[curves.peak],
            curves.mean_gold[curves.peak],
            marker="o",
            markersize=4.5,
            color=color,
            zorder=5,
            clip_on=False,
        )
        panel(axis, right, curves, number < across)
        column = number % across
        is_last_in_row = column == across - 1 or number == len(variants) - 1
        _tidy(axis, right, column == 0, is_last_in_row, number + across >= len(variants))
        if number + across >= len(variants):
            axis.set_xlabel(below, fontsize=8)
        axis.set_title("\n".join(textwrap.wrap(curves.variant, 34)), fontsize=9, loc="left")
        drawn.append((axis, right))
    for side in (0, 1):
        limits = [pair[side].get_ylim() for pair in drawn]
        for pair in drawn:
            pair[side].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


def _lines(axis, right, x: np.ndarray, bands: tuple[list[Estimate], list[Estimate]], color: str, strong: bool) -> None:
    """Gold and proxy of one variant; the reference behind another one is thin and has no band of its proxy."""
    gold, proxy = bands
    width = 1.5 if strong else 0.9
    for target, estimates, style in ((axis, gold, "-"), (right, proxy, _DASHED)):
        mean = np.array([estimate.mean for estimate in estimates])
        low = np.array([estimate.low for estimate in estimates])
        high = np.array([estimate.high for estimate in estimates])
        low, high = np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)
        shown = 1.0 if strong else 0.75
        target.plot(x, mean, color=color, linewidth=width, linestyle=style, alpha=shown, zorder=4 if strong else 3)
        if target is axis or strong:
            band = (
                0.08 if target is right or not strong else 0.2
            )  # that of the proxy is faint, so that it never hides gold
            target.fill_between(x, low, high, color=color, alpha=band, linewidth=0, zorder=2)


def _spread_ticks(n: np.ndarray) -> list[int]:
    """About six of the numbers of samples, evenly spread on a log scale; the last one always, and none so near it that
    labels touch."""
    stride = math.ceil(len(n) / 6)
    ticks = [int(value) for value in n[::stride]]
    return [value for value in ticks if math.log2(n[-1] / value) > 0.75 * stride] + [int(n[-1])]


def _kl_axis(axis, divergences: Mapping[int, float]) -> None:
    """The KL divergence above the panel, at its places on the axis below."""
    top = axis.secondary_xaxis("top")
    labels = [
        f"{max(value, 0.0):.1f}" for value in divergences.values()
    ]  # an estimate of a divergence near 0 can be slightly negative
    top.set_xticks(list(divergences), ["KL 0", *labels[1:]])
    top.minorticks_off()
    top.tick_params(labelsize=7, colors=GRAY, length=2)
    top.spines["top"].set_visible(False)


def _tidy(axis, right, is_first: bool, is_last: bool, is_bottom: bool) -> None:
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_zorder(right.get_zorder() + 1)  # gold is what counts: it lies above the proxy
    axis.patch.set_visible(False)
    axis.locator_params(axis="y", nbins=5)
    right.locator_params(axis="y", nbins=5)
    axis.tick_params(labelsize=8, labelleft=is_first, labelbottom=is_bottom)
    right.tick_params(labelsize=8, labelright=is_last, colors="#555555")
    if is_first:
        axis.set_ylabel("gold (solid)", fontsize=8)
    if is_last:
        right.set_ylabel("proxy (dashed)", fontsize=8, color="#555555")
    axis.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    right.spines["right"].set_color("#BBBBBB")


def _legend(figure, variants: Sequence[VariantCurves], reference: str | None, title: str) -> None:
    """Below the panels; the figure grows by what it needs."""
    from matplotlib.lines import Line2D

    names = [curves.variant for curves in variants]
    handles = []
    if any(name != reference for name in names):
        handles += [
            Line2D([], [], color=BLUE, label="gold"),
            Line2D([], [], color=BLUE, linestyle=_DASHED, label="proxy"),
        ]
    if reference in names:
        handles.append(Line2D([], [], color=ORANGE, label=f"gold, {reference}"))
        handles.append(Line2D([], [], color=ORANGE, linestyle=_DASHED, label=f"proxy, {reference}"))
    handles.append(Line2D([], [], color=GRAY, linewidth=0.9, linestyle=_DOTTED, label="gold at the start"))
    entry = 0.6 + 0.065 * max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(len(handles), int(figure.get_figwidth() / entry)))
    lines = textwrap.wrap(title, int(13.5 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.17 * (math.ceil(len(handles) / across) + len(lines)) + 0.15)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False, fontsize=8)
    legend.set_title("\n".join(lines), prop={"size": 8})
    legend.get_title().set_multialignment("center")
