"""The key of a training run: one hash of everything that its result depends on.  Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_methods.files import named_file_hash
from rm_methods.methods.registry import load_method_card
from rm_methods.scoring.pair_sets import choosing_set, kind_of_set
from rm_methods.stored import read_run_key
from rm_methods.system.code_hash import code_hash
from rm_methods.system.deepspeed import custom_file_hash
from rm_methods.system.provenance import key_of

# Settings of `training` that choose a checkpoint or measure; they count in another form (`keyed_training`).
CHOICE = ("validation", "keep", "best", "early_stopping")


def training_settings(config: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The part of the configuration that a training run depends on, with hashes of the files that it names."""
    method = config["methods"][variant]
    card = load_method_card(method["method"])
    settings = {"method": method, "files": [named_file_hash(name) for name in card.files_named(method["settings"])]}
    if card.has_weights:
        backbone = config["backbone"]
        training = keyed_training(config["training"])
        settings |= {"backbone": backbone, "chat_template": named_file_hash(backbone["chat_template"])}
        settings |= {"training": training, "deepspeed": custom_file_hash(training["deepspeed"])}
    return settings


def keyed_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """The `training` section without the settings that do not change the model.

    Validation changes nothing unless it chooses the checkpoint or stops the training; then only the set that decides
    counts, with the content of its file.
    """
    kept = {key: value for key, value in training.items() if key not in CHOICE}
    patience = training["early_stopping"]["patience"]
    if training["keep"] == "last" and patience is None:
        return kept
    validation = training["validation"]
    name = choosing_set(training)
    choice = {key: validation[key] for key in ("every_steps", "times", "max_pairs")}
    choice |= {"keep": training["keep"], "patience": patience, "metric": training["best"]["metric"], "set": name}
    if kind_of_set(name) == "file":
        choice["set_file"] = named_file_hash(name)
    return kept | {"choice": choice}


def training_code(config: Mapping[str, Any], variant: str) -> str:
    """Hash of the code that a training run depends on: of the stage and of its method, not of other methods."""
    return code_hash("train", load_method_card(config["methods"][variant]["method"]).module)


def run_dependencies(
    config: Mapping[str, Any],
    variant: str,
    seed: int,
    pairs_hash: str,
    required: Mapping[str, Sequence[Path]] | None = None,
) -> dict[str, Any]:
    """Everything that a run depends on, by name: settings, seed, data, required runs, code.  JSON-like.

    Args:
        required: model folders of the required runs; a run's summary.json is beside its model.
    """
    keys = {
        name: [read_run_key(folder.parent / "summary.json") for folder in folders]
        for name, folders in (required or {}).items()
    }
    rest = {"seed": seed, "pairs": pairs_hash, "required": keys, "code": training_code(config, variant)}
    return training_settings(config, variant) | rest


def run_key(
    config: Mapping[str, Any],
    variant: str,
    seed: int,
    pairs_hash: str,
    required: Mapping[str, Sequence[Path]] | None = None,
) -> str:
    """Hash of everything that a run depends on."""
    return key_of(run_dependencies(config, variant, seed, pairs_hash, required))
