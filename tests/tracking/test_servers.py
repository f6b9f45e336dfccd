"""The same export into a real MLflow server and into PostgreSQL."""

import contextlib
import http.server
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import requests

from rm_methods.tracking import store as mlflow_store
from rm_methods.tracking.export import export_experiment
from rm_methods.tracking.store import import_mlflow
from tests.tracking.conftest import export_of, export_runs

pytestmark = pytest.mark.process
POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
needs_postgresql = pytest.mark.skipif(
    not POSTGRESQL or importlib.util.find_spec("psycopg2") is None,
    reason="needs PostgreSQL and psycopg2: apt-get install postgresql, pip install 'rm-methods[postgresql]'",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def mlflow_server(folder, backend, *options):
    """Address of a running server."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1", *options], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{address}/health", timeout=2).ok:
                    break
            assert time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(made_by_four, tmp_path_factory):
    """A server on SQLite that stores artifacts itself."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(made_by_four[0], folder / "mlflow.db")
    options = ("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts"))
    with mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}", *options) as address:
        yield address


@pytest.fixture(scope="module")
def postgresql():
    """Address of a fresh database of a PostgreSQL server on the loopback device."""
    binaries = POSTGRESQL[-1].parent
    data = Path(tempfile.mkdtemp(prefix="postgresql"))  # pytest closes its own folders to other users
    port = free_port()
    as_user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(data, "postgres")

    def call(name, *arguments):
        subprocess.run(
            [*as_user, str(binaries / name), *arguments], check=True, stdout=subprocess.DEVNULL, timeout=120, cwd="/"
        )

    call("initdb", "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off"
    call("pg_ctl", "-D", str(data), "-o", options, "-l", str(data / "log"), "-w", "start")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(data)


def check_an_export(uri, runs, out, artifacts_begin_with, experiment):
    """The whole export, again, and after a new evaluation."""
    files = [runs(), runs(seed=1, run_key="key1")]
    first = export_experiment(export_of(files, mlflow_experiment=experiment), out, uri)
    assert first.pending == []
    assert {record["action"] for record in first.all_records} == {"created"}
    again = export_experiment(export_of(files, mlflow_experiment=experiment), out, uri)
    assert {record["action"] for record in again.all_records} == {"unchanged"}
    client = import_mlflow().MlflowClient(tracking_uri=uri)
    run = client.get_run(first.runs[0]["run_id"])
    assert run.data.metrics["rm_bench/overall"] == 0.61
    assert sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")) == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert run.info.artifact_uri.startswith(artifacts_begin_with)
    names = {file.path for file in client.list_artifacts(run.info.run_id, "training")}
    assert names == {"training/metrics.jsonl", "training/summary.json"}
    evaluated = export_experiment(export_of([runs(overall=0.7), files[1]], mlflow_experiment=experiment), out, uri)
    assert [record["action"] for record in evaluated.runs] == ["updated", "unchanged"]
    assert client.get_run(first.runs[0]["run_id"]).data.metrics["rm_bench/overall"] == 0.7


def test_a_server_that_stores_artifacts(server, finished_run, tmp_path):
    check_an_export(server, finished_run, tmp_path / "out", "mlflow-artifacts:/", "on_server")
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["pages"]["how_to_open"].startswith(f"{server}/#/experiments/")


@needs_postgresql
def test_postgresql(postgresql, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_an_export(postgresql, finished_run, tmp_path / "out", str(tmp_path / "mlruns"), "direct")


@needs_postgresql
def test_a_server_on_postgresql(postgresql, finished_run, tmp_path):
    options = ("--serve-artifacts", "--artifacts-destination", str(tmp_path / "artifacts"))
    with mlflow_server(tmp_path, postgresql, *options) as address:
        check_an_export(address, finished_run, tmp_path / "out", "mlflow-artifacts:/", "behind_server")


@needs_postgresql
def test_two_exports_into_postgresql_at_once_store_each_run_once(postgresql, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [finished_run(seed=seed, run_key=f"key{seed}") for seed in range(3)]
    export_runs([], tmp_path / "none", postgresql, mlflow_experiment="both")
    results = []

    def work(name):
        results.append(export_runs(files, tmp_path / name, postgresql, mlflow_experiment="both"))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    actions = sorted(record["action"] for records in results for record in records)
    assert actions == ["created"] * 3 + ["unchanged"] * 3


def test_a_deleted_experiment_on_a_server_is_pending_with_the_cure(server, finished_run, tmp_path):
    client = import_mlflow().MlflowClient(tracking_uri=server)
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    (record,) = export_runs([finished_run()], tmp_path / "out", server, mlflow_experiment="gone")
    assert record["status"] == "pending"
    assert f"mlflow experiments restore -x {experiment}" in record["reason"]


def test_a_read_only_database_is_pending(store, finished_run, tmp_path):
    path = store.removeprefix("sqlite:///")
    (record,) = export_runs([finished_run()], tmp_path / "out", f"sqlite:///file:{path}?mode=ro&uri=true")
    assert record["status"] == "pending"
    assert "readonly database" in record["reason"]


def test_a_server_of_an_older_release_is_pending(finished_run, tmp_path):
    class Old(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"2.9.1" if self.path == "/version" else b"OK")

        def log_message(self, *_):
            pass

    old = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Old)
    threading.Thread(target=old.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{old.server_port}"
    try:
        (record,) = export_runs([finished_run()], tmp_path / "out", address)
    finally:
        old.shutdown()
        old.server_close()
    assert record["reason"] == f"{address} runs MLflow 2.9.1, and 3.0 or newer is needed"


def test_a_database_of_an_older_release_is_pending_with_the_cure(store, finished_run, tmp_path):
    import sqlite3

    with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
        database.execute("update alembic_version set version_num = 'bd07f7e963c5'")
    (record,) = export_runs([finished_run()], tmp_path / "out", store)
    assert record["status"] == "pending"
    assert "mlflow db upgrade" in record["reason"]
    assert mlflow_store.unreachable_reason(store) is None
