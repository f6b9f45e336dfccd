"""`rm-methods train` as a process: its command line, its ranks, runs that end and runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import experiment_config

METHODS = {
    "bradley_terry": {},
    "joint_encoder": {"masked_language_epochs": 1, "epochs": 1},
    "joint_bidirectional": {"masked_language_epochs": 6, "epochs": 1},
    "interaction_distillation": {},
}


def train_command(
    prepared: tuple[Path, Path, dict],
    folder: Path,
    variant: str = "bradley_terry",
    *,
    out: Path | None = None,
    work: Path | None = None,
    required: Mapping[str, Sequence[Path]] | None = None,
    sections: dict | None = None,
    **training,
) -> list[str]:
    """The command line of a run whose configuration this writes into `folder`.

    Args:
        prepared: file of pairs and folder of the backbone.
        out: folder of the run; `folder` without.
        work: folder of its checkpoints; in `out` without.
        required: model folders of other runs, by setting.
        sections: further sections of the configuration.
        training: changes of its section `training`.
    """
    config = experiment_config(folder, **{"methods": METHODS, "training": training} | (sections or {}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    out = out or folder
    command = [sys.executable, "-m", "rm_methods.cli", "train", "--config", folder / "config.yaml"]
    command += ["--variant", variant, "--seed", "0", "--pairs", prepared[0], "--backbone", prepared[1]]
    command += ["--out", out, "--work", work or out / "work"]
    for setting, models in (required or {}).items():
        for model in models:
            command += ["--required", f"{setting}={model}"]
    return [str(word) for word in command]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)


def run_to_the_end(command: list[str]) -> str:
    """Standard error of a run that must succeed."""
    done = run(command)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The rank processes of a running training: they have no children that train."""
    trainings = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "rm_methods.cli" in " ".join(p.cmdline())
    ]
    return [p for p in trainings if "torch.distributed.run" not in p.cmdline()]


def killed_in_training(command: list[str], folder: Path, checkpoints: str = "*/checkpoint-*") -> tuple[float, str]:
    """Start a run on two ranks, kill one after the first checkpoint.

    Args:
        folder: folder of the run.
        checkpoints: pattern of their folders in the folder of work.

    Returns:
        Seconds until everything had ended, and standard error.
    """
    with (folder / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=errors
        )
        deadline = time.monotonic() + 200
        while not list((folder / "work").glob(f"{checkpoints}/complete")):
            assert process.poll() is None, (folder / "stderr.txt").read_text()[-3000:]
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.02)
        ranks = ranks_of(process)
        assert len(ranks) == 2
        ranks[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        process.wait(timeout=120)
        psutil.wait_procs(ranks, timeout=120)
    assert process.returncode == 2
    assert not any(rank.is_running() for rank in ranks)
    return time.monotonic() - killed, (folder / "stderr.txt").read_text()


def losses(folder: Path) -> list[float]:
    """The loss of every step of a run."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's model."""
    return load_file(folder / "model" / "model.safetensors")


def assert_alike(folder: Path, other: Path, weights_within: float) -> None:
    """Two runs have the losses and weights of one training, up to rounding."""
    assert losses(folder) == pytest.approx(losses(other), abs=1e-3)
    ours, theirs = weights(folder), weights(other)
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < weights_within
