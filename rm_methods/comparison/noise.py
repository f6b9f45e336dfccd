"""An experiment on several levels of label noise: one comparison a level, one table of all levels, and accuracy
against noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rm_methods.comparison.compare import build_comparison, write_comparison
from rm_methods.comparison.result import Column, Comparison, ComparisonResult, Cost, VariantRow
from rm_methods.comparison.runs import Run, read_runs
from rm_methods.comparison.verdict import verdict
from rm_methods.config.variants import NoiseLevel
from rm_methods.errors import UserError
from rm_methods.experiment.evaluated_runs import EvaluatedFiles
from rm_methods.experiment.layout import noise_figure_stem
from rm_methods.reporting.figures import BLUE, ORANGE, save_figure
from rm_methods.statistics.cell import Cell

ACROSS = 4  # panels side by side


def compare_across_noise(
    runs: Sequence[EvaluatedFiles],
    columns: Sequence[Column],
    reference: str | None,
    levels: Sequence[NoiseLevel],
    out_folder: Path,
    correction: str = "column",
) -> ComparisonResult:
    """Compare the runs of every level (`<level>/table.*`, `<level>/comparison.*`), then write one table of all levels
    and the figures.

    Every variant is compared with the reference of the same level.

    Args:
        reference: name without noise.
        correction: the family of Holm's correction, the "column" of a level or the "table" of a level.

    Returns:
        The comparison of all levels: one row a variant, columns level by level.

    Raises:
        UserError, DataError: as `rm_methods.comparison.compare.compare`; a variant that is on no level.
    """
    all_runs = read_runs(runs, columns)
    comparisons = []
    for level in levels:
        level_runs = [_without_level(run, level) for run in all_runs if run.variant in level.variants]
        if not level_runs:
            raise UserError(f"No run has {level.heading}; run snakemake for this configuration first.")
        comparisons.append(build_comparison(level_runs, columns, reference, correction))
        write_comparison(comparisons[-1], Path(out_folder) / level.folder)
    merged = merge_levels(levels, comparisons)
    for number, column in enumerate(columns):
        targets = [
            Path(out_folder) / f"{noise_figure_stem(column.benchmark, column.metric)}.{suffix}"
            for suffix in ("png", "svg")
        ]
        save_figure(partial(draw_noise, levels, comparisons, number), targets)
    return write_comparison(merged, Path(out_folder))


def _without_level(run: Run, level: NoiseLevel) -> Run:
    """The run under the names that its variants have without noise."""
    return replace(
        run, variant=level.variants[run.variant], made_of=tuple(level.variants.get(name, name) for name in run.made_of)
    )


def merge_levels(levels: Sequence[NoiseLevel], comparisons: Sequence[Comparison]) -> Comparison:
    """One comparison with the columns of all levels, named after them."""
    columns = tuple(
        replace(column, heading=f"{column.heading}, {level.heading}")
        for level, comparison in zip(levels, comparisons, strict=True)
        for column in comparison.columns
    )
    rows: dict[str, dict[int, VariantRow]] = {}
    for number, comparison in enumerate(comparisons):
        for row in comparison.rows:
            rows.setdefault(row.variant, {})[number] = row
    empty_cells = (None,) * len(comparisons[0].columns)
    merged = []
    for by_level in rows.values():
        cells: list[Cell | None] = []
        for number in range(len(comparisons)):
            cells += by_level[number].cells if number in by_level else empty_cells
        first = next(iter(by_level.values()))
        cost = _mean_cost([row.cost for row in by_level.values()])
        merged.append(replace(first, cost=cost, cells=tuple(cells)))
    whole = Comparison(
        columns=columns,
        rows=tuple(merged),
        reference=comparisons[0].reference,
        correction=comparisons[0].correction,
        detectable=tuple(value for comparison in comparisons for value in comparison.detectable),
        notes=_merged_notes(levels, comparisons),
    )
    return replace(whole, verdict=verdict(whole))


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    return Cost(
        tokens=_mean_of_recorded([cost.tokens for cost in costs]),
        wall_seconds=_mean_of_recorded([cost.wall_seconds for cost in costs]),
        peak_memory_bytes=_mean_of_recorded([cost.peak_memory_bytes for cost in costs]),
    )


def _mean_of_recorded(values: Sequence[float | None]) -> float | None:
    recorded = [value for value in values if value is not None]
    return sum(recorded) / len(recorded) if recorded else None


def _merged_notes(levels: Sequence[NoiseLevel], comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """The footnotes of all levels; one that is not true of all levels names its levels."""
    notes: dict[str, list[str]] = {}
    for level, comparison in zip(levels, comparisons, strict=True):
        for note in comparison.notes:
            notes.setdefault(note, []).append(level.heading)
    return tuple(
        note if len(headings) == len(levels) else f"{', '.join(headings)}: {note}" for note, headings in notes.items()
    )


def draw_noise(levels: Sequence[NoiseLevel], comparisons: Sequence[Comparison], column: int):
    """One panel a variant: its mean against the share of flipped labels with a band for the 95% interval, and the
    reference behind it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reference = comparisons[0].reference
    kinds = sorted({level.kind for level in levels if level.rate}, reverse=True) or ["symmetric"]
    variants = [row.variant for row in comparisons[0].rows if not row.content_blind and row.variant != reference]
    variants = variants or [row.variant for row in comparisons[0].rows]
    down = math.ceil(len(variants) / ACROSS)
    figure = Figure(figsize=(2.3 * min(ACROSS, len(variants)) + 0.6, 1.75 * down + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, min(ACROSS, len(variants)), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(variants) :]:
        axis.set_visible(False)
    styles = dict(zip(kinds, ("-", "--"), strict=False))
    for axis, variant in zip(axes.flat, variants, strict=False):
        for name, color in ((reference, ORANGE), (variant, BLUE)):
            for kind in kinds:
                _draw_line(axis, _points(levels, comparisons, name, kind, column), color, styles[kind])
        axis.set_title(variant, fontsize=8, loc="left")
        axis.grid(color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.supxlabel("flipped training labels, percent", fontsize=8)
    figure.supylabel(f"{comparisons[0].columns[column].heading}, percent", fontsize=8)
    _legend(figure, reference, kinds, styles)
    return figure


def _points(
    levels: Sequence[NoiseLevel], comparisons: Sequence[Comparison], variant: str | None, kind: str, column: int
) -> list[tuple[float, float, float, float]]:
    """(rate, mean, low, high) in percent; the level without noise belongs to every kind."""
    points = []
    for level, comparison in zip(levels, comparisons, strict=True):
        if level.kind != kind and level.rate:
            continue
        for row in comparison.rows:
            cell = row.cells[column]
            if row.variant == variant and cell is not None:
                estimate = cell.estimate
                points.append((100 * level.rate, 100 * estimate.mean, 100 * estimate.low, 100 * estimate.high))
    return sorted(points)


def _draw_line(axis, points, color: str, style: str) -> None:
    if not points:
        return
    rates, means, lows, highs = zip(*points, strict=True)
    axis.plot(rates, means, color=color, linestyle=style, marker="o", markersize=3, linewidth=1.3)
    # An interval may reach past 0 or 100%, a share does not.
    axis.fill_between(
        rates, [max(low, 0) for low in lows], [min(high, 100) for high in highs], color=color, alpha=0.18, linewidth=0
    )


def _legend(figure, reference: str | None, kinds: Sequence[str], styles: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=BLUE, marker="o", markersize=3, label="method of the panel")]
    if reference is not None:
        handles.append(Line2D([], [], color=ORANGE, marker="o", markersize=3, label=reference))
    if len(kinds) > 1:
        names = {"symmetric": "any labels flipped", "length": "flipped to the longer response"}
        for kind in kinds:
            line = Line2D([], [], color="black", label=names[kind])
            line.set(linestyle=styles[kind])
            handles.append(line)
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    legend.set_title("Mean and 95% interval", prop={"size": 8})
