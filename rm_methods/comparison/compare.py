"""The compare stage: from the evaluations of all runs to one table, in four formats, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rm_methods.comparison.contamination import BenchmarkContamination, contamination_csv
from rm_methods.comparison.figures import write_figures
from rm_methods.comparison.notes import footnotes
from rm_methods.comparison.rank_figure import NO_RANKS, write_rank_figure
from rm_methods.comparison.ranks import rank_table
from rm_methods.comparison.reliability import write_reliability
from rm_methods.comparison.result import Column, Comparison, ComparisonResult, Cost, VariantRow
from rm_methods.comparison.runs import Run, common_design, distinct_runs, read_runs
from rm_methods.comparison.tables import csv_table, latex_table, markdown_table, terminal_table
from rm_methods.comparison.verdict import verdict
from rm_methods.errors import UserError, nearest
from rm_methods.experiment.evaluated_runs import EvaluatedFiles
from rm_methods.experiment.layout import COMPARISON_FILES, FIGURE_SUFFIXES
from rm_methods.files import write_text
from rm_methods.statistics.cell import Cell, with_verdicts
from rm_methods.statistics.column import VariantValues, column_cells, detectable_difference
from rm_methods.statistics.designs import ItemDesign


def compare(
    runs: Sequence[EvaluatedFiles],
    columns: Sequence[Column],
    reference: str | None,
    out_folder: Path,
    correction: str = "column",
    *,
    contamination: Sequence[BenchmarkContamination] = (),
) -> ComparisonResult:
    """Compare runs and write their table (.txt, .md, .csv, .tex), contamination.csv, and three figures (.png, .svg):
    comparison, ranks, reliability.

    Args:
        runs: the files of every (variant, seed); variants appear in the order of their first run.
        columns: what to compare, in order.
        reference: the variant that the others are tested against; None for no tests.
        out_folder: where the files go; made if missing.
        correction: the family of Holm's correction, "column" or "table".
        contamination: overlap of the benchmarks with the training pairs, for the notes.

    Returns:
        The comparison, its files by name, and the terminal table as text.

    Raises:
        UserError, DataError: the reference is not a variant, a column is unknown, or the runs cannot be compared (see
            `read_runs` and `common_design`).
    """
    all_runs = read_runs(runs, columns)
    comparison = build_comparison(all_runs, columns, reference, correction, contamination=contamination)
    return write_comparison(comparison, all_runs, Path(out_folder))


def write_comparison(
    comparison: Comparison, runs: Sequence[Run], out_folder: Path, no_ranks: str = NO_RANKS
) -> ComparisonResult:
    """Write a comparison's tables and figures to a folder, made if missing.

    Args:
        runs: those that were compared.
        no_ranks: what the figure of ranks says where the comparison has none.
    """
    text = terminal_table(comparison)
    texts = {
        "table.txt": text,
        "table.md": markdown_table(comparison),
        "table.csv": csv_table(comparison),
        "table.tex": latex_table(comparison),
        "contamination.csv": contamination_csv(comparison.contamination),
    }
    for name, content in texts.items():
        write_text(out_folder / name, content)
    write_figures(comparison, _figure_files(out_folder, "comparison"))
    write_rank_figure(comparison, _figure_files(out_folder, "ranks"), no_ranks)
    write_reliability(runs, _figure_files(out_folder, "reliability"))
    return ComparisonResult(comparison, {name: out_folder / name for name in COMPARISON_FILES}, text)


def _figure_files(folder: Path, stem: str) -> list[Path]:
    return [folder / f"{stem}.{suffix}" for suffix in FIGURE_SUFFIXES]


def build_comparison(
    runs: Sequence[Run],
    columns: Sequence[Column],
    reference: str | None,
    correction: str = "column",
    *,
    contamination: Sequence[BenchmarkContamination] = (),
) -> Comparison:
    """Intervals, differences, ranks, verdict and footnotes of runs that were read and checked.

    Args:
        correction: the family of Holm's correction, "column" or "table".
        contamination: overlap of the benchmarks with the training pairs, for the notes.
    """
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    if reference is not None and reference not in by_variant:
        raise UserError(
            f"The reference '{reference}' is not among the variants compared. {nearest(reference, by_variant)}"
        )
    order = sorted(by_variant, key=lambda v: by_variant[v][0].is_line)
    cells: dict[tuple[str, int], Cell] = {}
    metrics: list[dict[str, dict[int, float]]] = []
    for number, column in enumerate(columns):
        design = common_design(runs, column)
        values = {name: variant_values(by_variant[name], column, design) for name in order}
        present = {name: variant for name, variant in values.items() if variant is not None}
        for name, cell in column_cells(present, reference, design).items():
            cells[name, number] = _with_counts(cell, by_variant[name], column)
        metrics.append({name: variant.metrics(design) for name, variant in present.items()})
    cells = judged(cells, len(columns), correction)
    rows = tuple(_row(by_variant[name], [cells.get((name, n)) for n in range(len(columns))]) for name in order)
    comparison = Comparison(
        columns=tuple(columns),
        rows=rows,
        reference=reference,
        correction=correction,
        detectable=detectable_by_column(rows, len(columns), correction),
        ranks=rank_table(
            [row.variant for row in rows if row.role == "trained" and row.n_models > 1 and None not in row.cells],
            metrics,
        ),
        contamination=tuple(contamination),
    )
    return replace(comparison, verdict=verdict(comparison), notes=footnotes(runs, comparison))


def judged(cells: Mapping[tuple[str, int], Cell], n_columns: int, correction: str) -> dict[tuple[str, int], Cell]:
    """Cells, by variant and column, with verdicts after Holm's correction over each column or the whole table."""
    if correction == "table":
        return with_verdicts(cells)
    result: dict[tuple[str, int], Cell] = {}
    for number in range(n_columns):
        result |= with_verdicts({key: cell for key, cell in cells.items() if key[1] == number})
    return result


def detectable_by_column(rows: Sequence[VariantRow], n_columns: int, correction: str) -> tuple[float, ...]:
    """The least detectable difference of each column."""
    columns: list[dict[str, Cell]] = []
    for number in range(n_columns):
        cells = {row.variant: row.cells[number] for row in rows}
        columns.append({variant: cell for variant, cell in cells.items() if cell is not None and cell.tested})
    n_table = sum(len(cells) for cells in columns)
    return tuple(detectable_difference(cells, n_table if correction == "table" else len(cells)) for cells in columns)


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that were recorded; None if none was."""
    recorded = [float(value) for value in values if value is not None]
    return float(np.mean(recorded)) if recorded else None


def _row(runs: Sequence[Run], cells: Sequence[Cell | None]) -> VariantRow:
    first = runs[0]
    return VariantRow(
        variant=first.variant,
        method=first.method,
        title=first.title,
        role=first.role,
        seeds=tuple(sorted(run.seed for run in runs)),
        n_models=len(distinct_runs(runs)),
        seed_free=all(run.seed_free for run in runs),
        scalar_reward=all(run.scalar_reward for run in runs),
        cost=Cost(
            tokens=_mean([run.cost.get("tokens") for run in runs]),
            wall_seconds=_mean([run.cost.get("wall_seconds") for run in runs]),
            peak_memory_bytes=_mean([run.cost.get("peak_memory_bytes") for run in runs]),
        ),
        cells=tuple(cells),
    )


def variant_values(runs: Sequence[Run], column: Column, design: ItemDesign | None) -> VariantValues | None:
    """What the different models of a variant got in a column; None if no run has it.

    Credits are in the order of the design; a metric without credits has the shape [].
    """
    by_seed = {}
    left_out: Mapping[int, float] = {}
    for run in distinct_runs(runs):
        metric = run.metric(column)
        if metric is None:
            continue
        if design is None:
            by_seed[run.seed] = np.array(metric, dtype=np.float64)
        else:
            credits = run.credits[column.benchmark, column.metric]
            by_seed[run.seed] = credits["credit"].to_numpy(np.float64)
        left_out = run.left_out.get((column.benchmark, column.metric), {})
    if not by_seed:
        return None
    seed_free = all(run.seed_free for run in runs)
    return VariantValues(by_seed, role=runs[0].role, seed_free=seed_free, left_out=left_out)


def _with_counts(cell: Cell, runs: Sequence[Run], column: Column) -> Cell:
    """The cell with what scoring recorded."""
    reports = [run.benchmarks[column.benchmark] for run in runs if run.metric(column) is not None]
    truncated = [count for report in reports if (count := report.get("n_truncated")) is not None]
    return replace(
        cell,
        tie_rate=_mean([report.get("tie_rate") for report in reports]),
        n_scored=sum(int(report.get("n_scored", 0)) for report in reports),
        n_total=sum(int(report.get("n_total", 0)) for report in reports),
        n_truncated=max(truncated) if truncated else None,
    )
