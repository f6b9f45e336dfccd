import pytest
import torch

from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.preferences.pair import write_pairs
from rm_methods.reward_models.layouts import PairBatch, lay_out
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config


def probe(**settings):
    return load_method("linear_probe", load_method_card("linear_probe").defaults() | settings)


def test_only_the_head_gets_a_gradient_and_it_is_that_of_logistic_regression(reward_model, tokenizer, pairs, tmp_path):
    method = probe()
    method.build(reward_model, Inputs(0, tmp_path))
    encoded = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:5])
    rows = lay_out(encoded, "plain", 0)
    zeros = torch.zeros(5)
    batch = PairBatch(
        **vars(rows), margin=zeros, target=zeros + 1, weight=zeros + 1, pair_ids=tuple(map(str, range(5))), progress=0.0
    )
    method.loss(reward_model, batch).per_pair.sum().backward()
    with_gradient = [name for name, parameter in reward_model.named_parameters() if parameter.grad is not None]
    assert with_gradient == ["classifier.score.weight"]
    states = reward_model(batch).last_hidden.detach()
    difference = states[:, 0] - states[:, 1]
    head = reward_model.classifier.score.weight
    # d/dw softplus(-w.d) = -sigmoid(-w.d) d.
    expected = -(torch.sigmoid(-difference @ head[0]).unsqueeze(1) * difference).sum(dim=0)
    torch.testing.assert_close(head.grad[0], expected, atol=1e-5, rtol=1e-4)


def test_names_of_frozen_parameters():
    method = probe()
    assert not method.is_frozen("score.weight")
    assert method.is_frozen("model.layers.0.mlp.up_proj.weight")


def test_learning_rate_is_a_multiple_of_the_given_one():
    given = {"learning_rate": 2e-5, "epochs": 3}
    assert probe().training(given, 0) == {"learning_rate": pytest.approx(2e-4), "epochs": 3, "lora": None}
    assert probe(learning_rate_factor=1.0).training(given, 5) == given | {"lora": None}


def test_checkpointed_activations_do_not_hinder_it(prepared, pairs, tmp_path):
    write_pairs(pairs[:16], tmp_path / "pairs.parquet")
    config = experiment_config(tmp_path, methods={"linear_probe": {}}, training={"gradient_checkpointing": True})
    outputs = [tmp_path / name for name in ("model", "metrics.jsonl", "summary.json", "work")]
    summary = train(config, "linear_probe", 0, RunFiles(tmp_path / "pairs.parquet", prepared[1], *outputs))
    assert summary["cost"]["optimizer_steps"] == 2
