"""A rank that dies in training ends the others, and the rerun ends with the weights of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import experiment_config

pytestmark = pytest.mark.process

LONG = {"processes": 2, "epochs": 12, "checkpoint_every_steps": 12}  # 72 steps


def train_command(
    prepared, folder: Path, variant: str = "bradley_terry", teacher: Path | None = None, **training
) -> list[str]:
    """`rm-methods train` for a run in `folder`, whose configuration is written there."""
    teachers = {
        "joint_encoder": {"masked_language_epochs": 1, "epochs": 1},
        "joint_bidirectional": {"masked_language_epochs": 6, "epochs": 1},
    }
    methods = {"bradley_terry": {}, **teachers, "interaction_distillation": {}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(experiment_config(folder, methods=methods, training=training)))
    command = [
        sys.executable,
        "-m",
        "rm_methods.cli",
        "train",
        "--config",
        folder / "config.yaml",
        "--variant",
        variant,
    ]
    command += [
        "--seed",
        "0",
        "--pairs",
        prepared[0],
        "--backbone",
        prepared[1],
        "--out",
        folder,
        "--work",
        folder / "work",
    ]
    return [str(word) for word in command] + ([f"--required=teacher={teacher}"] if teacher else [])


def run_to_the_end(command: list[str]) -> str:
    """Standard error of a run that must succeed."""
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The rank processes of a running training: they have no children that train."""
    found = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "rm_methods.cli" in " ".join(p.cmdline())
    ]
    return [p for p in found if "torch.distributed.run" not in p.cmdline()]


def killed_in_training(command: list[str], folder: Path, checkpoints: str = "*/checkpoint-*") -> tuple[float, str]:
    """Start a run on two ranks, kill one after the first checkpoint.

    Args:
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
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "stage", ["zero2", *(pytest.param(s, marks=pytest.mark.slow) for s in (None, "zero1", "zero3", "zero3_offload"))]
)
def test_a_killed_rank_stops_the_others_and_the_rerun_ends_with_the_same_weights(prepared, tmp_path, stage):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_to_the_end(train_command(prepared, whole, **LONG, deepspeed=stage))
    command = train_command(prepared, killed, **LONG, deepspeed=stage)
    seconds, errors = killed_in_training(command, killed)
    assert seconds < 60
    assert "rank failed" in errors
    assert not (killed / "model").exists()
    assert not (killed / "summary.json").exists()
    assert "resumes from" in run_to_the_end(command)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses(killed) == losses(whole)
    assert not list((killed / "work").glob("*/checkpoint-*")), "checkpoints of a finished run are removed"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 1])
@pytest.mark.parametrize("stage", [None, "zero2", "zero3"])
def test_a_teacher_that_was_killed_while_it_trained_on_text_continues_there(prepared, tmp_path, stage, ranks):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"checkpoint_every_steps": 4, "learning_rate": 3e-4}
    run_to_the_end(train_command(prepared, whole, "joint_bidirectional", **options))
    command = train_command(prepared, killed, "joint_bidirectional", **options, processes=2, deepspeed=stage)
    killed_in_training(command, killed, "*/adaptation/checkpoint-*")
    command = train_command(prepared, killed, "joint_bidirectional", **options, processes=ranks, deepspeed=stage)
    assert "(masked language modeling): resumes from" in run_to_the_end(command)
    assert losses(killed) == pytest.approx(losses(whole), abs=1e-3)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (whole, killed))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-2
