"""The files of evaluated runs, which the comparison and the export read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rm_methods.errors import UserError
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout


@dataclass(frozen=True)
class EvaluatedFiles:
    """The files of one (variant, seed), as in docs/architecture.md: summary.json, metrics.json, credits.parquet."""

    summary: Path
    metrics: Path
    credits: Path

    @property
    def missing(self) -> list[Path]:
        """Those of the files that do not exist."""
        return [path for path in (self.summary, self.metrics, self.credits) if not path.exists()]


def evaluated_files(layout: Layout, variant: str, seed: int) -> EvaluatedFiles:
    """The files of a run, which need not exist."""
    return EvaluatedFiles(layout.summary(variant, seed), layout.metrics(variant, seed), layout.credits(variant, seed))


def evaluated_runs(experiment: Experiment, folder: Path) -> list[EvaluatedFiles]:
    """The files of every run of an experiment.

    Args:
        folder: of the experiment's results.

    Raises:
        UserError: a run is not finished.
        DataError: a result differs from the one that the configuration asks for; see `Experiment.check_results`.
    """
    runs = files_of_runs(experiment, folder)
    experiment.check_evaluated(folder)
    return runs


def files_of_runs(experiment: Experiment, folder: Path) -> list[EvaluatedFiles]:
    """The files of every run, which are there but not checked.

    Raises:
        UserError: a run is not finished.
    """
    layout = Layout(folder)
    runs = [evaluated_files(layout, variant, seed) for variant, seed in experiment.runs()]
    missing = [path for run in runs for path in run.missing]
    if missing:
        raise UserError(
            f"{len(missing)} files of the experiment are missing, the first is {missing[0]}. Run snakemake first."
        )
    return runs
