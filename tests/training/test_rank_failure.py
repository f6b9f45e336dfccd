"""A rank that dies ends the others; the rerun ends with the weights of an uninterrupted run, on one rank, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.training.commands import assert_alike, killed_in_training, losses, run_to_the_end, train_command, weights
from tests.training.conftest import STEADY

pytestmark = pytest.mark.process

STAGES = [
    "zero2",
    *(pytest.param(s, marks=pytest.mark.slow) for s in (None, "zero0", "zero1", "zero3", "zero3_offload")),
]


class Killed(NamedTuple):
    folder: Path
    seconds: float  # until everything had ended
    errors: str


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> Callable[[str | None], Path]:
    """The run on two ranks that nobody kills, by stage."""

    @cache
    def train_to_the_end(stage):
        folder = tmp_path_factory.mktemp("whole")
        run_to_the_end(train_command(prepared, folder, **STEADY, processes=2, deepspeed=stage))
        return folder

    return train_to_the_end


@pytest.fixture(scope="module")
def killed(prepared, tmp_path_factory) -> Callable[[str | None], Killed]:
    """The same run, of which one rank was killed, by stage; for tests that continue a copy of it."""

    @cache
    def kill(stage):
        folder = tmp_path_factory.mktemp("killed")
        command = train_command(prepared, folder, **STEADY, processes=2, deepspeed=stage)
        return Killed(folder, *killed_in_training(command, folder))

    return kill


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_learn_what_one_rank_learns(whole, one_rank, stage):
    assert_alike(whole(stage), one_rank, weights_within=5e-3)
    assert json.loads((whole(stage) / "summary.json").read_text())["cost"]["world_size"] == 2


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_rank_stops_the_others_and_the_rerun_ends_with_the_same_weights(
    prepared, whole, killed, tmp_path, stage
):
    folder, seconds, errors = killed(stage)
    assert seconds < 60
    assert "rank failed" in errors
    assert not (folder / "model").exists()
    assert not (folder / "summary.json").exists()
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    command = train_command(prepared, folder, out=tmp_path, **STEADY, processes=2, deepspeed=stage)
    assert "resumes from" in run_to_the_end(command)
    ours, theirs = weights(tmp_path), weights(whole(stage))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses(tmp_path) == losses(whole(stage))
    assert not list((tmp_path / "work").glob("*/checkpoint-*")), "checkpoints of a finished run are removed"


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_killed_on_two_ranks_continues_on_one(prepared, killed, one_rank, tmp_path, stage):
    folder = killed(stage).folder
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    command = train_command(prepared, folder, out=tmp_path, **STEADY, processes=1, deepspeed=stage)
    errors = run_to_the_end(command)
    assert "resumes from" in errors
    assert ("written by 2 ranks; converting it for 1" in errors) == (stage not in (None, "zero0"))
    assert_alike(tmp_path, one_rank, weights_within=5e-3)


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
    assert_alike(killed, whole, weights_within=1e-2)
