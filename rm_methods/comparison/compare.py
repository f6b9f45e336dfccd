"""The compare stage: from the evaluations of all runs to one table, in four formats, and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rm_methods.comparison.figures import write_figures
from rm_methods.comparison.notes import footnotes
from rm_methods.comparison.result import Column, Comparison, ComparisonResult, Cost, VariantRow
from rm_methods.comparison.runs import Run, common_design, read_runs
from rm_methods.comparison.tables import csv_table, latex_table, markdown_table, terminal_table
from rm_methods.errors import UserError, nearest
from rm_methods.experiment.evaluated_runs import EvaluatedFiles
from rm_methods.files import write_text
from rm_methods.statistics.cell import Cell, with_verdicts
from rm_methods.statistics.intervals import ItemDesign, estimate, estimate_from_seeds, paired_difference


def compare(
    runs: Sequence[EvaluatedFiles], columns: Sequence[Column], reference: str | None, out_folder: Path
) -> ComparisonResult:
    """Compare runs and write table.txt, table.md, table.csv, table.tex, comparison.png and comparison.svg.

    Args:
        runs: the files of every (variant, seed); variants appear in the order of their first run.
        columns: what to compare, in order.
        reference: the variant that the others are tested against; None for no tests.
        out_folder: where the files go; made if missing.

    Returns:
        The comparison, its files by name, and the terminal table as text.

    Raises:
        UserError, DataError: the reference is not a variant, a column is unknown, or the runs cannot be compared (see
            `read_runs` and `common_design`).
    """
    return write_comparison(build_comparison(read_runs(runs, columns), columns, reference), Path(out_folder))


def write_comparison(comparison: Comparison, out_folder: Path) -> ComparisonResult:
    """Write a comparison's tables and figure to a folder, made if missing."""
    text = terminal_table(comparison)
    texts = {
        "table.txt": text,
        "table.md": markdown_table(comparison),
        "table.csv": csv_table(comparison),
        "table.tex": latex_table(comparison),
    }
    for name, content in texts.items():
        write_text(out_folder / name, content)
    figures = {"comparison.png": out_folder / "comparison.png", "comparison.svg": out_folder / "comparison.svg"}
    write_figures(comparison, list(figures.values()))
    return ComparisonResult(comparison, {name: out_folder / name for name in texts} | figures, text)


def build_comparison(runs: Sequence[Run], columns: Sequence[Column], reference: str | None) -> Comparison:
    """Intervals, paired differences and footnotes of runs that were read and checked."""
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    if reference is not None and reference not in by_variant:
        raise UserError(
            f"The reference '{reference}' is not among the variants compared. {nearest(reference, by_variant)}"
        )
    order = sorted(by_variant, key=lambda v: by_variant[v][0].content_blind)
    cells: dict[str, list[Cell | None]] = {variant: [] for variant in order}
    for column in columns:
        for variant, cell in _column_cells(by_variant, column, reference).items():
            cells[variant].append(cell)
    rows = tuple(_row(by_variant[variant], cells[variant]) for variant in order)
    return Comparison(tuple(columns), rows, reference, footnotes(runs, rows, columns, reference))


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that were recorded; None if none was."""
    recorded = [float(value) for value in values if value is not None]
    return float(np.mean(recorded)) if recorded else None


def _row(runs: Sequence[Run], cells: Sequence[Cell | None]) -> VariantRow:
    first = runs[0]
    return VariantRow(
        variant=first.variant,
        method=first.method,
        seeds=tuple(sorted(run.seed for run in runs)),
        seed_free=all(run.seed_free for run in runs),
        scalar_reward=all(run.scalar_reward for run in runs),
        content_blind=first.content_blind,
        cost=Cost(
            tokens=_mean([run.cost.get("tokens") for run in runs]),
            wall_seconds=_mean([run.cost.get("wall_seconds") for run in runs]),
            peak_memory_bytes=_mean([run.cost.get("peak_memory_bytes") for run in runs]),
        ),
        cells=tuple(cells),
    )


def _column_cells(by_variant: dict[str, list[Run]], column: Column, reference: str | None) -> dict[str, Cell | None]:
    """Cells of one column, with Holm's correction over its variants."""
    design = common_design([run for runs in by_variant.values() for run in runs], column)
    values = {variant: _values(runs, column, design) for variant, runs in by_variant.items()}
    seed_free = {variant: all(run.seed_free for run in runs) for variant, runs in by_variant.items()}
    cells: dict[str, Cell | None] = {}
    for variant, runs in by_variant.items():
        if not values[variant]:
            cells[variant] = None
            continue
        cell = _cell(runs, column, values[variant], design)
        if variant == reference:
            cell = replace(cell, verdict="reference")
        elif reference is not None and values[reference]:
            difference = paired_difference(
                values[variant],
                values[reference],
                design,
                candidate_seed_free=seed_free[variant],
                reference_seed_free=seed_free[reference],
            )
            cell = replace(cell, difference=difference)
        cells[variant] = cell
    return cells | with_verdicts({v: cell for v, cell in cells.items() if cell is not None})


def _values(runs: Sequence[Run], column: Column, design: ItemDesign | None) -> dict[int, np.ndarray]:
    """Seed -> credits in the order of the design (or the metric itself, shape [], for a metric without credits)."""
    values = {}
    for run in runs:
        metric = run.metric(column)
        if metric is None:
            continue
        if design is None:
            values[run.seed] = np.array(metric, dtype=np.float64)
        else:
            credits = run.credits[column.benchmark, column.metric]
            values[run.seed] = credits["credit"].to_numpy(np.float64)
    return values


def _cell(runs: Sequence[Run], column: Column, values: dict[int, np.ndarray], design: ItemDesign | None) -> Cell:
    seeds = sorted(values)
    if design is None:
        interval = estimate_from_seeds([float(values[s]) for s in seeds])
    else:
        interval = estimate(np.column_stack([values[s] for s in seeds]), design)
    reports = [run.benchmarks[column.benchmark] for run in runs if run.metric(column) is not None]
    truncated = [count for report in reports if (count := report.get("n_truncated")) is not None]
    return Cell(
        estimate=interval,
        tie_rate=_mean([report.get("tie_rate") for report in reports]),
        n_scored=sum(int(r.get("n_scored", 0)) for r in reports),
        n_total=sum(int(r.get("n_total", 0)) for r in reports),
        n_truncated=max(truncated) if truncated else None,
    )
