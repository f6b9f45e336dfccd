"""A copy of the workflow that tests may edit, and Snakemake in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

SMOKE = {
    "experiment": "smoke",
    "seeds": [0],
    "data": {"dataset": "world", "options": {"train_pairs": 120, "validation_pairs": 20, "test_pairs": 20}},
    "backbone": {
        "max_length": 256,
        "tiny": {
            "hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "key_value_heads": 2,
            "vocabulary_size": 400,
        },
    },
    "training": {
        "pairs_per_step": 8, "learning_rate": 1e-3, "precision": "fp32", "log_every_steps": 1,
        "checkpoint_every_steps": 5,
    },
    "methods": {"bradley_terry": {}, "label_smoothing": {}, "longest": {}},
    "benchmarks": {"world": {}},
}  # fmt: skip


def checkout(folder: Path, study: Mapping[str, Any] = SMOKE) -> Path:
    """A copy of what the workflow needs, so that tests may edit it, with the configuration of a study."""
    for name in ("rm_methods", "workflow", "snakemake_logger_plugin_rm_methods"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "config").mkdir()
    shutil.copy(REPOSITORY / "Snakefile", folder)
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(dict(study)))
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Variables under which commands use the checkout's code."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "PYTEST_CURRENT_TEST")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | {"PATH": path, "PYTHONPATH": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"} | more


def snakemake(folder: Path, *arguments: str, check: bool = True, **variables: str) -> str:
    """What Snakemake prints; with `check`, it must succeed."""
    command = ["snakemake", *arguments, "--cores", "2", "--configfile", "config/smoke.yaml"]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, **variables), capture_output=True, text=True, timeout=600
    )
    output = done.stdout + done.stderr
    if check:
        logs = "\n".join(f"== {p}\n{p.read_text()[-2000:]}" for p in (folder / "results").rglob("*.log"))
        assert done.returncode == 0, output[-3000:] + logs
    return output


def planned(output: str) -> dict[str, int]:
    """Jobs of a dry run, by rule."""
    table = output.split("Job stats:")[1] if "Job stats:" in output else ""
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE) if name != "total"}


def results(folder: Path) -> Path:
    return folder / "results" / "smoke"
