"""Logs a training to MLflow while it runs, on request (`tracking.live`).

A thread sends the lines of `metrics.jsonl`; the training only puts them into a queue.  Any failure is reported once,
and the training goes on without live metrics.

The run in MLflow has the tag `live`, and no `training` in the tag `hashes`.  `summary.json` names it, and the export
completes it instead of making another one: its rows have the times that the export would give them, and MLflow stores
an identical row once.  A live run of an earlier attempt that no export has completed is deleted when the next attempt
begins.
"""

from __future__ import annotations

import contextlib
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.system.tracking_address import resolve_uri
from rm_methods.tracking.records import CONFIGURED, KIND, SOURCE, StepMetric, step_metrics
from rm_methods.tracking.store import ensure_store, import_mlflow, one_line, unreachable_reason
from rm_methods.tracking.upload import (
    HASHES,
    ROWS_PER_CALL,
    experiment_id_of,
    hashes_of,
    hashes_text,
    identity_of,
    runs_of_experiment,
)

WAITING_ROWS = 1000  # lines that wait for a slow server; the export adds those that find no room
SECONDS_TO_END = 5  # that the end of a training waits for the server


@dataclass(frozen=True)
class LiveRun:
    """The identity of a run in MLflow.

    Attributes:
        experiment: name of the MLflow experiment.
        variant, seed: of the run.
        run_key: makes the run key; called in the thread, as it reads files.
        tags: further tags; "configured_experiment" and "checkpoint" are among them.
    """

    experiment: str
    variant: str
    seed: int
    run_key: Callable[[], str]
    tags: Mapping[str, str]


class LiveMetrics:
    """Sends the lines of a training to MLflow; an `rm_methods.training.observer.Observer`.

    Args:
        run: the identity of the run.
        tracking_uri: None for the default address.
    """

    def __init__(self, run: LiveRun, tracking_uri: str | None):
        self.run = run
        self.tracking_uri = tracking_uri
        self.run_id: str | None = None
        self._queue: queue.Queue[Mapping[str, Any]] = queue.Queue(WAITING_ROWS)
        self._thread: threading.Thread | None = None
        self._start_ms = 0
        self._rows_before: list[Mapping[str, Any]] = []
        self._ending = threading.Event()
        self._is_finished = False
        self._is_reported = False

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Start the thread; `rows` are sent first."""
        seconds_before = max((row["time"] for row in rows), default=0.0)
        self._start_ms = round(1000 * (time.time() - seconds_before))
        self._rows_before = list(rows)
        # A daemon thread: one that waits for a server does not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="live metrics", daemon=True)
        self._thread.start()

    def row(self, row: Mapping[str, Any]) -> None:
        """Queue a line; without room for it, it is left to the export."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(row)

    def end(self, *, is_finished: bool) -> str | None:
        """Wait a few seconds for the lines that are queued.

        Returns:
            The id of the run in MLflow, None if it could not be made.
        """
        if self._thread is None:
            return None
        self._is_finished = is_finished
        self._ending.set()
        self._thread.join(SECONDS_TO_END)
        if self._thread.is_alive():
            self._report(f"not all lines were sent {SECONDS_TO_END} s after the end")
        return self.run_id

    def _work(self) -> None:
        uri = self.tracking_uri or ""
        try:
            uri = resolve_uri(self.tracking_uri)
            if reason := unreachable_reason(uri):
                self._report(reason)
                return
            self._send(uri)
        except Exception as error:  # of MLflow, SQLAlchemy or a driver: a training must not fail for it
            self._report(one_line(error, uri))

    def _send(self, uri: str) -> None:
        ensure_store(uri)
        import_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        run_id = self._make_run(client, uri)
        self._log(client, run_id, self._rows_before)
        while not self._ending.is_set() or not self._queue.empty():
            self._log(client, run_id, self._waiting())
        client.set_terminated(run_id, status="FINISHED" if self._is_finished else "KILLED")

    def _make_run(self, client, uri: str) -> str:
        """Make the run, after removing those of earlier attempts of the same training."""
        run = self.run
        run_key = run.run_key()
        experiment_id = experiment_id_of(client, run.experiment, uri)
        for other in runs_of_experiment(client, experiment_id, run.tags[CONFIGURED]):
            tags = other.data.tags
            is_live_only = "live" in tags and "training" not in hashes_of(other)
            is_same = identity_of(other) == ("seed", run.variant, run.seed)
            if is_live_only and is_same and tags.get("checkpoint") == run.tags["checkpoint"]:
                client.delete_run(other.info.run_id)
        tags = dict(run.tags) | {
            HASHES: hashes_text(run_key=run_key),
            "variant": run.variant,
            "seed": str(run.seed),
            "live": "true",
            "superseded": "false",
        }
        name = f"{run.variant} seed {run.seed}"
        self.run_id = client.create_run(experiment_id, self._start_ms, tags, run_name=name).info.run_id
        return self.run_id

    def _waiting(self) -> list[Mapping[str, Any]]:
        """The lines in the queue; waits up to a second for the first one."""
        rows: list[Mapping[str, Any]] = []
        try:
            rows.append(self._queue.get(timeout=1.0 if not self._ending.is_set() else 0.01))
            while True:
                rows.append(self._queue.get_nowait())
        except queue.Empty:
            return rows

    def _log(self, client, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics: list[StepMetric] = []
        for row in rows:
            metrics += step_metrics(row, row["step"], row["time"])
        sent = [
            Metric(m.name, m.value, self._start_ms + round(1000 * m.seconds), m.step)
            for m in metrics
            if math.isfinite(m.value)
        ]
        for first in range(0, len(sent), ROWS_PER_CALL):
            client.log_batch(run_id, metrics=sent[first : first + ROWS_PER_CALL])

    def _report(self, reason: str) -> None:
        if self._is_reported:
            return
        self._is_reported = True
        print(
            f"{self.run.variant} seed {self.run.seed}: no live metrics in MLflow from now on: {reason.rstrip('.')}. "
            "The training goes on, and `rm-methods track` exports the run afterward.",
            file=sys.stderr,
            flush=True,
        )


def live_metrics(
    config: Mapping[str, Any], variant: str, seed: int, model: Path, run_key: Callable[[], str]
) -> LiveMetrics:
    """The live metrics of a run, for a configuration with `tracking.live`.

    Args:
        model: the model folder of the run, which the export calls `checkpoint`.
        run_key: makes the run key.
    """
    tracking = config["tracking"]
    tags = {
        KIND: "seed",
        CONFIGURED: config["experiment"],
        "method": config["methods"][variant]["method"],
        SOURCE: "rm-methods",
        "checkpoint": str(model.resolve()),
    }
    run = LiveRun(tracking["experiment"] or config["experiment"], variant, seed, run_key, tags)
    return LiveMetrics(run, tracking["uri"])
