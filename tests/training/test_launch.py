"""The check of the GPUs, the command for several nodes, and how runs end on signals and full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rm_methods.errors import UserError
from rm_methods.system.run_lock import LOCK
from rm_methods.training import launch
from rm_methods.training.launch import (
    check_gpus,
    launch_ranks,
    several_nodes_command,
    stops_on_signals,
)
from tests.conftest import REPOSITORY
from tests.training.commands import train_command

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")] + [
        "CUDA_VISIBLE_DEVICES",
        launch.STAND_INS,
        "MASTER_ADDR",
    ]:
        monkeypatch.delenv(name, raising=False)


TWO_NODES = {"gpus": 0, "nodes": 2, "threads": 1}


def seen_by_torch(monkeypatch, count):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("asked", "variable", "torch_sees", "problem"),
    [
        (2, "0,1", 2, None),
        (1, "GPU-8c5", 1, None),
        (0, None, 4, None),
        (
            2,
            "0",
            1,
            r"resources.gpus: 2 GPUs were asked for, but Slurm job 17 on .* shows 1 \(CUDA_VISIBLE_DEVICES=0\)",
        ),
        (1, "0,1,2", 3, "1 GPUs were asked for, but .* shows 3"),
        (2, "", 0, r"shows 0 \(CUDA_VISIBLE_DEVICES=\)"),
        (2, None, 8, r"shows 8 \(CUDA_VISIBLE_DEVICES is not set\)"),
        (2, "0,1", 0, "has 2 GPUs .* but torch sees 0: "),
    ],
)
def test_a_slurm_job_must_see_the_gpus_that_were_asked_for(tmp_path, monkeypatch, asked, variable, torch_sees, problem):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    seen_by_torch(monkeypatch, torch_sees)
    if problem is None:
        check_gpus(asked, asked or 1, "training.processes")
    else:
        with pytest.raises(UserError, match=problem):
            check_gpus(asked, asked or 1, "training.processes")


def test_stand_ins_are_compared_with_what_slurm_gave_only(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(launch.STAND_INS, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen_by_torch(monkeypatch, 0)
    check_gpus(2, 2, "training.processes")
    with pytest.raises(UserError, match="shows 2"):
        check_gpus(1, 1, "training.processes")


def test_outside_slurm_every_rank_needs_a_gpu_if_there_are_any(tmp_path, monkeypatch):
    seen_by_torch(monkeypatch, 0)
    check_gpus(0, 4, "training.processes")
    seen_by_torch(monkeypatch, 4)
    check_gpus(0, 4, "training.processes")
    seen_by_torch(monkeypatch, 2)
    with pytest.raises(UserError, match=r"training.processes: 4 ranks need a GPU each, but .* shows 2"):
        check_gpus(0, 4, "training.processes")


def test_the_command_for_several_nodes_starts_one_torchrun_on_each():
    resources = {"nodes": 3, "gpus": 8, "threads": 16}
    command = several_nodes_command(8, resources, "150007", {"MASTER_ADDR": "node1-ib"})
    start = command.index(sys.executable)
    assert command[:start] == [
        "srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--cpus-per-task=16", "--gpus-per-node=8",
        "--kill-on-bad-exit=1"
    ]  # fmt: skip
    assert command[start + 1 :] == [
        "-m", "torch.distributed.run", "--nnodes=3", "--nproc_per_node=8",
        # 15000 + 150007 mod 15000
        "--rdzv_backend=c10d", "--rdzv_endpoint=node1-ib:15007", "--rdzv_id=150007",
    ]  # fmt: skip
    on_cpus = several_nodes_command(2, resources | {"gpus": 0}, "4", {"MASTER_PORT": "29500"})
    assert not any(word.startswith("--gpus") for word in on_cpus)
    assert on_cpus[-2] == f"--rdzv_endpoint={os.uname().nodename}:29500"


@pytest.mark.parametrize(
    ("job", "there", "problem"), [(None, None, "this is not a Slurm job"), ("17", 1, "Slurm job 17 has 1")]
)
def test_nodes_that_are_not_there_are_refused(tmp_path, monkeypatch, job, there, problem):
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setattr(launch, "allocated_nodes", lambda number: there)
    with pytest.raises(UserError, match=f"resources.nodes: 2 nodes were asked for, but {problem}"):
        launch_ranks(1, TWO_NODES, ["train"])


def test_the_step_does_not_inherit_options_of_the_allocation(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "9")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/other.conf")
    monkeypatch.setattr(launch, "allocated_nodes", lambda number: 2)
    started = []
    monkeypatch.setattr(launch, "_run", lambda command, environment: started.append((command, environment)) or 0)
    launch_ranks(1, TWO_NODES, ["train", "--seed", "0"])
    command, environment = started[0]
    assert command[-5:] == ["-m", "rm_methods.cli", "train", "--seed", "0"]
    assert {name for name in environment if name.startswith("SLURM_")} == {"SLURM_JOB_ID", "SLURM_CONF"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_block_like_an_error(number, capsys):
    cleaned = []

    def interrupted():
        with stops_on_signals():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        interrupted()
    assert (ended.value.code, cleaned) == (128 + number, [True])
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert signal.getsignal(number) == signal.SIG_DFL


def command_and_environment(prepared, folder, epochs, out, work):
    """A real training that writes a checkpoint every five steps, on a copy of the package that nobody edits."""
    shutil.copytree(
        REPOSITORY / "rm_methods", folder / "code" / "rm_methods", ignore=shutil.ignore_patterns("__pycache__")
    )
    options = {"epochs": epochs, "checkpoint_every_steps": 5}
    command = train_command(prepared, folder / "configuration", out=out, work=work, **options)
    return command, os.environ | {"PYTHONPATH": str(folder / "code")}


@pytest.mark.slow
def test_a_full_disk_ends_a_training_with_what_to_do_and_no_half_checkpoint(prepared, tmp_path, small_disk):
    command, environment = command_and_environment(prepared, tmp_path, 1, tmp_path / "run", small_disk / "work")
    (small_disk / "other").write_bytes(b"x" * 700 * 1024)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert f"the disk is full or over its quota while writing to {small_disk / 'work'} (" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run").iterdir()) == []
    assert not list((small_disk / "work").glob("*/checkpoint-*/complete"))


@pytest.mark.slow
def test_a_terminated_training_leaves_its_checkpoint_and_nothing_half_written(prepared, tmp_path):
    """SIGTERM, which Slurm sends at the time limit, ends a real run; the same command continues from the checkpoint."""
    command, environment = command_and_environment(prepared, tmp_path, 100, tmp_path / "run", tmp_path / "work")
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while (
        not list((tmp_path / "work").glob("*/checkpoint-*/complete"))
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.02)
    assert (tmp_path / "run" / LOCK).exists()
    process.terminate()
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + signal.SIGTERM, error
    assert "stopped by SIGTERM" in error
    assert "Traceback" not in error
    assert list((tmp_path / "run").iterdir()) == []
    assert list((tmp_path / "work").glob("*/checkpoint-*/complete"))
    again = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert any("resumes from" in line for line in again.stderr)
    again.kill()
    again.wait()


@pytest.mark.parametrize(("threads", "ranks", "share"), [(16, "8", 2), (2, "8", 1), (0, "8", 0), (16, None, 16)])
def test_ranks_share_the_threads_of_a_job(monkeypatch, threads, ranks, share):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert launch.threads_of_rank(threads) == share
