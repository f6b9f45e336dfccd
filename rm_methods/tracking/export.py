"""Exports finished runs to MLflow, once each, however often it is called.

Each configured experiment is one MLflow experiment, and each variant and seed is one MLflow run.  The tags `run_key`,
`variant` and `training_digest` identify a run.  Every row has a timestamp that follows from the stored start time, so
the next export completes an interrupted one without doubling a row (MLflow stores an identical row once).  The tag
`export_digest` is set last: a run that has it for the present files is complete.  If the server cannot be reached, the
record says "pending" and nothing fails.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.experiment.evaluated_runs import evaluated_runs
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout, run_metrics
from rm_methods.files import read_json, write_json
from rm_methods.stored import read_record, read_summary
from rm_methods.system.tracking_address import redacted, resolve_uri
from rm_methods.tracking.records import CONFIGURED, ExportedFiles, RunRecord, legal_name, read_run
from rm_methods.tracking.store import (
    PROBE_SECONDS,
    import_mlflow,
    one_line,
    one_writer,
    unreachable_reason,
)

logger = logging.getLogger(__name__)

ROWS_PER_CALL = 1000  # MLflow's limit for metrics in one call
ITEMS_PER_CALL = 100  # MLflow's limit for parameters in one call
_PATHS = ("summary", "metrics", "training_log", "model", "further")  # of ExportedFiles, kept for a later attempt


@dataclass(frozen=True)
class RunExport:
    """One run to export: its files and the experiment it belongs to."""

    files: ExportedFiles
    experiment: str


def run_exports(experiment: Experiment, folder: Path) -> list[RunExport]:
    """The exports of an experiment, one for each run.

    Args:
        folder: of the experiment's results.

    Raises:
        UserError, DataError: a run is not finished, or not what the configuration asks for.
    """
    name = experiment.config["tracking"]["experiment"] or experiment.config["experiment"]
    layout = Layout(folder)
    with_pools = set(experiment.optimized_runs()) if experiment.pools() else set()
    exports = []
    for (variant, seed), run in zip(experiment.runs(), evaluated_runs(experiment, folder), strict=True):
        files = ExportedFiles(
            summary=run.summary,
            metrics=run.metrics,
            training_log=layout.training_log(variant, seed),
            model=layout.model(variant, seed),
            further=layout.overoptimization / run_metrics(variant, seed) if (variant, seed) in with_pools else None,
        )
        exports.append(RunExport(files, name))
    experiment.check_ppo(folder)
    for variant, seed in experiment.ppo_runs():
        run_folder = layout.ppo_run(variant, seed)
        files = ExportedFiles(
            summary=run_folder / "summary.json",
            metrics=None,
            training_log=run_folder / "metrics.jsonl",
            model=run_folder / "policy",
            purpose="ppo",
        )
        exports.append(RunExport(files, name))
    return exports


def export_run(
    summary: Path,
    metrics: Path,
    training_log: Path | None,
    model: Path,
    experiment: str,
    out: Path,
    tracking_uri: str | None = None,
) -> dict[str, Any]:
    """Export one run and write the outcome to `out`.

    Args:
        summary, metrics, training_log, model: see `ExportedFiles`.
        experiment: name of the MLflow experiment, made if missing.
        out: JSON file: {"status": "exported", "action": "created" | "completed" | "updated" | "unchanged", "run_id",
            ...} or {"status": "pending", "reason", ...}.
        tracking_uri: None for MLFLOW_TRACKING_URI, else the SQLite file mlflow.db in the current folder.

    Returns:
        The content of `out`.

    Raises:
        UserError: the files are wrong.  An address that cannot be used and a server that cannot be reached raise
            nothing.
    """
    return _export_all(
        [(RunExport(ExportedFiles(summary, metrics, training_log, model), experiment), out)], tracking_uri
    )[0]


def export_experiment(
    runs: Sequence[RunExport], out_folder: Path, tracking_uri: str | None = None
) -> list[dict[str, Any]]:
    """Export all runs in one process (importing MLflow costs a second), each with its record in
    <out_folder>/<variant>/seed<k>.json.

    Raises:
        UserError: as for `export_run`; two runs of one variant and seed.
    """
    targets: dict[Path, RunExport] = {}
    for run in runs:
        summary = read_summary(run.files.summary)
        name = f"seed{summary.get('seed')}{run.files.purpose and '_'}{run.files.purpose}.json"
        target = Path(out_folder) / str(summary.get("variant")) / name
        if target in targets:
            raise UserError(
                f"{run.files.summary} and {targets[target].files.summary} are of the same variant and seed. Keep one "
                "of them."
            )
        targets[target] = run
    return _export_all([(run, target) for target, run in targets.items()], tracking_uri)


def retry_pending(out_folder: Path, tracking_uri: str | None = None) -> list[dict[str, Any]]:
    """Export every run below `out_folder` whose record says "pending".

    Raises:
        UserError: the folder does not exist, or a record's files are gone.
    """
    out_folder = Path(out_folder)
    if not out_folder.is_dir():
        raise UserError(f"{out_folder}: no such folder. Run the track stage first.")
    waiting: list[tuple[RunExport, Path]] = []
    for target in sorted(out_folder.rglob("*.json")):
        record = read_json(target)
        if isinstance(record, dict) and record.get("status") == "pending":
            request = read_record(target, "a pending record of tracking", "track")["request"]
            files = ExportedFiles(
                summary=Path(request["summary"]),
                metrics=_path_or_none(request["metrics"]),
                training_log=_path_or_none(request["training_log"]),
                model=Path(request["model"]),
                further=_path_or_none(request["further"]),
                purpose=request["purpose"],
            )
            waiting.append((RunExport(files, request["experiment"]), target))
    return _export_all(waiting, tracking_uri)


def _path_or_none(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _export_all(runs: Sequence[tuple[RunExport, Path]], tracking_uri: str | None) -> list[dict[str, Any]]:
    if not runs:
        return []
    records = [read_run(run.files, run.experiment) for run, _ in runs]
    try:
        uri = resolve_uri(tracking_uri)
        reason = unreachable_reason(uri)
    except UserError as error:  # the address may have become unusable since the runs began; the runs are finished
        uri = tracking_uri or os.environ["MLFLOW_TRACKING_URI"]
        reason = str(error).rstrip(".")
    outcomes: list[dict[str, Any]] = []
    if reason is None:
        import_mlflow()
        outcomes, reason = _export_reachable(uri, runs, records)
    outcomes += [{"status": "pending", "reason": reason}] * (len(runs) - len(outcomes))
    results = []
    for (run, target), record, outcome in zip(runs, records, outcomes, strict=True):
        results.append(_described(run, record, outcome, uri))
        write_json(target, results[-1])
    _warn_if_pending(results)
    return results


def _export_reachable(
    uri: str, runs: Sequence[tuple[RunExport, Path]], records: Sequence[RunRecord]
) -> tuple[list[dict], str | None]:
    """Outcomes of the runs in order until the store stopped answering, and the reason for that (None if it answered
    always)."""
    from mlflow import MlflowClient

    outcomes: list[dict[str, Any]] = []
    try:
        with one_writer(uri):
            client = MlflowClient(tracking_uri=uri)
            for (run, _), record in zip(runs, records, strict=True):
                started = time.monotonic()
                try:
                    outcomes.append({"status": "exported"} | _export(client, record, run.experiment))
                except Exception as error:
                    # Of MLflow, SQLAlchemy or a driver: the runs are finished and must not fail for it.
                    logger.debug("export of %s seed %s failed", record.variant, record.seed, exc_info=True)
                    # A store that is gone or fails slowly would do so for every run.
                    slow = one_line(error, uri) if time.monotonic() - started > PROBE_SECONDS else None
                    if gone := slow or unreachable_reason(uri):
                        return outcomes, gone
                    outcomes.append({"status": "pending", "reason": one_line(error, uri)})
    except Exception as error:
        logger.debug("the store %s failed", redacted(uri), exc_info=True)
        return outcomes, one_line(error, uri)
    return outcomes, None


def _described(run: RunExport, record: RunRecord, outcome: dict[str, Any], uri: str) -> dict[str, Any]:
    """The content of a run's record."""
    description = outcome | {
        "experiment": run.experiment,
        "variant": record.variant,
        "seed": record.seed,
        "run_key": record.run_key,
        "tracking_uri": redacted(uri),
        "skipped_not_finite": record.skipped_not_finite,
        "skipped_cut_line": record.skipped_cut_line,
    }
    if outcome["status"] == "pending":
        paths = {key: getattr(run.files, key) for key in _PATHS}
        request = {key: None if path is None else str(path) for key, path in paths.items()}
        description["request"] = request | {"purpose": run.files.purpose, "experiment": run.experiment}
    return description


def _warn_if_pending(results: Sequence[dict[str, Any]]) -> None:
    pending = [result for result in results if result["status"] == "pending"]
    if pending:
        logger.warning(
            "%d of %d runs are not in MLflow yet (%s). Nothing is lost: run the track stage again when %s can be "
            "reached.",
            len(pending),
            len(results),
            pending[0]["reason"],
            pending[0]["tracking_uri"],
        )


def _export(client, record: RunRecord, experiment: str) -> dict[str, Any]:
    """Create, complete, update or leave alone the MLflow run of `record`."""
    experiment_id = experiment_id_of(client, experiment)
    runs = runs_of(client, experiment_id, variant=record.variant, seed=record.seed, configured=record.tags[CONFIGURED])
    run = next((r for r in runs if _is_same(r, record)), None) or _live_run(client, runs, record)
    action = "created"
    if run is not None:
        exported = run.data.tags.get("export_digest")
        if exported is None:
            action = "completed"
        else:
            action = "unchanged" if exported == record.export_digest else "updated"
    if run is None:
        tags = record.tags | {"training_digest": record.training_digest, "superseded": "false"}
        run = client.create_run(experiment_id, record.start_ms, tags, run_name=f"{record.variant} seed {record.seed}")
    rows = 0
    if action != "unchanged":
        rows = _log_everything(client, run, record)
    _mark_superseded(client, runs, run)
    return {"action": action, "experiment_id": experiment_id, "run_id": run.info.run_id, "rows_logged": rows}


def experiment_id_of(client, name: str) -> str:
    """The id of an MLflow experiment, which is made if it is missing."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise MlflowException(
            f"The experiment {name!r} was deleted in MLflow. Restore it with `mlflow experiments restore -x "
            f"{experiment.experiment_id}`."
        )
    return experiment.experiment_id


def runs_of(client, experiment_id: str, *, variant: str, seed: int, configured: str) -> list:
    """All runs of the variant and seed of one configured experiment, whatever their run key; several may share an
    MLflow one."""
    quote = '"' if "'" in variant else "'"
    condition = f"tags.variant = {quote}{variant}{quote} and tags.seed = '{seed}'"
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], condition, max_results=100, order_by=["attributes.start_time ASC"], page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return [run for run in runs if run.data.tags.get(CONFIGURED, configured) == configured]


def _is_same(run, record: RunRecord) -> bool:
    tags = run.data.tags
    return tags.get("run_key") == record.run_key and tags.get("training_digest") == record.training_digest


def _live_run(client, runs: Sequence, record: RunRecord):
    """The run that was written during this training (`rm_methods.tracking.live`), as a run of an unfinished export.

    It has the same rows as the log, so nothing is doubled.  None if it is gone, or if it was exported before.
    """
    run = next((r for r in runs if r.info.run_id == record.live_run), None)
    if run is None or "training_digest" in run.data.tags or run.data.tags.get("run_key") != record.run_key:
        return None
    client.set_tag(run.info.run_id, "training_digest", record.training_digest)
    return run


def _log_everything(client, run, record: RunRecord) -> int:
    """Log the missing parts of the run, mark it complete, and return the number of metric rows sent."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, start_ms = run.info.run_id, run.info.start_time
    end_ms = start_ms + record.end_ms - record.start_ms
    params = [Param(name, value) for name, value in record.params.items() if name not in run.data.params]
    for first in range(0, len(params), ITEMS_PER_CALL):
        client.log_batch(run_id, params=params[first : first + ITEMS_PER_CALL])
    model_id = _link_model(client, run, record)
    rows = []
    if (
        "export_digest" not in run.data.tags
    ):  # otherwise the steps are complete: a run that was trained again is another run
        rows = [Metric(m.name, m.value, start_ms + round(1000 * m.seconds), m.step) for m in record.steps]
    now_ms = int(time.time() * 1000)
    for name, value in record.finals.items():
        stored = run.data.metrics.get(name)
        if stored != value:
            # A later time makes a corrected value the one that is shown; the first has a time that a repetition gives
            # again.
            rows.append(Metric(name, value, end_ms if stored is None else now_ms, 0, model_id=model_id))
    for first in range(0, len(rows), ROWS_PER_CALL):
        client.log_batch(run_id, metrics=rows[first : first + ROWS_PER_CALL])
    _link_dataset(client, run, record)
    client.set_terminated(run_id, status="FINISHED", end_time=end_ms)
    tags = record.tags | {"model_id": model_id, "skipped_not_finite": str(record.skipped_not_finite)}
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    client.set_tag(run_id, "export_digest", record.export_digest)
    return len(rows)


def _link_dataset(client, run, record: RunRecord) -> None:
    """Name the training data as an input of the run: name and digest, no rows."""
    if record.dataset is None or run.inputs.dataset_inputs:
        return
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest, pairs = record.dataset
    source = CodeDatasetSource(tags={"dataset": name})
    # Marked abstract by mistake: its `profile` has a default.
    described = MetaDataset(source, name=name, digest=digest).to_dict()  # type: ignore[abstract]
    dataset = Dataset(**described, profile=json.dumps({"num_rows": pairs}))
    client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _link_model(client, run, record: RunRecord) -> str:
    """The id of an external model that links to the checkpoint (nothing is uploaded); made if missing."""
    from mlflow.entities import LoggedModelOutput

    run_id = run.info.run_id
    models = client.search_logged_models([run.info.experiment_id], f"tags.exported_run = '{run_id}'", max_results=1)
    if models:
        model = models[0]
    else:
        model = client.create_logged_model(
            run.info.experiment_id,
            name=legal_name(f"{record.variant}-seed{record.seed}").translate(str.maketrans("/:.", "___")),
            source_run_id=run_id,
            model_type=record.tags["purpose"],
            tags={"mlflow.model.isExternal": "true", "exported_run": run_id} | record.tags,
        )
    if model.status != "READY":
        client.finalize_logged_model(model.model_id, "READY")
    if not run.outputs or not run.outputs.model_outputs:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return model.model_id


def _mark_superseded(client, runs: Sequence, current) -> None:
    """Tag all other runs of the variant and seed; the one whose files are on disk now is never superseded.

    Every run has the tag, as a search for `!= 'true'` does not find runs without it.
    """
    for run in runs:
        superseded = "false" if run.info.run_id == current.info.run_id else "true"
        if run.data.tags.get("superseded") != superseded:
            client.set_tag(run.info.run_id, "superseded", superseded)
