"""Writes run records to one MLflow experiment, each once, however often it is called.

Every row has a timestamp that follows from the stored start time, so the next export completes an interrupted one
without doubling a row (MLflow stores an identical row once).  The tag `hashes` names the training that a run is of, and
is completed last: a run that has `exported` there for the present files is complete.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_methods.files import content_hash
from rm_methods.tracking.artifacts import within_limit
from rm_methods.tracking.pages import VIEW_TAG
from rm_methods.tracking.records import CONFIGURED, KIND, NOTE, RunRecord, legal_name
from rm_methods.tracking.store import database_file

ROWS_PER_CALL = 1000  # MLflow's limit for metrics in one call
ITEMS_PER_CALL = 100  # MLflow's limit for parameters in one call
RUNS_PER_PAGE = 1000
HASHES = "hashes"  # tag: JSON object with "run_key", "training", and "exported" once the run is complete
PARENT = "mlflow.parentRunId"
_WRITTEN_NOTE = "rm_methods.description"  # tag of an experiment: hash of the description that an export wrote


def hashes_of(run) -> dict[str, str]:
    """The hashes of a run in MLflow; empty for a run of an earlier release or of another program."""
    try:
        hashes = json.loads(run.data.tags.get(HASHES, "{}"))
    except ValueError:
        return {}
    return hashes if isinstance(hashes, dict) else {}


def hashes_text(**hashes: str) -> str:
    """The text of the tag `hashes`."""
    return json.dumps({name: value for name, value in hashes.items() if value})


def experiment_id_of(client, name: str, uri: str) -> str:
    """The id of an MLflow experiment, which is made if it is missing."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            location = _artifact_folder(name, uri)
            return client.create_experiment(name, location)
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


def _artifact_folder(name: str, uri: str) -> str | None:
    """Where the artifacts of a new experiment go: beside a SQLite file; None leaves it to the server or to MLflow."""
    database = database_file(uri)
    if database is None:
        return None
    folder = re.sub(r"[^\w.-]", "_", name) or "_"
    return (database.absolute().parent / "mlruns" / folder).as_uri()


def runs_of_experiment(client, experiment_id: str, configured: str) -> list:
    """All runs of one configured experiment that are not deleted, the oldest first; several may share an MLflow
    experiment."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], max_results=RUNS_PER_PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return [run for run in runs if run.data.tags.get(CONFIGURED, configured) == configured]


def identity_of(run) -> tuple[str, str | None, int | None]:
    """Kind, variant and seed of a run in MLflow, as in `RunRecord.identity`."""
    tags = run.data.tags
    seed = int(tags["seed"]) if tags.get("seed", "").isdigit() else None
    variant = tags.get("variant")
    if KIND in tags:
        return tags[KIND], variant, seed
    # A run of an earlier release, which named the policies "<variant> ppo".
    if tags.get("purpose") == "ppo" and variant is not None:
        return "ppo", variant.removesuffix(" ppo"), seed
    return "seed", variant, seed


class Uploader:
    """Writes the records of one configured experiment.

    Args:
        client: of MLflow.
        name: of the MLflow experiment; configured: of the experiment in its configuration.
        uri: of the store.
    """

    def __init__(self, client, name: str, configured: str, uri: str):
        self.client = client
        self.experiment_id = experiment_id_of(client, name, uri)
        self.runs: dict[tuple, list] = {}
        for run in runs_of_experiment(client, self.experiment_id, configured):
            self.runs.setdefault(identity_of(run), []).append(run)

    def describe(self, text: str, view: tuple[str, str]) -> None:
        """Set the experiment's description, unless a person has written another one, and the view of its runs.

        Args:
            view: key and state (`rm_methods.tracking.pages`).
        """
        tags = self.client.get_experiment(self.experiment_id).tags
        if tags.get(VIEW_TAG + view[0]) != view[1]:
            self.client.set_experiment_tag(self.experiment_id, VIEW_TAG + view[0], view[1])
        present, written = tags.get(NOTE), tags.get(_WRITTEN_NOTE)
        if present == text or (present and content_hash(present) != written):
            return
        self.client.set_experiment_tag(self.experiment_id, _WRITTEN_NOTE, content_hash(text))
        self.client.set_experiment_tag(self.experiment_id, NOTE, text)

    def upload(self, record: RunRecord, parent: str | None = None) -> dict[str, Any]:
        """Create, complete, update or leave alone the MLflow run of a record.

        Args:
            parent: id of the run that this one is shown below.
        """
        runs = self.runs.get(record.identity, [])
        run = next((run for run in runs if _is_same(run, record)), None) or self._live_run(runs, record)
        action = "created"
        if run is not None:
            exported = hashes_of(run).get("exported")
            if exported is None:
                action = "completed"
            else:
                action = "unchanged" if exported == record.export_digest else "updated"
        else:
            run = self._create(record, parent)
        rows = 0
        if action != "unchanged":
            rows = self._log_everything(run, record, is_new=action == "created")
        if parent is not None and run.data.tags.get(PARENT) != parent:
            self.client.set_tag(run.info.run_id, PARENT, parent)
        self._mark_superseded(runs, run)
        return {
            "action": action,
            "experiment_id": self.experiment_id,
            "run_id": run.info.run_id,
            "rows_logged": rows,
        }

    def _create(self, record: RunRecord, parent: str | None):
        tags = record.tags | {"superseded": "false"} | _checkpoint(record)
        tags[HASHES] = hashes_text(run_key=record.run_key, training=record.training_digest)
        if parent is not None:
            tags[PARENT] = parent
        return self.client.create_run(self.experiment_id, record.start_ms, tags, run_name=record.name)

    def _live_run(self, runs: Sequence, record: RunRecord):
        """The run that was written during this training (`rm_methods.tracking.live`), as a run of an unfinished export.

        It has the same rows as the log, so nothing is doubled.  None if it is gone, or if it was exported before.
        """
        run = next((r for r in runs if r.info.run_id == record.live_run), None)
        if run is None or "training" in hashes_of(run) or hashes_of(run).get("run_key") != record.run_key:
            return None
        text = hashes_text(run_key=record.run_key, training=record.training_digest)
        self.client.set_tag(run.info.run_id, HASHES, text)
        return run

    def _log_everything(self, run, record: RunRecord, *, is_new: bool) -> int:
        """Log the missing parts of the run, mark it complete, and return the number of metric rows sent."""
        from mlflow.entities import Metric, Param, RunTag

        client = self.client
        run_id, start_ms = run.info.run_id, run.info.start_time
        end_ms = start_ms + record.end_ms - record.start_ms
        params = [Param(name, value) for name, value in record.params.items() if name not in run.data.params]
        for first in range(0, len(params), ITEMS_PER_CALL):
            client.log_batch(run_id, params=params[first : first + ITEMS_PER_CALL])
        model_id = self._link_model(run, record, is_new=is_new) if record.checkpoint is not None else None
        rows = []  # the final metrics first: MLflow's page of a run lists them in this order
        now_ms = int(time.time() * 1000)
        for name, value in record.finals.items():
            stored = run.data.metrics.get(name)
            if stored != value:
                # A later time makes a corrected value the one that is shown; the first has a time that a repetition
                # gives again.
                rows.append(Metric(name, value, end_ms if stored is None else now_ms, 0, model_id=model_id))
        # A complete run has all steps: a run that was trained again is another run.
        if "exported" not in hashes_of(run):
            rows += [Metric(m.name, m.value, start_ms + round(1000 * m.seconds), m.step) for m in record.steps]
        for first in range(0, len(rows), ROWS_PER_CALL):
            client.log_batch(run_id, metrics=rows[first : first + ROWS_PER_CALL])
        self._link_dataset(run, record)
        client.set_terminated(run_id, status="FINISHED", end_time=end_ms)
        if not is_new:
            tags = record.tags | _checkpoint(record)
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        if "live" in run.data.tags:
            client.delete_tag(run_id, "live")
        self._log_artifacts(run, record)
        hashes = hashes_text(run_key=record.run_key, training=record.training_digest, exported=record.export_digest)
        client.set_tag(run_id, HASHES, hashes)
        return len(rows)

    def _log_artifacts(self, run, record: RunRecord) -> None:
        """Upload the files in one call; those of an earlier export are overwritten."""
        from mlflow.exceptions import MlflowException

        artifacts = within_limit(record.artifacts)
        if not artifacts:
            return
        with tempfile.TemporaryDirectory() as scratch:
            for name, source in artifacts.items():
                target = Path(scratch) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, str):
                    target.write_text(source, encoding="utf-8")
                else:
                    shutil.copyfile(source, target)
            try:
                self.client.log_artifacts(run.info.run_id, scratch)
            except OSError as error:
                location = run.info.artifact_uri.split("?")[0]
                raise MlflowException(
                    f"The artifacts of {record.name} cannot be written to {location} ({error.strerror or error}). If "
                    "that is a folder of the server, start the server with --serve-artifacts."
                ) from None

    def _link_dataset(self, run, record: RunRecord) -> None:
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
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _link_model(self, run, record: RunRecord, *, is_new: bool) -> str:
        """The id of an external model that links to the checkpoint (nothing is uploaded); made if missing."""
        from mlflow.entities import LoggedModelOutput

        run_id = run.info.run_id
        models = []
        if not is_new:
            condition = f"tags.exported_run = '{run_id}'"
            models = self.client.search_logged_models([self.experiment_id], condition, max_results=1)
        if models:
            model = models[0]
        else:
            tags = {"mlflow.model.isExternal": "true", "exported_run": run_id} | _checkpoint(record)
            tags |= {name: record.tags[name] for name in ("variant", "method", "seed")}
            model = self.client.create_logged_model(
                self.experiment_id,
                name=legal_name(record.name.replace(" ", "-")).translate(str.maketrans("/:.", "___")),
                source_run_id=run_id,
                model_type="policy" if record.kind == "ppo" else "reward model",
                tags=tags,
            )
        if model.status != "READY":
            self.client.finalize_logged_model(model.model_id, "READY")
        if not run.outputs or not run.outputs.model_outputs:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return model.model_id

    def _mark_superseded(self, runs: Sequence, current) -> None:
        """Tag all other runs of the same identity; the one whose files are on disk now is never superseded.

        Every run has the tag, as a search for `!= 'true'` does not find runs without it.
        """
        for run in runs:
            superseded = "false" if run.info.run_id == current.info.run_id else "true"
            if run.data.tags.get("superseded") != superseded:
                self.client.set_tag(run.info.run_id, "superseded", superseded)


def _checkpoint(record: RunRecord) -> dict[str, str]:
    return {} if record.checkpoint is None else {"checkpoint": record.checkpoint}


def _is_same(run, record: RunRecord) -> bool:
    hashes = hashes_of(run)
    return hashes.get("run_key", "") == record.run_key and hashes.get("training") == record.training_digest
