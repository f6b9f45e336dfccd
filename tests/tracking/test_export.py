"""Export to a real SQLite store: complete, once, resumable, and harmless when the server is down."""

import http.server
import json
import logging
import os
import socket
import sqlite3
import threading
import time

import pytest

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.system import tracking_address
from rm_methods.tracking import export, upload
from rm_methods.tracking import store as mlflow_store
from rm_methods.tracking.export import export_experiment
from rm_methods.tracking.records import ExportedFiles
from rm_methods.tracking.upload import Uploader, hashes_of
from tests.tracking.conftest import export_of, export_runs


def only_run(client, experiment="paper"):
    """The one run of a seed."""
    runs = all_runs(client, experiment)
    assert len(runs) == 1
    return runs[0]


def all_runs(client, experiment="paper"):
    """All runs of seeds and policies; those that sum them up are tested in test_summaries.py."""
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [run for run in runs if run.data.tags["kind"] in ("seed", "ppo")]


def run_key(run):
    return hashes_of(run)["run_key"]


def history(client, run, name):
    return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))


def stored_rows(store_uri):
    with sqlite3.connect(store_uri.removeprefix("sqlite:///")) as database:
        tables = ("runs", "metrics", "params", "inputs", "datasets", "logged_models", "logged_model_metrics")
        return {table: database.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}


# --- what is stored
# ---------------------------------------------------------------------------------------------------------------


def test_a_run_is_stored_with_everything_that_belongs_to_it(store, client, finished_run, tmp_path):
    files = finished_run(steps=1200)
    (result,) = export_runs([files], tmp_path / "out", store)
    assert result == read_json(tmp_path / "out" / "bradley_terry" / "seed0.json")
    assert (result["status"], result["action"], result["skipped_not_finite"]) == ("exported", "created", 1)
    stored = only_run(client)
    assert stored.info.run_id == result["run_id"]
    assert stored.info.status == "FINISHED"
    assert stored.info.end_time - stored.info.start_time == 12_500
    assert stored.info.run_name == "bradley_terry seed 0"
    tags = stored.data.tags
    shown = {name: value for name, value in tags.items() if not name.startswith("mlflow.")}
    assert shown.pop("hashes") == json.dumps(hashes_of(stored))
    assert shown == {
        "kind": "seed",
        "configured_experiment": "paper",
        "method": "bradley_terry",
        "variant": "bradley_terry",
        "seed": "0",
        "superseded": "false",
        "checkpoint": str(files.model),
        "skipped_not_finite": "1",
    }
    assert set(hashes_of(stored)) == {"run_key", "training", "exported"}
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    assert str(files.model) in tags["mlflow.note.content"]
    assert stored.data.metrics["rm_bench/overall"] == 0.61
    assert history(client, stored, "train/loss") == [(step, 1 / step) for step in range(1, 1201)]
    times = [m.timestamp for m in client.get_metric_history(stored.info.run_id, "train/loss")]
    assert min(times) == stored.info.start_time + 500
    dataset = stored.inputs.dataset_inputs[0]
    assert (dataset.dataset.name, dataset.dataset.digest, json.loads(dataset.dataset.profile)) == (
        "hh_rlhf",
        "0123456789abcdef",
        {"num_rows": 100},
    )
    (linked,) = stored.outputs.model_outputs
    model = client.get_logged_model(linked.model_id)
    assert (str(model.status), model.source_run_id, model.tags["checkpoint"]) == (
        "READY",
        stored.info.run_id,
        str(files.model),
    )
    assert {m.key: m.value for m in model.metrics}["rm_bench/overall"] == 0.61
    folder = tmp_path / "mlruns" / "paper" / stored.info.run_id / "artifacts"
    uploaded = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert set(uploaded) == {"training/metrics.jsonl", "training/summary.json", "configuration.yaml"}
    assert uploaded["training/metrics.jsonl"] == files.training_log.read_bytes()


def test_a_second_export_changes_nothing(store, client, finished_run, tmp_path):
    runs = [finished_run(), finished_run(seed=1, run_key="key1"), finished_run("it's", run_key="key2")]
    first = export_runs(runs, tmp_path / "out", store)
    before = stored_rows(store)
    second = export_runs(runs, tmp_path / "out", store)
    assert stored_rows(store) == before
    assert before["runs"] == 3 + 2 + 1  # seeds, variants, comparison
    assert [r["action"] for r in first + second] == ["created"] * 3 + ["unchanged"] * 3
    assert [r["run_id"] for r in first] == [r["run_id"] for r in second]
    assert read_json(tmp_path / "out" / "it's" / "seed0.json")["run_id"] == first[2]["run_id"]


def test_two_variants_with_one_run_key_are_two_runs(store, client, finished_run, tmp_path):
    export_runs([finished_run("a", run_key="same"), finished_run("b", run_key="same")], tmp_path / "out", store)
    assert {run.data.tags["variant"] for run in all_runs(client)} == {"a", "b"}
    assert {run.data.tags["superseded"] for run in all_runs(client)} == {"false"}


@pytest.mark.parametrize("calls", range(16))
def test_an_export_that_was_cut_off_is_completed_without_doubling(
    store, client, finished_run, tmp_path, monkeypatch, calls
):
    """The store fails after `calls` of the 16 calls that write; the next export gives all that one export gives."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    run, left = finished_run(steps=600), [calls]
    with monkeypatch.context() as patch:
        writers = ("log_batch", "create_logged_model", "log_inputs", "set_terminated", "set_tag", "log_artifacts")
        for name in (*writers, "set_experiment_tag"):
            original = getattr(MlflowClient, name)

            def failing(self, *args, original=original, **kwargs):
                if left[0] == 0:
                    raise MlflowException("connection lost")
                left[0] -= 1
                return original(self, *args, **kwargs)

            patch.setattr(MlflowClient, name, failing)
        cut = export_experiment(export_of([run]), tmp_path / "out", store)
    assert left == [0]
    assert {record["reason"] for record in cut.pending} == {"MlflowException: connection lost"}
    completed = export_experiment(export_of([run]), tmp_path / "out", store)
    assert completed.pending == []
    assert {record["action"] for record in completed.all_records} <= {"created", "completed", "unchanged"}
    assert export_experiment(export_of([run]), tmp_path / "out", store).runs[0]["action"] == "unchanged"
    stored = only_run(client)
    assert stored.info.status == "FINISHED"
    assert history(client, stored, "train/loss") == [(step, 1 / step) for step in range(1, 601)]
    assert history(client, stored, "rm_bench/overall") == [(0, 0.61)]
    rows = stored_rows(store)
    assert (rows["runs"], rows["datasets"], rows["logged_models"]) == (3, 1, 1)
    assert rows["metrics"] == 2 * 600 + len([name for name in stored.data.metrics if not name.startswith("train/")])


def test_a_new_evaluation_updates_the_run(store, client, finished_run, tmp_path):
    export_runs([finished_run(overall=0.9)], tmp_path / "out", store)
    result = export_runs([finished_run(overall=0.2)], tmp_path / "out", store)[0]
    assert (result["action"], result["rows_logged"]) == ("updated", 1)
    stored = only_run(client)
    assert stored.data.metrics["rm_bench/overall"] == 0.2
    assert history(client, stored, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_a_run_trained_anew_supersedes_the_older_one_and_back(store, client, finished_run, tmp_path):
    def superseded():
        experiment = client.get_experiment_by_name("paper").experiment_id
        return {run_key(run) for run in client.search_runs([experiment], "tags.superseded = 'true'")}

    export_runs([finished_run(run_key="old"), finished_run(seed=1, run_key="other seed")], tmp_path / "out", store)
    assert superseded() == set()
    export_runs([finished_run(run_key="new")], tmp_path / "out", store)
    assert superseded() == {"old"}
    export_runs([finished_run(run_key="old")], tmp_path / "out", store)
    assert superseded() == {"new"}
    assert len(all_runs(client)) == 3


def test_experiments_that_share_an_mlflow_experiment_do_not_supersede_each_other(store, client, finished_run, tmp_path):
    for configured, key in (("smol", "one"), ("interaction_smol", "two"), ("smol", "three")):
        run = finished_run(run_key=key)
        export_runs([run], tmp_path / "out", store, mlflow_experiment="paper", configured=configured)
    assert {run_key(run): run.data.tags["superseded"] for run in all_runs(client)} == {
        "one": "true",
        "two": "false",
        "three": "false",
    }


def test_another_training_under_the_same_run_key_is_another_run(store, client, finished_run, tmp_path):
    export_runs([finished_run(steps=3)], tmp_path / "out", store)
    export_runs([finished_run(steps=4)], tmp_path / "out", store)
    runs = all_runs(client)
    assert sorted((len(history(client, run, "train/loss")), run.data.tags.get("superseded")) for run in runs) == [
        (3, "true"),
        (4, "false"),
    ]


def test_a_scorer_without_training_has_no_steps(store, client, finished_run, tmp_path):
    run = finished_run("longest", steps=0, training={}, backbone={}, cost={"wall_seconds": 0.0, "device": "none"})
    run.training_log.unlink()
    assert export_runs([run], tmp_path / "out", store)[0]["status"] == "exported"
    assert not [name for name in only_run(client).data.metrics if name.startswith("train/")]


def test_one_variant_and_seed_twice_is_refused(store, finished_run, tmp_path):
    with pytest.raises(UserError, match="same variant and seed"):
        export_runs([finished_run(), finished_run()], tmp_path / "out", store)


def test_a_deleted_experiment_is_pending_with_the_cure(store, client, finished_run, tmp_path):
    experiment = client.create_experiment("paper")
    client.delete_experiment(experiment)
    result = export_runs([finished_run()], tmp_path / "out", store)[0]
    assert result["status"] == "pending"
    assert f"mlflow experiments restore -x {experiment}" in result["reason"]


# --- the store
# --------------------------------------------------------------------------------------------------------------------


def test_server_down_is_pending_within_seconds_and_filled_in_later(store, client, finished_run, tmp_path, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}"
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        results = export_runs([finished_run(), finished_run(seed=1)], tmp_path / "out", address)
    assert time.monotonic() - started < 10
    assert [r["status"] for r in results] == ["pending", "pending"]
    assert "4 of 4 runs are not in MLflow yet" in caplog.text
    assert "secret" not in caplog.text + json.dumps(results)
    assert client.get_experiment_by_name("paper") is None
    again = export_runs([finished_run(), finished_run(seed=1)], tmp_path / "out", store)
    assert [r["status"] for r in again] == ["exported", "exported"]
    assert len(all_runs(client)) == 2
    assert read_json(tmp_path / "out" / "bradley_terry" / "seed1.json")["status"] == "exported"


def test_a_server_that_never_answers_is_given_up(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_store, "PROBE_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        result = export_runs([finished_run()], tmp_path / "out", f"http://127.0.0.1:{silent.getsockname()[1]}")[0]
    assert result["status"] == "pending"
    assert time.monotonic() - started < 5


def test_a_server_lost_on_the_way_leaves_the_rest_pending(store, client, finished_run, tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException

    original, answers = Uploader.upload, iter([None, "gone", "gone"])

    def lost_after_the_first(self, record, parent=None):
        if record.seed:
            raise MlflowException("connection lost")
        return original(self, record, parent)

    monkeypatch.setattr(Uploader, "upload", lost_after_the_first)
    monkeypatch.setattr(export, "unreachable_reason", lambda uri: next(answers))
    results = export_runs([finished_run(seed=s, run_key=f"k{s}") for s in range(3)], tmp_path / "out", store)
    assert [(r["status"], r.get("reason")) for r in results] == [
        ("exported", None),
        ("pending", "gone"),
        ("pending", "gone"),
    ]


def test_a_run_that_cannot_be_stored_leaves_the_others_stored(store, client, finished_run, tmp_path, monkeypatch):
    """The store answers, and only what it is told about seed 1 is refused."""
    from mlflow.exceptions import MlflowException

    original = Uploader.upload

    def refused_for_seed_1(self, record, parent=None):
        if record.seed == 1:
            raise MlflowException("a value is too long")
        return original(self, record, parent)

    monkeypatch.setattr(Uploader, "upload", refused_for_seed_1)
    results = export_runs([finished_run(seed=seed, run_key=f"k{seed}") for seed in range(3)], tmp_path / "out", store)
    assert [result["status"] for result in results] == ["exported", "pending", "exported"]
    assert results[1]["reason"] == "MlflowException: a value is too long"
    assert sorted(run.data.tags["seed"] for run in all_runs(client)) == ["0", "2"]


def test_many_processes_can_make_the_store_at_once(made_by_four):
    """The fixture made it with four processes that started together on a missing file; none may see it half made or
    lose a row."""
    path, errors, returncodes = made_by_four
    assert returncodes == [0] * 4, errors
    with sqlite3.connect(path) as database:
        assert sorted(database.execute("select number from used_by").fetchall()) == [(0,), (1,), (2,), (3,)]
    assert sorted(p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")) == [path.name]


def test_an_existing_database_is_left_as_it_is(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"something else")
    mlflow_store.ensure_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert (tmp_path / "mlflow.db").read_bytes() == b"something else"


def test_a_file_that_is_no_database_is_pending_not_a_traceback(finished_run, tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"something else" * 100)
    result = export_runs([finished_run()], tmp_path / "out", f"sqlite:///{tmp_path / 'mlflow.db'}")[0]
    assert result["status"] == "pending"
    assert "not a database" in result["reason"]


def test_an_address_that_cannot_be_used_leaves_finished_runs_pending(finished_run, tmp_path, monkeypatch):
    """The experiment is finished by then: tracking must not fail it."""
    (record,) = export_runs([finished_run()], tmp_path / "out", "./mlruns")
    assert record["status"] == "pending"
    assert "is a folder" in record["reason"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://me:secret@server")
    (record,) = export_runs([finished_run()], tmp_path / "out")
    assert "did you mean 'http'?" in record["reason"]
    assert record["tracking_uri"] == "htp://server"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("./mlruns", "is a folder"),
        ("file:///somewhere/mlruns", "is a folder"),
        ("htp://server", "begins with 'htp', which MLflow does not know (did you mean 'http'?)"),
        ("postgres://server/db", "did you mean 'postgresql'?"),
        ("s3://bucket", "begins with 's3', which MLflow does not know"),
        ("http://", "names no server"),
        ("http:///path", "names no server"),
        ("http://server:port", "is not an address"),
        ("http://[::1", "is not an address"),
        ("mysql+no_such_driver://server/db", "needs the package no_such_driver, which is not installed"),
        ("sqlite://mlflow.db", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////", "names the folder /"),
    ],
)
def test_an_address_that_can_never_work_is_refused_with_what_is_allowed(uri, says):
    with pytest.raises(UserError, match=r"Allowed: sqlite:///") as error:
        tracking_address.resolve_uri(uri)
    assert says in str(error.value)


def test_a_database_without_its_driver_is_refused_with_the_package_to_install(monkeypatch):
    monkeypatch.setattr(tracking_address.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install psycopg2-binary") as error:
        tracking_address.resolve_uri("postgresql://me:secret@server/db?sslpassword=hidden")
    assert "secret" not in str(error.value)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://server",
        "https://me:pw@server:5000/path",
        "sqlite:///x.db",
        "sqlite+pysqlite:///x.db",
        "databricks",
        "databricks://me",
    ],
)
def test_addresses_that_may_work_are_left_alone(uri):
    assert tracking_address.resolve_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:p@ss@server:80/x", "http://server:80/x"),
        ("postgresql+psycopg_async://me:secret@server/db?a=secret", "postgresql+psycopg_async://server/db"),
        ("http://me:secret@[::1", "http://[::1"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_addresses_are_shown_without_secrets(uri, shown):
    assert tracking_address.redacted(uri) == shown


def test_messages_hold_no_secrets_of_the_address():
    uri = "postgresql://me:p%40ss@server/db?password=other"
    text = f"cannot connect to {uri} with p@ss or p%40ss or other"
    assert (
        tracking_address.without_secrets(text, uri) == "cannot connect to postgresql://server/db with *** or *** or ***"
    )


def test_a_folder_for_a_database_is_pending_at_once(finished_run, tmp_path):
    started = time.monotonic()
    (record,) = export_runs([finished_run()], tmp_path / "out", f"sqlite:///{tmp_path}")
    assert record["status"] == "pending"
    assert "names the folder" in record["reason"]
    assert time.monotonic() - started < 5


def test_a_database_server_that_is_not_there_is_given_up_at_once(finished_run, tmp_path, monkeypatch):
    """No driver is needed to see that nothing listens."""
    monkeypatch.setattr(tracking_address.importlib.util, "find_spec", lambda name: object())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"postgresql://me:secret@127.0.0.1:{unused.getsockname()[1]}/mlflow"
        started = time.monotonic()
        (record,) = export_runs([finished_run()], tmp_path / "out", uri)
    assert record["status"] == "pending"
    assert record["reason"].startswith("no database at 127.0.0.1:")
    assert "secret" not in json.dumps(record)
    assert time.monotonic() - started < 5


def test_a_driver_that_cannot_be_loaded_is_pending(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_address.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(mlflow_store, "_closed_port", lambda *_: None)
    (record,) = export_runs([finished_run()], tmp_path / "out", "mysql+no_such_driver://server/db")
    assert record["status"] == "pending"
    assert "no_such_driver" in record["reason"]


class HealthOnly(http.server.BaseHTTPRequestHandler):
    """A server that says it is healthy and nothing else, and counts what else it is asked."""

    asked = 0

    def do_GET(self):
        if self.path == "/health":
            self.send_response(200)
            self.end_headers()
        else:
            HealthOnly.asked += 1
            time.sleep(5)

    def log_message(self, *_):
        pass


def test_a_server_that_hangs_is_waited_for_once_and_not_for_every_run(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PROBE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HealthOnly)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    runs = [finished_run(seed=seed, run_key=f"key{seed}") for seed in range(6)]
    try:
        records = export_runs(runs, tmp_path / "out", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert {record["status"] for record in records} == {"pending"}
    assert "Timeout" in records[-1]["reason"]
    assert HealthOnly.asked == 1


def test_whatever_a_store_raises_leaves_finished_runs_pending(store, finished_run, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("no credentials")

    monkeypatch.setattr(upload, "experiment_id_of", broken)
    (record,) = export_runs([finished_run()], tmp_path / "out", store)
    assert (record["status"], record["reason"]) == ("pending", "ValueError: no credentials")


def test_default_address_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_address.resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_address.resolve_uri(None) == "http://server:5000"
    assert tracking_address.resolve_uri("sqlite:///x.db") == "sqlite:///x.db"


def test_telemetry_is_off():
    mlflow_store.import_mlflow()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_a_policy_trained_against_a_run_is_a_run_of_its_own(store, client, finished_run, tmp_path):
    files = finished_run()
    policy = ExportedFiles(files.summary, None, files.training_log, tmp_path / "policy", kind="ppo")
    export_runs([files, policy], tmp_path / "out", store)
    assert {run.info.run_name for run in all_runs(client)} == {"bradley_terry seed 0", "bradley_terry PPO seed 0"}
    assert {run.data.tags["kind"]: run.data.metrics.get("ppo/loss") for run in all_runs(client)} == {
        "seed": None,
        "ppo": 1 / 3,
    }
    assert {run.data.tags["superseded"] for run in all_runs(client)} == {"false"}
    assert {path.name for path in (tmp_path / "out").rglob("*.json")} == {
        "seed0.json",
        "seed0_ppo.json",
        "comparison.json",
    }


def test_further_metrics_come_later_and_update_the_run(store, client, finished_run, tmp_path):
    files = finished_run()
    export_runs([files], tmp_path / "out", store)
    further = tmp_path / "further.json"
    further.write_text('{"metrics": {"best_of_n/samples/gold_at_peak": 0.7}}')
    with_further = ExportedFiles(files.summary, files.metrics, files.training_log, files.model, further)
    (record,) = export_runs([with_further], tmp_path / "out", store)
    assert record["action"] == "updated"
    assert only_run(client).data.metrics["best_of_n/samples/gold_at_peak"] == 0.7


def test_a_file_that_is_no_database_is_seen_before_mlflow_tries_ten_times(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"something else" * 100)
    assert "not a database" in mlflow_store.unreachable_reason(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert mlflow_store.unreachable_reason(f"sqlite:///{tmp_path / 'absent.db'}") is None
