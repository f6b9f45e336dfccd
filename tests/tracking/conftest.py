"""Files of finished runs, and a fresh MLflow database for each test (copied: making one takes four seconds)."""

import json
import shutil
import subprocess
import sys

import pytest

from rm_methods.tracking.export import ExperimentExport, export_experiment
from rm_methods.tracking.records import ExportedFiles
from rm_methods.tracking.store import import_mlflow


def export_of(runs, *, mlflow_experiment=None, configured="paper", **export):
    """The export of runs that belong to a configured experiment."""
    config = {
        "experiment": configured,
        "seeds": [0],
        "methods": {},
        "benchmarks": {"rm_bench": {}},
        "data": {"dataset": "hh_rlhf"},
        "tracking": {"experiment": mlflow_experiment, "uri": None},
    }
    return ExperimentExport(config, list(runs), **export)


def export_runs(runs, out, uri=None, **experiment):
    """Export runs; returns the records of the runs."""
    return export_experiment(export_of(runs, **experiment), out, uri).runs


# Each process leaves a row as soon as it may use the database; the last one starts while another is half-way through
# making it.
USE_AS_SOON_AS_MADE = """
import sqlite3, sys, time
from pathlib import Path
from rm_methods.tracking.store import ensure_store
path, number = Path(sys.argv[1]), int(sys.argv[2])
while number == 3 and not [p for p in path.parent.iterdir() if not p.name.endswith(".lock") and p.stat().st_size]:
    time.sleep(0.02)
ensure_store(f"sqlite:///{path}")
with sqlite3.connect(path, timeout=60) as database:
    assert database.execute("select count(*) from alembic_version").fetchone() == (1,)
    database.execute("create table if not exists used_by (number integer)")
    database.execute("insert into used_by values (?)", (number,))
"""


@pytest.fixture(scope="session")
def made_by_four(tmp_path_factory):
    """A database that four processes made and used at once, and what each of them wrote to stderr."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    command = [sys.executable, "-c", USE_AS_SOON_AS_MADE, str(path)]
    workers = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in range(4)]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    return path, errors, [worker.returncode for worker in workers]


@pytest.fixture
def store(made_by_four, tmp_path, monkeypatch):
    """Address of a fresh database; the working folder is temporary too, so that nothing can land in the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "mlflow.db"
    shutil.copy(made_by_four[0], path)
    return f"sqlite:///{path}"


@pytest.fixture
def client(store):
    return import_mlflow().MlflowClient(tracking_uri=store)


@pytest.fixture
def finished_run(tmp_path):
    """Function that writes the files of a run and returns its ExportedFiles; `steps` rows in the log, `changes` into
    summary.json."""

    def write(
        variant="bradley_terry",
        seed=0,
        *,
        run_key="key0",
        steps=3,
        overall=0.61,
        **changes,
    ):
        folder = tmp_path / "files" / variant / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "run_key": run_key,
            "variant": variant,
            "method": "bradley_terry",
            "seed": seed,
        }
        summary = identity | {
            "settings": {"label_smoothing": 0.1},
            "training": {"learning_rate": 1e-5, "betas": [0.9, 0.99]},
            "backbone": {"name": "tiny"},
            "data": {"dataset": "hh_rlhf", "hash": "0123456789abcdef", "pairs": 100},
            "cost": {"wall_seconds": 12.5, "tokens": 1000, "device": "cpu"},
            "metrics": {"train_loss": 0.5, "validation_loss": None},
            "provenance": {"git_commit": "c0ffee", "git_dirty": False},
        }
        report = {
            "metrics": {"overall": overall, "hard": 0.4},
            "tie_rate": 0.0,
            "n_scored": 129,
            "n_total": 129,
            "n_truncated": 3,
        }
        files = ExportedFiles(
            summary=folder / "summary.json",
            metrics=folder / "metrics.json",
            training_log=folder / "metrics.jsonl",
            model=folder / "model",
            artifacts={
                "training/summary.json": folder / "summary.json",
                "training/metrics.jsonl": folder / "metrics.jsonl",
            },
        )
        files.summary.write_text(json.dumps(summary | changes))
        files.metrics.write_text(json.dumps(identity | {"benchmarks": {"rm_bench": report}}))
        rows = [
            {"step": step, "time": step * 0.5, "loss": 1 / step, "learning_rate": 1e-5} for step in range(1, steps + 1)
        ]
        files.training_log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return files

    return write
