"""A small experiment as the workflow leaves it before the evaluation: two seeds, their ensemble, a baseline, a joint
model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rm_methods.experiment.layout import Layout
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config

METHODS = {
    "bradley_terry": {},
    "ensemble": {},
    "longest": {},
    "joint_encoder": {"masked_language_epochs": 0},
}


@pytest.fixture(scope="session")
def trained_experiment(prepared, tmp_path_factory) -> Path:
    """Folder of the experiment; only for reading."""
    root = tmp_path_factory.mktemp("shared") / "results" / "test"
    layout = Layout(root)
    layout.pairs.parent.mkdir(parents=True)
    shutil.copyfile(prepared[0], layout.pairs)
    shutil.copytree(prepared[1], layout.backbone)
    config = experiment_config(root.parents[1], methods=METHODS, seeds=[0, 1])

    def run(variant, seed, required=None):
        folder = layout.run(variant, seed)
        files = RunFiles(
            layout.pairs,
            layout.backbone,
            layout.model(variant, seed),
            folder / "metrics.jsonl",
            layout.summary(variant, seed),
            layout.work,
            required or {},
        )
        train(config, variant, seed, files, threads=1)

    for seed in (0, 1):
        run("bradley_terry", seed)
    run("longest", 0)
    run("joint_encoder", 0)
    run("ensemble", 0, {"members": [layout.model("bradley_terry", seed) for seed in (0, 1)]})
    return root


@pytest.fixture
def experiment(trained_experiment, tmp_path) -> Layout:
    """A copy of the experiment that a test may change."""
    root = tmp_path / "results" / "test"
    shutil.copytree(trained_experiment, root)
    return Layout(root)
