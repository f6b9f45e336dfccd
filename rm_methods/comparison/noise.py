"""An experiment on several levels of label noise: one comparison a level, one table of all levels, and accuracy
against noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.comparison.compare import build_comparison, compare, write_comparison
from rm_methods.comparison.contamination import BenchmarkContamination
from rm_methods.comparison.noise_figure import write_noise_figure
from rm_methods.comparison.result import Column, Comparison, ComparisonResult, Cost, VariantRow
from rm_methods.comparison.runs import Run, read_runs
from rm_methods.comparison.verdict import verdict
from rm_methods.config.resolve import reference_variant
from rm_methods.config.variants import NoiseLevel, noise_levels
from rm_methods.errors import UserError
from rm_methods.experiment.evaluated_runs import EvaluatedFiles
from rm_methods.experiment.layout import FIGURE_SUFFIXES, noise_figure_stem
from rm_methods.statistics.cell import Cell

NO_RANKS = "No mean ranks across levels: the folder of each level has those of its level."


def compare_configured(
    config: Mapping[str, Any],
    runs: Sequence[EvaluatedFiles],
    columns: Sequence[Column],
    out_folder: Path,
    contamination: Sequence[BenchmarkContamination],
) -> ComparisonResult:
    """Compare the runs of an experiment as its resolved configuration says: on one level of label noise or several.

    Raises:
        UserError, DataError: as `compare` and `compare_across_noise`.
    """
    reference = reference_variant(config)
    correction = config["comparison"]["correction"]
    levels = noise_levels(config)
    if not levels:
        return compare(runs, columns, reference, out_folder, correction, contamination=contamination)
    return compare_across_noise(runs, columns, reference, levels, out_folder, correction, contamination=contamination)


def compare_across_noise(
    runs: Sequence[EvaluatedFiles],
    columns: Sequence[Column],
    reference: str | None,
    levels: Sequence[NoiseLevel],
    out_folder: Path,
    correction: str = "column",
    *,
    contamination: Sequence[BenchmarkContamination] = (),
) -> ComparisonResult:
    """Compare the runs of every level (`<level>/table.*`, `<level>/comparison.*`), then write one table of all levels
    and the figures.

    Every variant is compared with the reference of the same level.

    Args:
        reference: name without noise.
        correction: the family of Holm's correction, the "column" of a level or the "table" of a level.
        contamination: overlap of the benchmarks with the training pairs, for the notes.

    Returns:
        The comparison of all levels: one row a variant, columns level by level.

    Raises:
        UserError, DataError: as `rm_methods.comparison.compare.compare`; a variant that is on no level.
    """
    all_runs = read_runs(runs, columns)
    comparisons = build_levels(all_runs, columns, reference, levels, correction, contamination=contamination)
    for level, comparison in zip(levels, comparisons, strict=True):
        write_comparison(comparison, runs_of_level(all_runs, level), Path(out_folder) / level.folder)
    merged = merge_levels(levels, comparisons)
    for number, column in enumerate(columns):
        stem = noise_figure_stem(column.benchmark, column.metric)
        targets = [Path(out_folder) / f"{stem}.{suffix}" for suffix in FIGURE_SUFFIXES]
        write_noise_figure(levels, comparisons, number, targets)
    return write_comparison(merged, all_runs, Path(out_folder), no_ranks=NO_RANKS)


def build_levels(
    runs: Sequence[Run],
    columns: Sequence[Column],
    reference: str | None,
    levels: Sequence[NoiseLevel],
    correction: str = "column",
    *,
    contamination: Sequence[BenchmarkContamination] = (),
) -> list[Comparison]:
    """The comparison of each level, for `merge_levels`.

    Raises:
        UserError: a level without runs, or without one of the reference.
    """
    comparisons = []
    for level in levels:
        level_runs = runs_of_level(runs, level)
        if not level_runs:
            raise UserError(f"No run has {level.heading}; run snakemake for this configuration first.")
        comparisons.append(build_comparison(level_runs, columns, reference, correction, contamination=contamination))
    return comparisons


def runs_of_level(runs: Sequence[Run], level: NoiseLevel) -> list[Run]:
    """The runs of a level, under the names that their variants have without noise."""
    return [_without_level(run, level) for run in runs if run.variant in level.variants]


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
        contamination=comparisons[0].contamination,
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
