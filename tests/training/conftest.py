from __future__ import annotations

from pathlib import Path

import pytest

from rm_methods.training.run import train
from tests.conftest import experiment_config
from tests.training.commands import METHODS
from tests.training.test_trainer import run_files

# 54 steps. The learning rate is gentle because rounding errors grow with it: at 1e-3 one rank that only cuts its
# micro-batches otherwise is already 1.3e-3 away from itself in Interaction Distillation. The decay is strong, and norms
# have none of it: where DeepSpeed let them decay, they would end 8% away.
STEADY = {"epochs": 9, "learning_rate": 3e-4, "checkpoint_every_steps": 20, "weight_decay": 5.0}


@pytest.fixture(scope="session")
def one_rank(prepared, tmp_path_factory) -> Path:
    """The run with `STEADY` in one process."""
    folder = tmp_path_factory.mktemp("one_rank")
    train(experiment_config(folder, methods=METHODS, training=STEADY), "bradley_terry", 0, run_files(prepared, folder))
    return folder
