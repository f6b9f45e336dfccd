"""Another number of ranks: the same losses over a whole run, and a killed run that continues on more ranks.

`test_rank_failure.py` continues one on fewer.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from rm_methods.errors import UserError
from rm_methods.training import resume
from rm_methods.training.run import run_key
from tests.conftest import experiment_config
from tests.training.commands import assert_alike, killed_in_training, losses, run_to_the_end, train_command
from tests.training.conftest import STEADY

pytestmark = pytest.mark.process


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_run_that_was_killed_on_two_ranks_continues_on_three(prepared, one_rank, tmp_path, stage):
    killed_in_training(train_command(prepared, tmp_path, **STEADY, processes=2, deepspeed=stage), tmp_path)
    assert "converting it for 3" in run_to_the_end(
        train_command(prepared, tmp_path, **STEADY, processes=3, deepspeed=stage)
    )
    assert_alike(tmp_path, one_rank, weights_within=5e-3)
    assert json.loads((tmp_path / "summary.json").read_text())["cost"]["world_size"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, "zero1", "zero2", "zero3", "zero3_offload"])
def test_bradley_terry_and_distillation_lose_alike_over_fifty_steps_on_every_stage(prepared, one_rank, tmp_path, stage):
    options = STEADY | {"processes": 2, "deepspeed": stage, "checkpoint_every_steps": None}
    run_to_the_end(train_command(prepared, tmp_path / "bradley_terry", **options))
    assert_alike(tmp_path / "bradley_terry", one_rank, weights_within=5e-3)
    run_to_the_end(train_command(prepared, tmp_path / "teacher", "joint_encoder", **STEADY))
    required = {"teacher": [tmp_path / "teacher" / "model"]}
    for name, training in (("one", STEADY), ("two", options)):
        folder = tmp_path / name
        run_to_the_end(train_command(prepared, folder, "interaction_distillation", required=required, **training))
    assert len(losses(tmp_path / "one")) == 54
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)


def test_checkpoints_belong_to_a_method_and_not_to_a_world_size(tmp_path):
    config = experiment_config(tmp_path, methods={"bradley_terry": {}, "hinge": {}}, training={"processes": 4})
    other = experiment_config(tmp_path, methods={"bradley_terry": {}, "hinge": {}}, training={"processes": 2})
    folders = [
        run_key(resume.without_world_size(c), v, 0, "hash")
        for c, v in ((config, "bradley_terry"), (other, "bradley_terry"))
    ]
    assert folders[0] == folders[1]
    assert folders[0] != run_key(resume.without_world_size(config), "hinge", 0, "hash")
    assert run_key(config, "bradley_terry", 0, "hash") != run_key(other, "bradley_terry", 0, "hash")
    assert config["training"]["processes"] == 4


def checkpoint_of(folder: Path, ranks: int) -> Path:
    """The files by which a checkpoint tells its number of ranks; nothing in them can be converted."""
    (folder / "global_step5").mkdir(parents=True)
    for rank in range(ranks):
        (folder / "global_step5" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"none")
    (folder / "latest").write_text("global_step5")
    return folder


def test_a_checkpoint_of_the_same_world_size_is_left_as_it_is(tmp_path):
    assert resume.fitted_to(None, 2) is False
    assert resume.fitted_to(checkpoint_of(tmp_path / "zero", 2), 2) is False
    assert {path.name for path in (tmp_path / "zero").iterdir()} == {"global_step5", "latest"}
    (tmp_path / "plain").mkdir()
    assert resume.ranks_of(tmp_path / "plain") is None
    assert resume.fitted_to(tmp_path / "plain", 2) is False


def test_a_checkpoint_that_cannot_be_converted_is_kept_and_the_error_says_what_to_do(tmp_path, monkeypatch):
    checkpoint = checkpoint_of(tmp_path / "zero", 2)
    monkeypatch.setattr(resume, "_CONVERTER", "rm_methods.errors.no_such_module")
    with pytest.raises(
        UserError, match=r"written by 2 ranks.*for 3.*Continue with 2 ranks \(training\.processes"
    ) as failure:
        resume.fitted_to(checkpoint, 3)
    assert "it was not changed" in str(failure.value)
    assert len(list((checkpoint / "global_step5").iterdir())) == 2


def test_a_conversion_is_done_once(tmp_path, monkeypatch):
    checkpoint = checkpoint_of(tmp_path / "zero", 2)
    (checkpoint / "latest_universal").write_text("global_step5_universal")
    monkeypatch.setattr(resume, "_CONVERTER", "rm_methods.errors.no_such_module")
    assert resume.fitted_to(checkpoint, 1) is True
    shutil.rmtree(checkpoint)


def test_what_a_killed_converter_left_is_not_taken_for_the_checkpoint(tmp_path, monkeypatch):
    checkpoint = checkpoint_of(tmp_path / "zero", 2)
    (checkpoint / "global_step5_universal" / "zero").mkdir(parents=True)
    (checkpoint / "global_step4_universal").mkdir()
    asked = []

    def converter(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(resume.subprocess, "run", converter)
    assert resume.fitted_to(checkpoint, 1) is True
    assert asked[0][asked[0].index("--input_folder") + 1] == str(checkpoint / "global_step5")
    assert not (checkpoint / "global_step5_universal").exists()
