"""Trainings and scorings of the last layers only, with and without a folder of stored states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.registry import load_method_card, method_names
from rm_methods.planning.plan import Assumptions, model_shapes, plan
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.scoring.scorer import load_scorer, pair_rewards, scoring_settings
from rm_methods.training.run import train
from tests.conftest import experiment_config
from tests.training.commands import weights
from tests.training.test_trainer import run_files

pytestmark = pytest.mark.process

LAST = {"trained_layers": 1, "precision": "fp32", "checkpoint_every_steps": None}


def configured(folder: Path, states: Path | None = None, methods=None, **training):
    return experiment_config(
        folder,
        methods=methods or {"bradley_terry": {}},
        training=LAST | training,
        resources={"state_folder": None if states is None else str(states)},
    )


def trained(prepared, folder: Path, states: Path | None = None, methods=None, **training) -> dict[str, torch.Tensor]:
    config = configured(folder, states, methods, **training)
    (variant,) = config["methods"]
    train(config, variant, 0, run_files(prepared, folder))
    return weights(folder)


def test_only_the_last_layer_the_norm_and_the_head_change(prepared, tmp_path):
    before = load_classifier(prepared[1], prepared[2]["backbone"], seed=0).state_dict()
    after = trained(prepared, tmp_path, epochs=2)
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    last = max(int(name.split(".")[2]) for name in before if ".layers." in name)
    assert {name for name in before if f".layers.{last}." in name} <= changed
    assert {name for name in changed if f".layers.{last}." not in name} == {"model.norm.weight", "score.weight"}


def test_stored_states_change_rounding_only_and_are_shared_by_later_runs(prepared, tmp_path):
    states = tmp_path / "states"
    without = trained(prepared, tmp_path / "without")
    filling = trained(prepared, tmp_path / "filling", states)
    files = set(states.rglob("*.npy"))
    reading = trained(prepared, tmp_path / "reading", states)
    assert files
    assert set(states.rglob("*.npy")) == files
    for name, weight in without.items():
        torch.testing.assert_close(filling[name], weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(reading[name], filling[name], rtol=1e-5, atol=1e-7)


def test_scores_with_stored_states_are_those_without(prepared, pairs, tmp_path):
    states = tmp_path / "states"
    trained(prepared, tmp_path, states)
    stored = scoring_settings(configured(tmp_path, states))
    whole = scoring_settings(configured(tmp_path))
    expected = pair_rewards(load_scorer(tmp_path / "model", whole), pairs[:9])
    for _ in range(2):
        scores = pair_rewards(load_scorer(tmp_path / "model", stored), pairs[:9])
        assert abs(scores - expected).max() < 1e-4 * expected.std()


# Methods that need other runs, data or models have the same model and the same forward.
@pytest.mark.parametrize(
    "method",
    [
        name
        for name in method_names()
        if (card := load_method_card(name)).kind == "trained"
        and card.has_weights
        and not card.requires
        and name not in ("attn_rm", "label_control", "attention_transfer")
    ],
)
def test_every_method_trains_its_last_layer(method, prepared, tmp_path):
    try:
        after = trained(prepared, tmp_path, tmp_path / "states", {method: {}}, epochs=1)
    except UserError as error:
        if "strength" in str(error) or "controlled world" in str(error):
            pytest.skip(f"{method} needs other data: {error}")
        raise
    before = load_classifier(prepared[1], prepared[2]["backbone"], seed=0).state_dict()
    frozen = [name for name in before if ".layers.0." in name or "embed_tokens" in name]
    assert frozen
    for name in frozen:
        assert torch.equal(after[name], before[name]), name
    assert list((tmp_path / "states").rglob("*.npy"))


def test_attention_of_a_frozen_layer_is_refused_and_of_a_trained_one_learned(prepared, tmp_path):
    with pytest.raises(UserError, match=r"methods.attn_rm: reads the attention of layers 1.*trained_layers: 1 freezes"):
        trained(prepared, tmp_path / "all", methods={"attn_rm": {"layers": "all"}})
    assert trained(prepared, tmp_path / "last", tmp_path / "states", {"attn_rm": {"layers": [-1]}})


def problems(**sections) -> list[str]:
    minimal = {"experiment": "x", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}}
    with pytest.raises(ConfigError) as error:
        resolve(minimal | sections)
    return error.value.problems


def test_impossible_combinations_are_refused_before_a_training():
    (problem,) = problems(training={"trained_layers": 2, "lora": {"rank": 2}})
    assert "lora and training.trained_layers: 2 exclude each other" in problem
    (problem,) = problems(resources={"state_folder": "states"})
    assert "resources.state_folder: only with training.trained_layers" in problem


def test_more_layers_than_the_backbone_has_are_refused(prepared, tmp_path):
    with pytest.raises(UserError, match=r"training.trained_layers: 99, but the backbone has \d layers"):
        trained(prepared, tmp_path, trained_layers=99)


def test_the_plan_counts_the_trained_layers_only(tmp_path):
    sizes = {}
    for states in (None, tmp_path / "states"):
        for layers in (None, 1):
            config = configured(tmp_path, states if layers else None, trained_layers=layers)
            config["benchmarks"] = resolve(config | {"benchmarks": {"world": None}})["benchmarks"]
            (row,) = plan(config, Assumptions(pairs=1000))
            sizes[states is not None, layers] = row
    shapes = model_shapes(configured(tmp_path), None)
    assert shapes["bradley_terry"].frozen_layers > 0
    assert sizes[False, 1].train_hours < sizes[False, None].train_hours
    assert sizes[True, 1].train_hours < sizes[False, 1].train_hours
    assert sizes[True, 1].score_hours < sizes[False, 1].score_hours
    assert sizes[False, 1].gpu_bytes < sizes[False, None].gpu_bytes
