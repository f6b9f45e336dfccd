"""Over-optimization as a picture: gold, its difference from the reference, and the proxy, against n (Best-of-N) or
against the updates (PPO), with the KL divergence above."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rm_methods.overoptimization.kl import kl_bound
from rm_methods.overoptimization.variant_curves import Bands, VariantCurves, bands
from rm_methods.reporting.figures import BLUE, GRAY, ORANGE, save_figure
from rm_methods.statistics.intervals import Estimate

FEW = 9  # up to here, a row has three variants, then five
REACHES = 4  # an interval wider than this many times that of the median variant is cut
HEIGHTS = {"gold": 1.7, "difference": 1.05, "proxy": 1.05}  # inches
Y_LABELS = {"gold": "gold", "difference": "difference", "proxy": "proxy"}
_DOTTED = (0, (1, 2))
_DASHED = (0, (3, 2))


def write_best_of_n_figure(variants: Sequence[VariantCurves], reference: str | None, targets: Sequence[Path]) -> None:
    """Draw Best-of-N of all variants on one pool and save it to every target."""
    save_figure(lambda: draw_best_of_n(variants, reference), targets)


def write_ppo_figure(variants: Sequence[VariantCurves], reference: str | None, targets: Sequence[Path]) -> None:
    """Draw the PPO runs of all variants and save them to every target."""
    save_figure(lambda: draw_ppo(variants, reference), targets)


def draw_best_of_n(variants: Sequence[VariantCurves], reference: str | None):
    """One block of panels a variant: gold, its difference from the reference, and the standardized proxy, against n."""

    def prepare(axis, curves: VariantCurves, is_top: bool) -> None:
        axis.set_xscale("log", base=2)
        axis.set_xlim(1, max(int(curves.axis[-1]), 2))
        ticks = _spread_ticks(curves.axis)
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        if is_top:
            _kl_axis(axis, {n: float(kl_bound(n)) for n in ticks})

    title = (
        f"Best-of-N on {variants[0].pool}, {len(variants[0].groups)} prompts: mean and 95% interval. Proxy in its "
        "standard deviations within a prompt, 0 at n = 1. KL: upper bound, nats."
    )
    return _draw(variants, reference, prepare, "n (log scale)", title)


def draw_ppo(variants: Sequence[VariantCurves], reference: str | None):
    """One block of panels a variant, as `draw_best_of_n`, against updates.

    Not against the KL divergence, which PPO does not raise steadily: its values are above each block.
    """
    last = max(int(curves.axis[-1]) for curves in variants)

    def prepare(axis, curves: VariantCurves, is_top: bool) -> None:
        axis.set_xlim(0, max(last, 1))
        axis.locator_params(axis="x", nbins=5, integer=True)
        if axis.get_title(loc="left"):
            some = slice(None, None, math.ceil(len(curves.axis) / 5))
            _kl_axis(axis, dict(zip(curves.axis[some].tolist(), curves.kl[some].tolist(), strict=True)))

    title = (
        f"PPO, {len(variants[0].groups)} evaluation prompts: mean and 95% interval at each evaluation. Proxy in its "
        "standard deviations before training. KL: estimate, nats."
    )
    return _draw(variants, reference, prepare, "updates", title)


def _draw(variants: Sequence[VariantCurves], reference: str | None, prepare, below: str, title: str):
    """The grid of blocks (matplotlib, without pyplot): panels of one kind share their scale, so that they compare."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    drawn = bands(variants, reference)
    behind = next((curves for curves in variants if curves.variant == reference), None)
    compares = behind is not None and len(variants) > 1
    kinds = ["gold", "difference", "proxy"] if compares else ["gold", "proxy"]
    down = math.ceil(len(variants) / (3 if len(variants) <= FEW else 5))
    across = math.ceil(len(variants) / down)
    panel_width = 2.5 if across <= 3 else 2.1
    height = sum(HEIGHTS[kind] for kind in kinds) + 0.35
    layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.05)
    figure = Figure(figsize=(max(panel_width * across + 0.6, 4.6), height * down + 0.4), layout=layout)
    FigureCanvasAgg(figure)
    ratios = [HEIGHTS[kind] for kind in kinds] * down
    axes = figure.subplots(down * len(kinds), across, squeeze=False, gridspec_kw={"height_ratios": ratios})
    panels: dict[str, list] = {kind: [] for kind in kinds}
    for number in range(down * across):
        block = axes[len(kinds) * (number // across) : len(kinds) * (number // across + 1), number % across]
        if number >= len(variants):
            for axis in block:
                axis.set_visible(False)
            continue
        curves = variants[number]
        runs = _runs_text(curves).replace(" ", "\N{NO-BREAK SPACE}")
        name = "\n".join(textwrap.wrap(f"{curves.label}, {runs}", int(13 * panel_width)))
        block[0].set_title(name, fontsize=9, loc="left")
        for kind, axis in zip(kinds, block, strict=True):
            prepare(axis, curves, number < across and kind == "gold")
            _panel(axis, kind, curves, behind, drawn)
            _tidy(axis, number % across == 0, kind)
            panels[kind].append(axis)
        if number + across >= len(variants):
            block[-1].set_xlabel(below, fontsize=8)
    for kind, kind_axes in panels.items():
        low, high = _limits([_series(curves, drawn[curves.variant], kind)[1] for curves in variants])
        for axis in kind_axes:
            axis.set_ylim(low, high)
    _legend(figure, variants, reference, drawn, title)
    return figure


def _runs_text(curves: VariantCurves) -> str:
    if curves.seed_free:
        return "no training"
    return f"{len(curves.seeds)} seeds" if len(curves.seeds) > 1 else "1 model"


def _color(curves: VariantCurves, reference: str | None) -> str:
    if curves.role == "content_blind":
        return GRAY
    return ORANGE if curves.variant == reference else BLUE


def _panel(axis, kind: str, curves: VariantCurves, behind: VariantCurves | None, drawn: Mapping[str, Bands]) -> None:
    """One panel: the variant with its interval, and the mean of the reference without one."""
    color = _color(curves, behind.variant if behind is not None else None)
    x, estimates = _series(curves, drawn[curves.variant], kind)
    if kind == "gold":
        axis.axhline(curves.mean_gold[0], color=GRAY, linewidth=0.9, linestyle=_DOTTED, zorder=1)
    if kind == "difference":
        axis.axhline(0, color=ORANGE, linewidth=0.9, zorder=1)
        if not estimates:
            return
    elif behind is not None and behind is not curves:
        behind_x, behind_estimates = _series(behind, drawn[behind.variant], kind)
        axis.plot(behind_x, [e.mean for e in behind_estimates], color=ORANGE, linewidth=0.9, zorder=3)
    _interval(axis, x, estimates, curves, color)
    axis.plot(x, [estimate.mean for estimate in estimates], color=color, linewidth=1.5, zorder=4)
    if kind == "gold":
        peak = curves.peak
        axis.plot(x[peak], curves.mean_gold[peak], marker="o", markersize=4.5, color=color, zorder=5, clip_on=False)


def _series(curves: VariantCurves, intervals: Bands, kind: str) -> tuple[list[int], list[Estimate]]:
    """Places on the axis and what is drawn there."""
    if kind == "difference":
        difference = intervals.difference or {}
        return list(difference), list(difference.values())
    return curves.axis.tolist(), intervals.gold if kind == "gold" else intervals.proxy


def _interval(axis, x: Sequence[int], estimates: Sequence[Estimate], curves: VariantCurves, color: str) -> None:
    """A filled band counts all that an interval should count; thin dashed limits count prompts only."""
    mean = np.array([estimate.mean for estimate in estimates])
    low = np.array([estimate.low for estimate in estimates])
    high = np.array([estimate.high for estimate in estimates])
    low, high = np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)
    if _items_only(curves, estimates):
        for limit in (low, high):
            axis.plot(x, limit, color=color, linewidth=0.8, linestyle=_DASHED, zorder=2)
    else:
        axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0, zorder=2)


def _items_only(curves: VariantCurves, estimates: Sequence[Estimate]) -> bool:
    return any(curves.counts_items_only(estimate) for estimate in estimates)


def _reaches(estimates: Sequence[Estimate]) -> bool:
    """Whether any of the estimates has an interval."""
    return any(estimate.half_width > 0 for estimate in estimates)


def _limits(lines: Sequence[Sequence[Estimate]]) -> tuple[float, float]:
    """Limits of a kind of panels: every mean and ordinary intervals fit; one of two seeds may be so wide that it is
    cut.

    Args:
        lines: of each variant, what is drawn along its axis.
    """
    estimates = [estimate for line in lines for estimate in line]
    widest = sorted(max(e.half_width for e in line if not math.isnan(e.half_width)) for line in lines if _reaches(line))
    allowed = REACHES * widest[len(widest) // 2] if widest else 0.0
    means = [estimate.mean for estimate in estimates] or [0.0]
    shown = [(e.mean, min(e.half_width, allowed)) for e in estimates if not math.isnan(e.half_width)]
    low = min([*means, *(mean - reach for mean, reach in shown)])
    high = max([*means, *(mean + reach for mean, reach in shown)])
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


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


def _tidy(axis, is_first: bool, kind: str) -> None:
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.locator_params(axis="y", nbins=5 if kind == "gold" else 4)
    axis.tick_params(labelsize=8, labelleft=is_first, labelbottom=kind == "proxy")
    if is_first:
        axis.set_ylabel(Y_LABELS[kind], fontsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(
    figure, variants: Sequence[VariantCurves], reference: str | None, drawn: Mapping[str, Bands], title: str
) -> None:
    """Every mark that occurs, below the panels; the figure grows by what it needs."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list = []
    shade = _color(variants[0], reference) if len(variants) == 1 else BLUE
    names = {"method": BLUE, "content-blind": GRAY}
    for name, color in names.items():
        if any(_color(curves, reference) == color for curves in variants):
            handles.append(Line2D([], [], color=color, label=name))
    handles += [
        Line2D([], [], color=ORANGE, label=f"reference: {curves.label}")
        for curves in variants
        if curves.variant == reference
    ]
    kinds = ("gold", "difference", "proxy")
    styles = {
        _items_only(curves, estimates)
        for curves in variants
        for kind in kinds
        if _reaches(estimates := _series(curves, drawn[curves.variant], kind)[1])
    }
    if False in styles:
        counted = "members" if all(curves.role == "combined" for curves in variants) else "seeds"
        handles.append(Patch(color=shade, alpha=0.2, linewidth=0, label=f"interval over {counted} and prompts"))
    if True in styles:
        label = "interval over prompts only (one model)"
        handles.append(Line2D([], [], color=shade, linewidth=0.8, linestyle=_DASHED, label=label))
    handles.append(Line2D([], [], color=shade, marker="o", markersize=4.5, linestyle="none", label="highest gold"))
    handles.append(Line2D([], [], color=GRAY, linewidth=0.9, linestyle=_DOTTED, label="gold at the start"))
    entry = 0.6 + 0.065 * max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(len(handles), int(figure.get_figwidth() / entry)))
    lines = textwrap.wrap(title, int(13.5 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.17 * (math.ceil(len(handles) / across) + len(lines)) + 0.15)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False, fontsize=8)
    legend.set_title("\n".join(lines), prop={"size": 8})
    legend.get_title().set_multialignment("center")
