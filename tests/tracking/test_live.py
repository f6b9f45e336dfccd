"""Live metrics: they arrive, the export completes the same run, and no server can stop or delay a training."""

from __future__ import annotations

import http.server
import json
import socket
import sqlite3
import threading
import time

import pytest

from rm_methods.tracking import live
from rm_methods.tracking.live import LiveMetrics, LiveRun
from rm_methods.tracking.upload import hashes_of
from tests.tracking.conftest import export_runs
from tests.training.commands import run, train_command


def rows_of(steps):
    """Lines like those that `finished_run` writes."""
    return [{"step": step, "time": step * 0.5, "loss": 1 / step, "learning_rate": 1e-5} for step in steps]


@pytest.fixture
def metrics_of(tmp_path):
    """Function that makes the live metrics of the run that `finished_run` writes."""

    def make(uri, variant="bradley_terry", run_key="key0"):
        checkpoint = tmp_path / "files" / variant / "seed0" / "model"
        tags = {
            "kind": "seed",
            "configured_experiment": "paper",
            "checkpoint": str(checkpoint),
            "method": "bradley_terry",
        }
        return LiveMetrics(LiveRun("paper", variant, 0, lambda: run_key, tags), uri)

    return make


def runs(client):
    """All runs of seeds."""
    runs = client.search_runs([client.get_experiment_by_name("paper").experiment_id])
    return [run for run in runs if run.data.tags["kind"] == "seed"]


def history(client, run_id, name):
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, name))


def losses(steps):
    return [(step, 1 / step) for step in steps]


def arrived(client, run_id, count):
    """Wait until the server has so many losses."""
    deadline = time.monotonic() + 60
    while len(history(client, run_id, "train/loss")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_rows_arrive_during_training_and_the_export_completes_the_same_run(
    store, client, finished_run, metrics_of, tmp_path
):
    observer = metrics_of(store)
    observer.begin([])
    deadline = time.monotonic() + 60
    while observer.run_id is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    observer.row({"step": 1, "time": 0.5, "loss": 1.0, "learning_rate": 1e-5, "validation/test/accuracy": 0.75})
    arrived(client, observer.run_id, 1)
    assert runs(client)[0].info.status == "RUNNING"
    for row in rows_of((2, 3)):
        observer.row(row)
    run_id = observer.end(is_finished=True)
    assert history(client, run_id, "train/loss") == losses((1, 2, 3))
    assert history(client, run_id, "validation/test/accuracy") == [(1, 0.75)]
    assert runs(client)[0].info.status == "FINISHED"

    finished = finished_run(live_run=run_id)
    results = [export_runs([finished], tmp_path / "out", store)[0] for _ in range(2)]
    assert [result["action"] for result in results] == ["completed", "unchanged"]
    assert [result["run_id"] for result in results] == [run_id, run_id]
    assert len(runs(client)) == 1
    assert history(client, run_id, "train/loss") == losses((1, 2, 3))
    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        assert database.execute("select count(*) from metrics where key = 'train/loss'").fetchone() == (3,)
    assert runs(client)[0].data.metrics["rm_bench/overall"] == 0.61


def test_the_export_adds_the_rows_that_found_no_room(store, client, finished_run, metrics_of, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "WAITING_ROWS", 2)
    observer = metrics_of(store)
    for row in rows_of(range(1, 6)):
        observer.row(row)
    observer.begin([])
    run_id = observer.end(is_finished=True)
    arrived(client, run_id, 2)
    assert history(client, run_id, "train/loss") == losses((1, 2))
    result = export_runs([finished_run(steps=5, live_run=run_id)], tmp_path / "out", store)[0]
    assert (result["action"], result["run_id"]) == ("completed", run_id)
    assert history(client, run_id, "train/loss") == losses(range(1, 6))


def test_a_resumed_training_replaces_the_live_run_of_its_first_attempt(store, client, metrics_of):
    first = metrics_of(store)
    first.begin([])
    for row in rows_of((1, 2, 3)):
        first.row(row)
    first_id = first.end(is_finished=False)
    other = metrics_of(store, variant="hinge")
    other.begin([])
    other_id = other.end(is_finished=True)
    assert {run.info.run_id: run.info.status for run in runs(client)} == {first_id: "KILLED", other_id: "FINISHED"}
    second = metrics_of(store)
    second.begin(rows_of((1, 2)))
    second.row({"step": 3, "time": 9.0, "loss": 0.25})
    second_id = second.end(is_finished=True)
    assert {run.info.run_id for run in runs(client)} == {second_id, other_id}
    assert history(client, second_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    times = [m.timestamp - client.get_run(second_id).info.start_time for m in _losses(client, second_id)]
    assert sorted(times) == [500, 1000, 9000]


def _losses(client, run_id):
    return client.get_metric_history(run_id, "train/loss")


def test_a_live_run_of_another_training_is_not_exported_to(store, client, finished_run, metrics_of, tmp_path):
    """The settings were changed since, or the live run was exported before."""
    observer = metrics_of(store, run_key="earlier key")
    observer.begin([])
    live_id = observer.end(is_finished=True)
    first = export_runs([finished_run(live_run=live_id)], tmp_path / "out", store)[0]
    assert first["action"] == "created"
    assert {run.info.run_id: run.data.tags["superseded"] for run in runs(client)} == {
        live_id: "true",
        first["run_id"]: "false",
    }
    again = export_runs([finished_run(live_run=first["run_id"], steps=4)], tmp_path / "out", store)[0]
    assert again["action"] == "created"


# --- servers that fail


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def silent_server():
    """Address of a server that accepts connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()


@pytest.fixture
def healthy_but_hanging_server():
    """Address of a server that says it is well and then answers nothing else."""
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in ("/health", "/version"):
                released.wait(60)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    released.set()
    server.shutdown()


def train_with(observer, rows=2000):
    """Seconds that a training of so many lines waits for its observer: for the lines, and at its end."""
    started = time.monotonic()
    observer.begin([])
    for row in rows_of(range(1, rows + 1)):
        observer.row(row)
    rows_sent = time.monotonic()
    assert observer.end(is_finished=True) is None
    return rows_sent - started, time.monotonic() - rows_sent


def one_line_of(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if "live metrics" in line]
    assert len(lines) == 1
    return lines[0]


def test_a_dead_address_costs_nothing_and_is_reported_once(metrics_of, closed_port, capsys):
    during, at_end = train_with(metrics_of(f"http://user:secret@127.0.0.1:{closed_port}"))
    assert during < 1
    assert at_end < 4
    line = one_line_of(capsys)
    assert f"no answer from http://127.0.0.1:{closed_port} within 4 s" in line
    assert "The training goes on" in line
    assert "secret" not in line


def test_a_server_that_never_answers_delays_the_end_by_seconds_only(metrics_of, silent_server, capsys):
    during, at_end = train_with(metrics_of(silent_server))
    assert during < 1
    assert at_end < live.SECONDS_TO_END + 1
    assert "no live metrics" in one_line_of(capsys)


def test_a_server_that_hangs_in_the_middle_delays_the_end_by_seconds_only(
    metrics_of, healthy_but_hanging_server, capsys
):
    during, at_end = train_with(metrics_of(healthy_but_hanging_server))
    assert during < 1
    assert at_end < live.SECONDS_TO_END + 1
    assert "not all lines were sent 5 s after the end" in one_line_of(capsys)


def test_an_address_that_can_never_work_is_reported(metrics_of, capsys):
    train_with(metrics_of("htp://server"))
    assert "MLflow does not know" in one_line_of(capsys)


def test_any_failure_of_the_client_is_reported_once(store, metrics_of, monkeypatch, capsys):
    from mlflow import MlflowClient

    def failing(self, *args, **kwargs):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    observer = metrics_of(store)
    observer.begin(rows_of((1, 2)))
    for row in rows_of((3, 4)):
        observer.row(row)
    observer.end(is_finished=True)
    assert "RuntimeError: the disk is full" in one_line_of(capsys)


# --- the command


@pytest.mark.process
def test_the_command_logs_live_and_names_the_run(store, client, prepared, tmp_path):
    sections = {"tracking": {"live": True, "uri": store, "experiment": "paper"}}
    done = run(train_command(prepared, tmp_path / "run", sections=sections, epochs=2))
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (stored,) = runs(client)
    assert stored.info.run_id == summary["live_run"]
    assert hashes_of(stored) == {"run_key": summary["run_key"]}
    assert stored.data.tags["checkpoint"] == str(tmp_path / "run" / "model")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "accuracy", "reward_max"):
        assert history(client, stored.info.run_id, f"train/{name}") == [(row["step"], row[name]) for row in rows]


@pytest.mark.process
def test_the_command_ends_beside_a_server_that_never_answers(silent_server, prepared, tmp_path):
    sections = {"tracking": {"live": True, "uri": silent_server}}
    done = run(train_command(prepared, tmp_path / "run", sections=sections))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("no live metrics in MLflow") == 1
    assert "live_run" not in json.loads((tmp_path / "run" / "summary.json").read_text())
