"""An experiment on several levels of label noise: one comparison a level, one table of all levels, and accuracy
against noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from rm_methods.comparison.compare import build_comparison, write_comparison
from rm_methods.comparison.result import Column, Comparison, ComparisonResult, Cost, VariantRow
from rm_methods.comparison.runs import Run, read_runs
from rm_methods.config.variants import NoiseLevel
from rm_methods.errors import UserError
from rm_methods.experiment.evaluated_runs import EvaluatedFiles
from rm_methods.experiment.layout import noise_figure_stem
from rm_methods.reporting.figures import BLUE, ORANGE, save_figure

ACROSS = 4  # panels side by side


def compare_across_noise(
    runs: Sequence[EvaluatedFiles],
    columns: Sequence[Column],
    reference: str | None,
    levels: Sequence[NoiseLevel],
    out_folder: Path,
) -> ComparisonResult:
    """Compare every level by itself (`<level>/table.*`, `<level>/comparison.*`), then write one table of all levels
    and the figures.

    Every variant is compared with the reference of its own level, and Holm's correction counts the variants of a level
    and column.

    Args:
        reference: name without noise.

    Returns:
        The comparison of all levels: one row a variant, columns level by level.

    Raises:
        UserError, DataError: as `rm_methods.comparison.compare.compare`; a variant that is on no level.
    """
    read = read_runs(runs, columns)
    comparisons = []
    for level in levels:
        there = [_without_level(run, level) for run in read if run.variant in level.variants]
        if not there:
            raise UserError(f"No run has {level.heading}; run snakemake for this configuration first.")
        comparisons.append(build_comparison(there, columns, reference))
        write_comparison(comparisons[-1], Path(out_folder) / level.folder)
    merged = merge_levels(levels, comparisons)
    for number, column in enumerate(columns):
        targets = [
            Path(out_folder) / f"{noise_figure_stem(column.benchmark, column.metric)}.{suffix}"
            for suffix in ("png", "svg")
        ]
        save_figure(lambda number=number: draw_noise(levels, comparisons, number), targets)
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
    without = (None,) * len(comparisons[0].columns)
    merged = tuple(
        replace(
            next(iter(own.values())),
            cost=_mean_cost([row.cost for row in own.values()]),
            cells=tuple(
                cell for number in range(len(comparisons)) for cell in (own[number].cells if number in own else without)
            ),
        )
        for own in rows.values()
    )
    return Comparison(columns, merged, comparisons[0].reference, _merged_notes(levels, comparisons))


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    values = {
        field.name: [getattr(cost, field.name) for cost in costs if getattr(cost, field.name) is not None]
        for field in fields(Cost)
    }
    return Cost(**{name: sum(found) / len(found) if found else None for name, found in values.items()})


def _merged_notes(levels: Sequence[NoiseLevel], comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """The footnotes of all levels; one that does not stand below every level says which it is of."""
    notes: dict[str, list[str]] = {}
    for level, comparison in zip(levels, comparisons, strict=True):
        for note in comparison.notes:
            notes.setdefault(note, []).append(level.heading)
    return tuple(note if len(of) == len(levels) else f"{', '.join(of)}: {note}" for note, of in notes.items())


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
    levels, comparisons, variant: str | None, kind: str, column: int
) -> list[tuple[float, float, float, float]]:
    """(rate, mean, low, high) in percent; the level without noise belongs to every kind."""
    points = []
    for level, comparison in zip(levels, comparisons, strict=True):
        cells = {row.variant: row.cells[column] for row in comparison.rows}
        if (level.kind == kind or not level.rate) and cells.get(variant) is not None:
            estimate = cells[variant].estimate
            points.append(tuple(100 * value for value in (level.rate, estimate.mean, estimate.low, estimate.high)))
    return sorted(points)


def _draw_line(axis, points, color: str, style: str) -> None:
    if not points:
        return
    rates, means, lows, highs = zip(*points, strict=True)
    axis.plot(rates, means, color=color, linestyle=style, marker="o", markersize=3, linewidth=1.3)
    # An interval may reach past 0 or 100%, what it is about does not.
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
        handles += [Line2D([], [], color="black", linestyle=styles[kind], label=names[kind]) for kind in kinds]
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    legend.set_title("Mean and 95% interval", prop={"size": 8})
