"""Conflicts of validation during training, the best checkpoint, and early stopping.  Imports nothing heavy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.errors import nearest
from rm_methods.preferences.data_sources import dataset_name
from rm_methods.scoring.pair_sets import choosing_set, kind_of_set, title_of_set


def validation_conflicts(config: Mapping[str, Any]) -> list[str]:
    """One sentence for each, with its key path and what to change."""
    training = config["training"]
    validation = training["validation"]
    names = validation["sets"]
    is_on = bool(validation["every_steps"] or validation["times"])
    problems = []
    if validation["every_steps"] and validation["times"]:
        problems.append(
            f"training.validation.times: {validation['times']}, but every_steps is {validation['every_steps']}; set "
            "one of them to null"
        )
    if is_on:
        problems += [problem for name in names for problem in _set_problems(config, name)]
        titles = Counter(title_of_set(name) for name in names)
        problems += [
            f"training.validation.sets: {count} sets would be called '{title}' in the metrics; rename a file"
            for title, count in titles.items()
            if count > 1
        ]
    patience = training["early_stopping"]["patience"]
    choices = {
        "training.keep: 'best'": training["keep"] == "best",
        f"training.early_stopping.patience: {patience}": patience is not None,
    }
    for where, is_chosen in choices.items():
        if not is_chosen:
            continue
        if not is_on:
            problems.append(f"{where} needs validations to choose by; set training.validation.every_steps or times")
        if config["tuning"]["enabled"]:
            problems.append(
                f"{where} chooses by the validation pairs, and tuning.enabled chooses settings by the same ones; tune "
                "with the last checkpoint, then train with the tuned settings"
            )
    if any(choices.values()):
        problems += _choosing_set_problems(config)
    return problems


def _set_problems(config: Mapping[str, Any], name: str) -> list[str]:
    """A file, split or benchmark that does not exist."""
    from rm_methods.preferences.split_search import lacks_split

    where = f"training.validation.sets: '{name}'"
    kind = kind_of_set(name)
    if kind == "file":
        if os.path.isfile(name):
            return []
        return [f"{where}: no such file (looked in {Path.cwd()})"]
    if kind == "benchmark":
        return []  # its reader says what is missing
    data = config["data"]
    if name != "train" and lacks_split(data, name):
        remedy = f"set data.{name}_fraction above 0, or " if name in ("validation", "test") else ""
        return [f"{where}: the data ({dataset_name(data)}) has no such split; {remedy}name another set"]
    return []


def _choosing_set_problems(config: Mapping[str, Any]) -> list[str]:
    """A set that may not choose the checkpoint: it must be one of the sets, and not be training or test data."""
    from rm_methods.benchmarks.cards import load_benchmark_card

    training = config["training"]
    names = training["validation"]["sets"]
    name = choosing_set(training)
    if name not in names:
        return [f"training.best.set: '{name}' is not among training.validation.sets. {nearest(name, names)}"]
    if name == "train":
        return ["training.best.set: 'train' holds the pairs that are learned; name a set of other pairs"]
    if kind_of_set(name) == "benchmark":
        return [
            f"training.best.set: '{name}' is a benchmark, which must not choose the model that it tests; name a split "
            "or a file"
        ]
    test = config["data"]["test"]
    if test is not None and os.path.exists(name) and os.path.samefile(name, test):
        return [
            f"training.best.set: '{name}' is the file of data.test, which must not choose the model; name another set"
        ]
    for benchmark, entry in config["benchmarks"].items():
        if name in entry["options"].get("splits", []) and load_benchmark_card(benchmark).module == "prepared_splits":
            return [
                f"training.best.set: benchmarks.{benchmark} tests on the split '{name}', which must not choose the "
                "model; name another set"
            ]
    return []
