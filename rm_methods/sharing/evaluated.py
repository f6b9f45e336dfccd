"""The measures of a run for its model card: its metrics with intervals, and the comparison that it belongs to."""

from __future__ import annotations

from pathlib import Path

from rm_methods.benchmarks.cards import BenchmarkCard, list_benchmark_cards, load_benchmark_card
from rm_methods.comparison.compare import build_comparison
from rm_methods.comparison.contamination import contamination_notes, contamination_of
from rm_methods.comparison.result import Column, Comparison
from rm_methods.comparison.runs import read_runs, recorded_columns
from rm_methods.config.resolve import reference_variant
from rm_methods.config.variants import noise_levels
from rm_methods.errors import UserError
from rm_methods.experiment.evaluated_runs import EvaluatedFiles, evaluated_files
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout
from rm_methods.experiment.stored_experiment import StoredExperiment, stored_experiment
from rm_methods.model_card.facts import experiment_folder
from rm_methods.model_card.measured import Measured, MeasuredMetric
from rm_methods.run_card import RunSummary
from rm_methods.statistics.cell import Cell
from rm_methods.stored import read_metrics


def measured_run(folder: Path, summary: RunSummary) -> Measured:
    """The metrics of a run, with those of its method over all seeds if the experiment is finished.

    Args:
        folder: the model folder of the run, in its experiment's folder.

    Returns:
        No metrics before the evaluation; `notes` then say why.

    Raises:
        DataError: the evaluation is of another run, or was edited.
    """
    root = experiment_folder(folder)
    layout = Layout(root) if root is not None else None
    files = _evaluated_files(layout, summary) if layout else None
    if layout is None or files is None:
        return Measured(notes=("The run was not evaluated on a benchmark.",))
    try:
        stored = stored_experiment(layout.folder)
    except UserError as error:
        reason = str(error).splitlines()[0].replace(str(layout.folder), layout.folder.name)
        columns = _columns_of(files)
        metrics = _metrics(files, columns, None, summary["variant"])
        return Measured(tuple(metrics), notes=(f"The comparison with other methods is not finished: {reason}",))
    columns = recorded_columns(stored.config, [files])
    comparison = _comparison(stored, columns, summary["variant"])
    reference = comparison.reference_row
    notes = contamination_notes(contamination_of(Experiment(dict(stored.config)), layout.folder))
    return Measured(
        tuple(_metrics(files, columns, comparison, summary["variant"])),
        reference=reference.label if reference else None,
        notes=tuple(notes),
    )


def _evaluated_files(layout: Layout, summary: RunSummary) -> EvaluatedFiles | None:
    """The files of the run's evaluation; None before it."""
    files = evaluated_files(layout, summary["variant"], summary["seed"])
    return files if files.metrics.is_file() and files.credits.is_file() else None


def _columns_of(files: EvaluatedFiles) -> list[Column]:
    """The metrics of a run that the cards of its benchmarks name, without a configuration."""
    columns = []
    for benchmark, result in read_metrics(files.metrics)["benchmarks"].items():
        card = _card(benchmark)
        if card is None:
            continue
        columns += [
            Column(benchmark, metric, heading, card.chance)
            for metric, heading in card.columns.items()
            if metric in result.get("metrics", {})
        ]
    return columns


def _card(benchmark: str) -> BenchmarkCard | None:
    return load_benchmark_card(benchmark) if benchmark in list_benchmark_cards() else None


def _comparison(stored: StoredExperiment, columns: list[Column], variant: str) -> Comparison:
    """The comparison of the experiment; with levels of label noise, that of the variant's first level.

    A variant of an earlier configuration is on no level.  The comparison is then that of the first level, which has the
    content-blind scorers.
    """
    runs = read_runs(stored.runs, columns)
    reference: str | None = reference_variant(dict(stored.config))
    if levels := noise_levels(stored.config):
        names = next((level.variants for level in levels if variant in level.variants), levels[0].variants)
        runs = [run for run in runs if run.variant in names]
        reference = next((name for name, plain in names.items() if plain == reference), None)
    return build_comparison(runs, columns, reference, stored.config["comparison"]["correction"])


def _metrics(
    files: EvaluatedFiles, columns: list[Column], comparison: Comparison | None, variant: str
) -> list[MeasuredMetric]:
    if not columns:
        return []
    run = build_comparison(read_runs([files], columns), columns, None).rows[0]
    cells = _cells_of(comparison, variant, len(columns))
    metrics = []
    for number, (column, cell) in enumerate(zip(columns, run.cells, strict=True)):
        if cell is None:
            continue
        card = _card(column.benchmark)
        metrics.append(
            MeasuredMetric(
                benchmark=column.benchmark,
                title=card.title if card else column.benchmark,
                hub_id=card.hub_id if card else None,
                revision=card.revision if card else None,
                metric=column.metric,
                heading=column.heading,
                own=cell.estimate,
                method=cells[number],
                content_blind=_best_content_blind(comparison, number),
                tie_rate=cell.tie_rate,
                n_truncated=cell.n_truncated,
            )
        )
    return metrics


def _cells_of(comparison: Comparison | None, variant: str, n_columns: int) -> tuple[Cell | None, ...]:
    rows = [row for row in comparison.rows if row.variant == variant] if comparison else []
    return rows[0].cells if rows else (None,) * n_columns


def _best_content_blind(comparison: Comparison | None, column: int) -> tuple[str, float] | None:
    """Name and value of the content-blind scorer with the highest value of a column."""
    best = None
    for row in comparison.rows if comparison else ():
        cell = row.cells[column]
        if row.content_blind and cell is not None and (best is None or cell.estimate.mean > best[1]):
            best = (row.label, cell.estimate.mean)
    return best
