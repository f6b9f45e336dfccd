"""Two ranks through torchrun on the CPU: the same losses as one rank, with and without DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from rm_methods.preferences.pair import make_pair, write_pairs
from tests.conftest import experiment_config

pytestmark = pytest.mark.process

METHODS = {
    "bradley_terry": {},
    "joint_encoder": {"masked_language_epochs": 1, "epochs": 1},
    "interaction_distillation": {},
}


def run(prepared, folder: Path, variant: str = "bradley_terry", teacher: Path | None = None, **training) -> Path:
    config = experiment_config(folder, methods=METHODS, training={"processes": 1, "weight_decay": 5.0, **training})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
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
    command += ["--required", f"teacher={teacher}"] if teacher else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_rank(prepared, tmp_path_factory):
    return run(prepared, tmp_path_factory.mktemp("one_rank"))


STAGES = [
    None,
    "zero2",
    "zero3",
    pytest.param("zero0", marks=pytest.mark.slow),
    pytest.param("zero1", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_learn_what_one_rank_learns(prepared, one_rank, tmp_path, stage):
    two = run(prepared, tmp_path, processes=2, deepspeed=stage)
    assert losses(two) == pytest.approx(losses(one_rank), abs=1e-3)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one_rank, two))
    assert set(ours) == set(theirs)
    assert all(ours[key].shape == theirs[key].shape for key in ours)
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-2
    assert json.loads((two / "summary.json").read_text())["cost"]["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, "zero2", "zero3"])
def test_teacher_and_student_on_two_ranks_learn_what_one_rank_learns(prepared, tmp_path, stage):
    found = {}
    for ranks in (1, 2):
        options = {"processes": ranks, "deepspeed": stage if ranks == 2 else None}
        for name in ("teacher", "student"):
            (tmp_path / f"{name}{ranks}").mkdir()
        teacher = run(prepared, tmp_path / f"teacher{ranks}", "joint_encoder", **options)
        # The same teacher for both students, so that their losses can be compared.
        student = run(
            prepared,
            tmp_path / f"student{ranks}",
            "interaction_distillation",
            tmp_path / "teacher1" / "model",
            **options,
        )
        found[ranks] = [losses(teacher), losses(student)]
    assert found[2][0] == pytest.approx(found[1][0], abs=1e-3)
    assert found[2][1] == pytest.approx(found[1][1], abs=1e-3)


def test_a_failing_rank_ends_the_run_with_its_message(prepared, tmp_path):
    config = experiment_config(tmp_path, training={"processes": 2, "overlong_pairs": "error"})
    too_long = make_pair(
        [{"role": "user", "content": "Paint it red."}], "red " * 400, "no", split="train", source="made up"
    )
    write_pairs([too_long], tmp_path / "long.parquet")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "rm_methods.cli",
        "train",
        "--config",
        tmp_path / "config.yaml",
        "--variant",
        "bradley_terry",
    ]
    command += ["--seed", "0", "--pairs", tmp_path / "long.parquet", "--backbone", prepared[1]]
    command += ["--out", tmp_path, "--work", tmp_path / "work"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=400)
    assert done.returncode == 2
    assert "training.max_length" in done.stderr
    assert not (tmp_path / "summary.json").exists()
