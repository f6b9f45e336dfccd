"""Two ranks through torchrun on the CPU: the same losses as one rank, with and without DeepSpeed.

`test_rank_failure.py` holds the same for ZeRO-2, on runs that it needs anyway.
"""

from __future__ import annotations

import json

import pytest

from rm_methods.preferences.pair import make_pair, write_pairs
from rm_methods.training.run import train
from tests.conftest import experiment_config
from tests.training.commands import METHODS, assert_alike, losses, run, run_to_the_end, train_command
from tests.training.test_trainer import run_files

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def one_rank(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_rank")
    config = experiment_config(folder, methods=METHODS, training={"weight_decay": 5.0})
    train(config, "bradley_terry", 0, run_files(prepared, folder))
    return folder


STAGES = [
    None,
    "zero3",
    pytest.param("zero0", marks=pytest.mark.slow),
    pytest.param("zero1", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_learn_what_one_rank_learns(prepared, one_rank, tmp_path, stage):
    run_to_the_end(train_command(prepared, tmp_path, processes=2, deepspeed=stage, weight_decay=5.0))
    assert_alike(tmp_path, one_rank, weights_within=1e-2)
    assert json.loads((tmp_path / "summary.json").read_text())["cost"]["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, "zero2", "zero3"])
def test_teacher_and_student_on_two_ranks_learn_what_one_rank_learns(prepared, tmp_path, stage):
    learned = {}
    for ranks in (1, 2):
        options = {"processes": ranks, "deepspeed": stage if ranks == 2 else None, "weight_decay": 5.0}
        teacher, student = (tmp_path / f"{name}{ranks}" for name in ("teacher", "student"))
        run_to_the_end(train_command(prepared, teacher, "joint_encoder", **options))
        # The same teacher for both students, so that their losses can be compared.
        required = {"teacher": [tmp_path / "teacher1" / "model"]}
        command = train_command(prepared, student, "interaction_distillation", required=required, **options)
        run_to_the_end(command)
        learned[ranks] = [losses(teacher), losses(student)]
    assert learned[2][0] == pytest.approx(learned[1][0], abs=1e-3)
    assert learned[2][1] == pytest.approx(learned[1][1], abs=1e-3)


def test_a_failing_rank_ends_the_run_with_its_message(prepared, tmp_path):
    too_long = make_pair(
        [{"role": "user", "content": "Paint it red."}], "red " * 400, "no", split="train", source="made up"
    )
    write_pairs([too_long], tmp_path / "long.parquet")
    long = (tmp_path / "long.parquet", prepared[1], prepared[2])
    done = run(train_command(long, tmp_path, processes=2, overlong_pairs="error"))
    assert done.returncode == 2
    assert "training.max_length" in done.stderr
    assert not (tmp_path / "summary.json").exists()
