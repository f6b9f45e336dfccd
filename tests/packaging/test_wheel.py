"""The package works installed: from a wheel, in a folder that holds nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.process


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the working tree."""
    source = tmp_path_factory.mktemp("source") / "rm-methods"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (
            name.startswith(("rm_methods/", "snakemake_logger_plugin", "pyproject.toml", "README.md", "LICENSE"))
            and (REPOSITORY / name).is_file()
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    wheels = tmp_path_factory.mktemp("wheels")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source]
    subprocess.run(build, check=True, timeout=300)
    (file,) = wheels.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, unpacked as pip unpacks it into an environment; dependencies are those of the tests."""
    target = tmp_path_factory.mktemp("environment")
    subprocess.run([*PIP, "install", "--no-deps", "--target", target, wheel], check=True, timeout=300)
    return target


@pytest.fixture
def rm_methods(installed, tmp_path):
    """Runs the installed command in an empty folder."""

    def run(*arguments: str) -> str:
        code = "import sys; from rm_methods.cli import main; sys.argv[0] = 'rm-methods'; main()"
        environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_methods_benchmarks_and_datasets_are_listed(rm_methods):
    assert "bradley_terry" in rm_methods("list", "methods")
    assert "rm_bench" in rm_methods("list", "benchmarks")
    assert "hh_rlhf" in rm_methods("list", "datasets")


def test_a_configuration_is_checked(rm_methods, tmp_path):
    config = {"experiment": "mine", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    assert "learning_rate" in rm_methods("check", "--full", "--config", "mine.yaml")


def test_a_method_outside_the_package_is_tested(rm_methods, installed, tmp_path):
    shutil.copytree(installed / "rm_methods" / "methods" / "template", tmp_path / "mine")
    assert "my_method fulfills the contract." in rm_methods("test-method", "my_method", "--methods", "mine")


def test_cards_of_the_working_directory_are_read(rm_methods, tmp_path):
    (tmp_path / "data" / "datasets").mkdir(parents=True)
    card = REPOSITORY / "rm_methods" / "data" / "datasets" / "ultrafeedback_binarized.yaml"
    text = card.read_text().replace("name: ultrafeedback_binarized", "name: mine")
    (tmp_path / "data" / "datasets" / "mine.yaml").write_text(text)
    assert "mine" in rm_methods("list", "datasets")


def test_the_weights_of_the_world_are_inside_and_the_wheel_is_small(wheel, rm_methods, tmp_path):
    config = {
        "experiment": "mine",
        "data": {"dataset": "world", "options": {"annotator": {}, "train_pairs": 20, "test_pairs": 5}},
        "backbone": {"source": "world", "max_length": 256},
        "methods": {"bradley_terry": {}},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    rm_methods("prepare", "--config", "mine.yaml", "--pairs", "pairs.parquet", "--report", "report.json")
    rm_methods("prepare-backbone", "--config", "mine.yaml", "--pairs", "pairs.parquet", "--out", "backbone")
    assert wheel.stat().st_size < 7e6  # three models of the world of 1.9 MB each


def test_pairs_are_scored(rm_methods, reward_model, tokenizer, tmp_path):
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    pair = {"prompt": "Paint it.", "chosen": "I paint it red.", "rejected": "No."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    rm_methods("score", "--model", "model", "--data", "pairs.jsonl", "--out", "scores.parquet")
    assert len(pd.read_parquet(tmp_path / "scores.parquet")) == 2


def test_snakemake_finds_the_plugin_of_the_terminal(installed, tmp_path):
    code = (
        "from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry;"
        "print(LoggerPluginRegistry().is_installed('rm-methods'))"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "True\n", done.stderr
