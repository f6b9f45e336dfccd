"""What an experiment's folder holds so far: the comparison of the runs that are finished, and which are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.comparison.compare import build_comparison
from rm_methods.comparison.contamination import BenchmarkContamination, contamination_of
from rm_methods.comparison.noise import build_levels, merge_levels
from rm_methods.comparison.result import Column, Comparison
from rm_methods.comparison.runs import Run, read_runs, recorded_columns
from rm_methods.config.resolve import read_resolved, reference_variant
from rm_methods.config.variants import noise_levels
from rm_methods.errors import DataError, UserError
from rm_methods.experiment.evaluated_runs import evaluated_files
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout
from rm_methods.experiment.stored_experiment import run_problems, stored_experiment


@dataclass(frozen=True)
class StoredResults:
    """The finished part of an experiment.

    Attributes:
        config: the resolved configuration.
        folder: of the experiment's results.
        runs: those that are compared.
        comparison: of those runs; None if none is finished.
        n_runs: number of runs that the configuration asks for.
        missing: "variant seed k" of each run that is not finished, in the order of the configuration.
        problems: why finished results are not shown, one sentence each.
    """

    config: Mapping[str, Any]
    folder: Path
    runs: tuple[Run, ...]
    comparison: Comparison | None
    n_runs: int
    missing: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        return not self.missing and not self.problems


def newest_config(folder: Path) -> Mapping[str, Any]:
    """The configuration that the results in a folder were made with; of an unfinished experiment, the newest one.

    Raises:
        UserError: the folder holds no experiment.
        ConfigError: the stored configuration was damaged.
    """
    try:
        return stored_experiment(folder).config
    except DataError:
        files = sorted((folder / "config").glob("*.yaml"), key=lambda path: path.stat().st_mtime)
        return read_resolved(files[-1])


def stored_results(config: Mapping[str, Any], folder: Path) -> StoredResults:
    """Compare the runs of an experiment that are finished, and say which are not.

    If one result is damaged or differs from the configuration, `problems` names it and nothing is compared.
    """
    experiment = Experiment(config)
    layout = Layout(folder)
    files = []
    finished = []
    missing = []
    for variant, seed in experiment.runs():
        run = evaluated_files(layout, variant, seed)
        if run.missing:
            missing.append(f"{variant} seed {seed}")
        else:
            files.append(run)
            finished.append((variant, seed))
    problems = []
    try:
        for variant, seed in finished:
            problems += run_problems(config, folder, variant, seed)
        experiment.check_sources(folder, finished)
    except UserError as error:
        problems.append(str(error))
    runs: list[Run] = []
    comparison = None
    if files and not problems:
        try:
            columns = recorded_columns(config, files)
            runs = read_runs(files, columns)
            overlaps = contamination_of(experiment, folder) if not missing else []
            comparison = _compared(config, runs, columns, overlaps)
        except UserError as error:
            problems.append(str(error))
    return StoredResults(
        config=config,
        folder=folder,
        runs=tuple(runs),
        comparison=comparison,
        n_runs=len(experiment.runs()),
        missing=tuple(missing),
        problems=tuple(problems),
    )


def _compared(
    config: Mapping[str, Any],
    runs: Sequence[Run],
    columns: Sequence[Column],
    overlaps: Sequence[BenchmarkContamination],
) -> Comparison:
    """The comparison of the runs; without tests as long as no run of the reference is finished."""
    reference = reference_variant(config)
    correction = config["comparison"]["correction"]
    if levels := noise_levels(config):
        comparisons = build_levels(runs, columns, reference, levels, correction, contamination=overlaps)
        return merge_levels(levels, comparisons)
    present = any(run.variant == reference for run in runs)
    return build_comparison(runs, columns, reference if present else None, correction, contamination=overlaps)
