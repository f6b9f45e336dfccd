"""Exports a finished experiment to MLflow, each run once, however often it is called (`rm_methods.tracking.upload`).

Each configured experiment is one MLflow experiment.  It has a run for each variant and seed, a parent run for each
variant, and a run of the comparison.  If the server cannot be reached, the records say "pending" and nothing fails.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.experiment.evaluated_runs import files_of_runs
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import SUMMARY_RECORD, Layout, run_metrics
from rm_methods.files import write_json
from rm_methods.system.tracking_address import redacted, resolve_uri
from rm_methods.tracking.artifacts import comparison_artifacts, configuration_text, ppo_artifacts, run_artifacts
from rm_methods.tracking.comparison_table import ComparisonTable, read_comparison
from rm_methods.tracking.pages import compare_page, how_to_open, runs_page, view_key, view_state
from rm_methods.tracking.records import ExportedFiles, RunRecord, read_run
from rm_methods.tracking.store import (
    PROBE_SECONDS,
    import_mlflow,
    one_line,
    one_writer,
    unreachable_reason,
)
from rm_methods.tracking.summary_records import (
    comparison_record,
    experiment_text,
    metrics_by_variant,
    split_params,
    variant_records,
)
from rm_methods.tracking.upload import Uploader

logger = logging.getLogger(__name__)

_COMPARED_AT_ONCE = 10  # runs in the address of the compare page


@dataclass(frozen=True)
class ExperimentExport:
    """What is exported of an experiment.

    Attributes:
        config: resolved configuration.
        runs: the files of each run.
        comparison: folder of the comparison's tables, None without.
        artifacts: of the comparison: name in MLflow -> file.
    """

    config: Mapping[str, Any]
    runs: Sequence[ExportedFiles]
    comparison: Path | None = None
    artifacts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the MLflow experiment."""
        return str(self.config["tracking"]["experiment"] or self.config["experiment"])


@dataclass(frozen=True)
class ExportResult:
    """What became of an export.

    Attributes:
        runs: a record for each run: {"status": "exported", "action": "created" | "completed" | "updated" | "unchanged",
            "run_id", ...} or {"status": "pending", "reason", ...}.
        summary: the same for the runs of the variants and of the comparison, under "variants" and "comparison", with
            the addresses of the pages under "pages".
    """

    runs: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def all_records(self) -> list[dict[str, Any]]:
        """The records of all runs in MLflow."""
        return [*self.runs, *self.summary["variants"], self.summary["comparison"]]

    @property
    def pending(self) -> list[dict[str, Any]]:
        return [record for record in self.all_records if record["status"] == "pending"]


def experiment_export(experiment: Experiment, folder: Path) -> ExperimentExport:
    """What an experiment exports.

    Args:
        folder: of the experiment's results.

    Raises:
        UserError, DataError: a run is not finished, or not what the configuration asks for.
    """
    export = unchecked_export(experiment, folder)
    experiment.check_evaluated(folder)
    experiment.check_ppo(folder)
    return export


def unchecked_export(experiment: Experiment, folder: Path) -> ExperimentExport:
    """What an experiment exports, if its results are those that the configuration asks for.

    Raises:
        UserError: a run is not finished.
    """
    layout = Layout(folder)
    config = experiment.config
    with_pools = set(experiment.optimized_runs()) if experiment.pools() else set()
    runs = []
    for (variant, seed), run in zip(experiment.runs(), files_of_runs(experiment, folder), strict=True):
        runs.append(
            ExportedFiles(
                summary=run.summary,
                metrics=run.metrics,
                training_log=layout.training_log(variant, seed),
                model=layout.model(variant, seed),
                further=layout.overoptimization / run_metrics(variant, seed) if (variant, seed) in with_pools else None,
                artifacts=run_artifacts(layout, variant, seed, config["benchmarks"]),
            )
        )
    for variant, seed in experiment.ppo_runs():
        run_folder = layout.ppo_run(variant, seed)
        runs.append(
            ExportedFiles(
                summary=run_folder / "summary.json",
                metrics=None,
                training_log=run_folder / "metrics.jsonl",
                model=run_folder / "policy",
                kind="ppo",
                artifacts=ppo_artifacts(run_folder),
            )
        )
    return ExperimentExport(config, runs, layout.comparison, comparison_artifacts(layout))


def export_experiment(export: ExperimentExport, out_folder: Path, tracking_uri: str | None = None) -> ExportResult:
    """Export all runs of an experiment in one process (importing MLflow costs a second).

    Args:
        out_folder: gets a record for each run, <variant>/seed<k>.json, and comparison.json.
        tracking_uri: None for MLFLOW_TRACKING_URI, else the SQLite file mlflow.db in the current folder.

    Raises:
        UserError: the files are wrong; two runs of one variant and seed.  An address that cannot be used and a server
            that cannot be reached raise nothing.
    """
    batch = _Batch(export)
    try:
        uri = resolve_uri(tracking_uri)
        reason = unreachable_reason(uri)
    except UserError as error:  # the address may have become unusable since the runs began; the runs are finished
        uri = tracking_uri or os.environ["MLFLOW_TRACKING_URI"]
        reason = str(error).rstrip(".")
    if reason is None:
        import_mlflow()
        reason = _export_reachable(uri, batch)
    result = batch.result(uri, reason)
    for record, run in zip(result.runs, batch.runs, strict=True):
        suffix = "" if run.kind == "seed" else f"_{run.kind}"
        write_json(Path(out_folder) / str(run.variant) / f"seed{run.seed}{suffix}.json", record)
    write_json(Path(out_folder) / SUMMARY_RECORD, result.summary)
    _warn_if_pending(result, uri)
    return result


class _Batch:
    """The records of an experiment, and what became of each.

    Args:
        export: what is exported.

    Attributes:
        runs, variants, comparison: records to upload.
        problem: why no comparison is shown, None if it is.
        metrics: names of the columns of the comparison; view: key of the view of the runs.
        outcomes: by identity of the record.
    """

    def __init__(self, export: ExperimentExport):
        self.export = export
        config = export.config
        records: dict[tuple, RunRecord] = {}
        for files in export.runs:
            record = read_run(files, config["experiment"])
            if record.identity in records:
                raise UserError(
                    f"{files.summary} is of the same variant and seed as another run, {record.variant} seed "
                    f"{record.seed}. Keep one of them."
                )
            records[record.identity] = record
        runs, params, common_params = split_params(list(records.values()))
        text = configuration_text(config)
        self.runs = [replace(run, artifacts={**run.artifacts, "configuration.yaml": text}) for run in runs]
        table, self.problem = _comparison(export, runs)
        self.variants = variant_records(runs, params, table) if runs else []
        self.comparison: RunRecord | None = None
        if runs:
            record = comparison_record(config, runs, common_params, table, problem=self.problem)
            files_to_upload = {name: path for name, path in export.artifacts.items() if path.is_file()}
            self.comparison = replace(record, artifacts={**files_to_upload, **record.artifacts})
        self.metrics = [column.metric for column in next(iter(table.rows.values()))] if table and table.rows else []
        self.view = view_key(config["experiment"])
        self.outcomes: dict[tuple, dict[str, Any]] = {}

    def result(self, uri: str, reason: str | None) -> ExportResult:
        """The records of what became of everything.

        Args:
            reason: why the rest is pending.
        """
        runs = [self._described(run, uri, reason) for run in self.runs]
        variants = [self._described(run, uri, reason) for run in self.variants]
        comparison: dict[str, Any] = {"status": "exported"}
        if self.comparison is not None:
            comparison = self._described(self.comparison, uri, reason)
        summary = {"comparison": comparison, "variants": variants, "not_compared": self.problem}
        stored = [record for record in (comparison, *variants, *runs) if "run_id" in record]
        if stored:
            experiment_id = stored[0]["experiment_id"]
            ids = [record["run_id"] for record in variants if "run_id" in record][:_COMPARED_AT_ONCE]
            page = runs_page(uri, experiment_id, self.view)
            summary["pages"] = {
                "runs": page,
                "variants": compare_page(uri, experiment_id, ids),
                "how_to_open": how_to_open(uri, page),
            }
        return ExportResult(runs, summary)

    def _described(self, record: RunRecord, uri: str, reason: str | None) -> dict[str, Any]:
        outcome = self.outcomes.get(record.identity, {"status": "pending", "reason": reason})
        described: dict[str, Any] = {**outcome, "experiment": self.export.name, "kind": record.kind}
        if record.variant is not None:
            described["variant"] = record.variant
        described["tracking_uri"] = redacted(uri)
        if record.seed is not None:
            described |= {
                "seed": record.seed,
                "run_key": record.run_key,
                "skipped_not_finite": record.skipped_not_finite,
                "skipped_cut_line": record.skipped_cut_line,
            }
        return described


def _comparison(export: ExperimentExport, runs: Sequence[RunRecord]) -> tuple[ComparisonTable | None, str | None]:
    """The stored comparison, and why none is shown."""
    if export.comparison is None:
        return None, "no comparison is stored"
    table = read_comparison(export.comparison)
    if isinstance(table, str):
        return None, table
    problem = table.problem(metrics_by_variant(runs))
    return (None, problem) if problem else (table, None)


def _export_reachable(uri: str, batch: _Batch) -> str | None:
    """Upload everything, in order, until the store stops answering; the reason for that, None if it answered always."""
    from mlflow import MlflowClient

    def attempt(record: RunRecord, action: Callable[[], dict[str, Any]]) -> str | None:
        """Why the store is gone, None if it is not."""
        started = time.monotonic()
        try:
            batch.outcomes[record.identity] = {"status": "exported"} | action()
        except Exception as error:
            # Of MLflow, SQLAlchemy or a driver: the runs are finished and must not fail for it.
            logger.debug("export of %s failed", record.name, exc_info=True)
            # A store that is gone or fails slowly would do so for every run.
            slow = one_line(error, uri) if time.monotonic() - started > PROBE_SECONDS else None
            if gone := slow or unreachable_reason(uri):
                return gone
            batch.outcomes[record.identity] = {"status": "pending", "reason": one_line(error, uri)}
        return None

    try:
        with one_writer(uri):
            client = MlflowClient(tracking_uri=uri)
            config = batch.export.config
            uploader = Uploader(client, batch.export.name, config["experiment"], uri)
            uploader.describe(experiment_text(config), (batch.view, view_state(config["experiment"], batch.metrics)))
            for record in _in_order(batch):
                # Without a parent that could be stored, a run is stored alone; the next export moves it below one.
                parent = batch.outcomes.get(("variant", record.variant, None), {}).get("run_id")
                gone = attempt(record, partial(uploader.upload, record, parent if record.seed is not None else None))
                if gone is not None:
                    return gone
    except Exception as error:
        logger.debug("the store %s failed", redacted(uri), exc_info=True)
        return one_line(error, uri)
    return None


def _in_order(batch: _Batch) -> list[RunRecord]:
    """Parents before their runs; the comparison last."""
    return [*batch.variants, *batch.runs, *([batch.comparison] if batch.comparison is not None else [])]


def _warn_if_pending(result: ExportResult, uri: str) -> None:
    if result.pending:
        logger.warning(
            "%d of %d runs are not in MLflow yet (%s). Nothing is lost: run the track stage again when %s can be "
            "reached.",
            len(result.pending),
            len(result.all_records),
            result.pending[0]["reason"],
            redacted(uri),
        )
