import json

import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import ConfigError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.methods.warm_member import of_seed
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.model import RewardModel
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config


def test_seeds_take_the_values_in_turn():
    assert [of_seed([1.0, 0.25, 2.5], seed) for seed in (0, 1, 2, 3, 13)] == [1.0, 0.25, 2.5, 1.0, 0.25]
    defaults = load_method_card("warm_member").defaults()
    drawn = [(of_seed(defaults["learning_rate_factors"], s), of_seed(defaults["dropout"], s)) for s in range(6)]
    assert len(set(drawn)) == 6


def test_the_learning_rate_is_that_of_the_seed():
    method = load_method("warm_member", load_method_card("warm_member").defaults())
    rates = [method.training({"learning_rate": 4e-5, "epochs": 1}, seed)["learning_rate"] for seed in range(3)]
    assert rates == pytest.approx([4e-5, 1e-5, 1e-4])


@pytest.fixture
def probe(prepared, tokenizer, tmp_path):
    """The saved run of a probe with weights of seed 7."""
    RewardModel(load_classifier(prepared[1], prepared[2]["backbone"], 7)).save(tmp_path / "probe" / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "probe" / "model")
    (tmp_path / "probe" / "summary.json").write_text(json.dumps({"run_key": "the probe"}))
    return tmp_path / "probe" / "model"


def started(prepared, probe, seed, **settings):
    method = load_method("warm_member", load_method_card("warm_member").defaults() | settings)
    sections = {"backbone": prepared[2]["backbone"], "training": method.training(prepared[2]["training"], seed)}
    inputs = Inputs(seed, probe.parent / "work", "", sections, prepared[1], {"start": [probe]})
    model = method.model([], None, inputs)
    method.build(model, inputs)
    return method, model


def test_all_seeds_start_from_the_probe_backbone_and_head(prepared, probe):
    weights = load_file(probe / "model.safetensors")
    for seed in (0, 1):
        method, model = started(prepared, probe, seed)
        state = model.classifier.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert method.report() == {
        "start_run_key": "the probe",
        "learning_rate": pytest.approx(0.25 * 3e-3),
        "dropout": 0.1,
    }


def test_dropout_acts_on_the_head_in_training_only(prepared, probe, tokenizer, pairs):
    encoded = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:4])
    batch = lay_out(encoded, "packed", 0)
    model = started(prepared, probe, 0, dropout=[0.5])[1]
    plain = started(prepared, probe, 0, dropout=[0.0])[1]
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).rewards, plain.eval()(batch).rewards)
        assert torch.equal(plain.train()(batch).rewards, plain.eval()(batch).rewards)
        first, second = (model.train()(batch) for _ in range(2))
    assert not torch.equal(first.rewards, second.rewards)
    assert torch.equal(first.last_hidden, second.last_hidden)


def test_runs_of_two_seeds_differ_and_say_what_they_started_from(prepared, probe, tmp_path):
    config = experiment_config(tmp_path, methods={"linear_probe": {}, "warm_member": {}}, seeds=[0, 1])
    ends = []
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        outputs = (folder / "model", folder / "metrics.jsonl", folder / "summary.json", folder / "work")
        summary = train(config, "warm_member", seed, RunFiles(prepared[0], prepared[1], *outputs, {"start": [probe]}))
        assert summary["report"]["start_run_key"] == "the probe"
        assert summary["training"]["learning_rate"] == pytest.approx([3e-3, 0.75e-3][seed])
        ends.append(load_file(folder / "model" / "model.safetensors"))
    assert not torch.equal(ends[0]["score.weight"], ends[1]["score.weight"])


def test_impossible_settings_are_refused_by_the_configuration(tmp_path):
    with pytest.raises(ConfigError) as caught:
        experiment_config(
            tmp_path, methods={"linear_probe": {}, "warm_member": {"dropout": [1.0], "learning_rate_factors": []}}
        )
    assert "methods.warm_member.dropout" in str(caught.value)
    assert "methods.warm_member.learning_rate_factors" in str(caught.value)
    with pytest.raises(ConfigError, match="not a variant of method 'linear_probe'"):
        experiment_config(tmp_path, methods={"bradley_terry": {}, "warm_member": {"start": "bradley_terry"}})
