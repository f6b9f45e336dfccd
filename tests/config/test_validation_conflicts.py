"""Validation, best checkpoint and early stopping: impossible settings are refused before anything trains."""

from __future__ import annotations

import re

import pytest

from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError
from tests.conftest import experiment_config

EVERY = {"every_steps": 10}


def refused(folder, **sections) -> str:
    with pytest.raises(ConfigError) as error:
        experiment_config(folder, **sections)
    assert len(error.value.problems) == 1
    return error.value.problems[0]


@pytest.mark.parametrize(
    ("training", "problem"),
    [
        ({"validation": EVERY | {"times": 3}}, "training.validation.times: 3, but every_steps is 10; set one"),
        ({"keep": "best"}, "training.keep: 'best' needs validations to choose by; set training.validation.every_steps"),
        ({"early_stopping": {"patience": 2}}, "training.early_stopping.patience: 2 needs validations to choose by"),
        (
            {"validation": EVERY | {"sets": ["validation", "absent.jsonl"]}},
            "training.validation.sets: 'absent.jsonl': no such file",
        ),
        (
            {"validation": EVERY | {"sets": ["test"]}},
            "'test': the data \\(.*\\) has no such split; set data.test_fraction",
        ),
        ({"validation": EVERY | {"sets": ["tset"]}}, "'tset': the data \\(.*\\) has no such split; name another set"),
        (
            {"validation": EVERY, "keep": "best", "best": {"set": "validatoin"}},
            "training.best.set: 'validatoin' is not among training.validation.sets. Did you mean 'validation'",
        ),
        (
            {"validation": EVERY | {"sets": ["train"]}, "keep": "best"},
            "training.best.set: 'train' holds the pairs that are learned",
        ),
        (
            {"validation": EVERY | {"sets": ["rewardbench"]}, "early_stopping": {"patience": 1}},
            "training.best.set: 'rewardbench' is a benchmark, which must not choose the model that it tests",
        ),
        ({"validation": EVERY | {"sets": []}}, "training.validation.sets"),
        ({"validation": {"every_steps": 0}}, "training.validation.every_steps"),
        ({"keep": "worst"}, 'training.keep: is "worst"; allowed: last, best'),
    ],
)
def test_impossible_settings_are_refused(tmp_path, training, problem):
    message = refused(tmp_path, training=training)
    assert re.search(problem, message), message


def test_two_files_of_one_name_are_refused(tmp_path):
    files = []
    for folder in ("a", "b"):
        file = tmp_path / folder / "pairs.jsonl"
        file.parent.mkdir()
        file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        files.append(str(file))
    message = refused(tmp_path, training={"validation": EVERY | {"sets": files}})
    assert message == "training.validation.sets: 2 sets would be called 'pairs' in the metrics; rename a file"


def test_a_grid_is_tuned_with_the_last_checkpoint(tmp_path):
    tuning = {"enabled": True, "learning_rates": [1e-3]}
    message = refused(tmp_path, tuning=tuning, training={"validation": EVERY, "keep": "best"})
    assert "tuning.enabled chooses settings by the same ones" in message
    experiment_config(tmp_path, tuning=tuning, training={"validation": EVERY})


def test_the_split_of_a_benchmark_may_be_watched_but_not_choose(tmp_path):
    world = {
        "data": {"dataset": "world"},
        "benchmarks": {"world": {}},
        "experiment": "test",
        "results": str(tmp_path),
        "methods": {"bradley_terry": {}},
    }
    watched = {"validation": EVERY | {"sets": ["validation", "iid"]}}
    resolved = resolve(world | {"training": watched | {"keep": "best"}})
    assert "iid" in resolved["benchmarks"]["world"]["options"]["splits"]
    with pytest.raises(ConfigError, match=r"benchmarks\.world tests on the split 'iid', which must not choose"):
        resolve(world | {"training": watched | {"keep": "best", "best": {"set": "iid"}}})
    with pytest.raises(ConfigError, match=r"'absent': the data \(world\) has no such split"):
        resolve(world | {"training": {"validation": EVERY | {"sets": ["absent"]}}})


def test_the_file_of_test_pairs_may_not_choose(tmp_path):
    file = tmp_path / "held_out.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "d"}\n')
    data = {"test": str(file)}
    training = {"validation": EVERY | {"sets": [str(file)]}}
    experiment_config(tmp_path, data=data, training=training)
    message = refused(tmp_path, data=data, training=training | {"keep": "best"})
    assert "is the file of data.test, which must not choose the model" in message


def test_live_metrics_need_the_export(tmp_path):
    message = refused(tmp_path, tracking={"live": True, "enabled": False})
    assert message.startswith("tracking.live: true, but tracking.enabled is false")
    experiment_config(tmp_path, tracking={"live": True})


def test_nothing_is_checked_while_validation_is_off(tmp_path):
    experiment_config(tmp_path, training={"validation": {"sets": ["absent.jsonl"]}, "best": {"set": "other"}})
