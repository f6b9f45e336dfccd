"""DeepSpeed is an optional dependency: without it everything runs but its settings, which say what to install."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import types

import pytest
import torch
import yaml
from accelerate.utils.other import extract_model_from_parallel
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.errors import UserError
from rm_methods.ppo.run import PpoJob, optimize
from rm_methods.system.deepspeed import check_installed
from rm_methods.system.engines import look_for_engines_only_with_deepspeed
from tests.conftest import REPOSITORY, experiment_config

INSTALL = r"needs the package deepspeed.*pip install 'rm-methods\[deepspeed\]'"


@pytest.fixture
def without_deepspeed(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)


def train_arguments(prepared, folder, **training) -> list[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(experiment_config(folder, training=training)))
    arguments = ["train", "--config", folder / "config.yaml", "--variant", "bradley_terry", "--seed", "0"]
    arguments += ["--pairs", prepared[0], "--backbone", prepared[1], "--out", folder / "run", "--work", folder / "work"]
    return [str(argument) for argument in arguments]


def test_the_setting_says_what_to_install(without_deepspeed):
    check_installed("training.deepspeed", None)
    with pytest.raises(UserError, match=f"training.deepspeed: 'zero2' {INSTALL}"):
        check_installed("training.deepspeed", "zero2")


def test_a_training_refuses_before_ranks_start(without_deepspeed, prepared, tmp_path):
    done = CliRunner().invoke(main, train_arguments(prepared, tmp_path, deepspeed="zero2"))
    assert done.exit_code == 2
    assert "pip install 'rm-methods[deepspeed]'" in done.output


def test_ppo_refuses_before_ranks_start(without_deepspeed, tmp_path):
    job = PpoJob(
        config=experiment_config(tmp_path, overoptimization={"ppo": {"deepspeed": "zero2"}}),
        variant="bradley_terry",
        seed=0,
        model=tmp_path,
        policy=tmp_path,
        pairs=tmp_path / "pairs.parquet",
        references=tmp_path / "references.parquet",
        out=tmp_path / "out",
        work=tmp_path / "work",
        threads=1,
    )
    with pytest.raises(UserError, match=f"overoptimization.ppo.deepspeed: 'zero2' {INSTALL}"):
        optimize(job)


def test_no_module_needs_it_to_be_imported():
    imported = []
    for path in (REPOSITORY / "rm_methods").rglob("*.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
            imported += [(path.name, name) for name in names if name.split(".")[0] == "deepspeed"]
    assert imported == []


@pytest.mark.process
def test_a_run_trains_without_it(prepared, tmp_path):
    code = "import sys; sys.modules['deepspeed'] = None; from rm_methods.cli import main; main()"
    command = [sys.executable, "-c", code, *train_arguments(prepared, tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_accelerate_unwraps_an_engine_as_soon_as_deepspeed_is_imported(monkeypatch):
    engine = types.ModuleType("deepspeed")
    engine.DeepSpeedEngine = type("DeepSpeedEngine", (torch.nn.Module,), {})
    wrapped = engine.DeepSpeedEngine()
    wrapped.module = torch.nn.Linear(1, 1)
    monkeypatch.setitem(sys.modules, "deepspeed", engine)
    look_for_engines_only_with_deepspeed()
    assert extract_model_from_parallel(wrapped) is wrapped.module


@pytest.mark.process
def test_saving_a_model_does_not_import_deepspeed():
    code = (
        "import sys, torch; from accelerate.utils.other import extract_model_from_parallel;"
        "from rm_methods.system.engines import look_for_engines_only_with_deepspeed;"
        "look_for_engines_only_with_deepspeed(); model = torch.nn.Linear(1, 1);"
        "assert extract_model_from_parallel(model) is model; assert 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
