"""The probe that runs when a model is loaded: it lets exact layouts pass, and nothing else; it disturbs nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rm_methods.errors import UserError
from rm_methods.reward_models.joint_model import JointModel
from rm_methods.reward_models.layout_probe import probe_items, probe_reward_model
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.model import RewardModel
from rm_methods.reward_models.tokenization import TokenizedItem
from tests.performance.test_gpu_script import script


@pytest.fixture(scope="module")
def architectures():
    return script("architectures")


def test_a_llama_is_packed_and_the_figure_is_rounding(reward_model):
    assert reward_model.layout("auto") == "packed"
    assert reward_model.packing_obstacle is None
    assert reward_model.layout_probe.plain <= 1e-5
    assert reward_model.layout_probe.packed <= 1e-5


@pytest.mark.parametrize("name", ["qwen3_5_text", "minimax", "jamba"])
def test_layers_that_carry_a_state_are_not_packed(architectures, name, capsys):
    model = RewardModel(architectures.build(name))
    assert model.layout("auto") == "plain"
    assert "linear_attention" in model.packing_obstacle
    model.layout("auto")
    assert capsys.readouterr().err.count("layout plain, because") == 1
    with pytest.raises(UserError, match="linear_attention"):
        model.layout("packed")


@pytest.mark.parametrize("name", ["qwen3_5_text", "minimax", "jamba"])
def test_the_probe_finds_them_without_the_configuration(architectures, name, monkeypatch):
    monkeypatch.setattr("rm_methods.reward_models.model.packing_obstacle", lambda classifier: None)
    model = RewardModel(architectures.build(name))
    assert model.packing_obstacle is None
    assert model.layout("auto") == "plain"
    assert model.packing_obstacle
    assert model.config._attn_implementation == "sdpa"


def leak_between_tokens(model, rate: float):
    """Let the first layer give every token a share of the one before it in the row, as a convolution does."""

    def mix(module, inputs, output):
        shifted = torch.roll(output, 1, dims=1)
        shifted[:, 0] = 0
        return output + rate * shifted

    return model.backbone.layers[0].register_forward_hook(mix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_is_noticed_in_fp32_and_in_bf16(reward_model, dtype):
    reward_model.classifier.to(dtype)
    reward_model.classifier.score.float()
    assert probe_reward_model(reward_model).packing_obstacle is None
    handle = leak_between_tokens(reward_model, 1.0)
    assert "not computed as alone" in probe_reward_model(reward_model).packing_obstacle
    handle.remove()


def test_autocast_does_not_loosen_the_probe(reward_model):
    reward_model.autocast = torch.bfloat16
    assert reward_model.layout("auto") == "packed"
    assert reward_model.layout_probe.packed <= 1e-5
    assert reward_model.autocast == torch.bfloat16


def test_a_failed_probe_is_an_error_where_packed_is_asked_for(reward_model, capsys):
    leak_between_tokens(reward_model, 1.0)
    with pytest.raises(
        UserError, match="'packed' is not possible with this backbone: packed texts are not computed as alone"
    ):
        reward_model.layout("packed")
    assert reward_model.layout("auto") == "plain"
    assert reward_model.classifier.config._attn_implementation == "sdpa"


def test_positions_that_are_ignored_are_noticed(reward_model):
    rotary = reward_model.backbone.rotary_emb
    rotary.register_forward_pre_hook(
        lambda module, args, kwargs: (
            args,
            kwargs | {"position_ids": torch.arange(kwargs["position_ids"].shape[1])[None]},
        ),
        with_kwargs=True,
    )
    assert reward_model.layout("auto") == "plain"


def test_a_layer_that_sees_padding_is_refused(reward_model):
    def mean_of_the_row(module, inputs, output):
        return output + output.mean(1, keepdim=True)

    reward_model.backbone.layers[0].register_forward_hook(mean_of_the_row)
    with pytest.raises(UserError, match=r"LlamaForSequenceClassification is refused: padding.*depend on the batch"):
        reward_model.layout("plain")


def test_a_score_that_is_read_elsewhere_is_refused(reward_model, monkeypatch):
    forward = reward_model.classifier.forward

    def doubled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(reward_model.classifier, "forward", doubled)
    with pytest.raises(UserError, match="its score is not its head at the last token"):
        reward_model.layout("auto")


def test_an_encoder_that_mixes_padding_in_is_refused_as_a_joint_model(architectures):
    with pytest.raises(UserError, match="FNetForSequenceClassification is refused: padding"):
        JointModel(architectures.build("fnet"), decoder=False).layout("auto")
    with pytest.raises(UserError, match="BigBirdForSequenceClassification is refused: block-sparse"):
        JointModel(architectures.build("big_bird"), decoder=False).layout("auto")
    assert JointModel(architectures.build("bert"), decoder=False).layout("auto") == "plain"


def test_the_probe_disturbs_neither_random_numbers_nor_modes(architectures):
    classifier = AutoModelForSequenceClassification.from_config(architectures.build("gpt2").config)
    model = RewardModel(classifier).train()
    model.classifier.score.eval()
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = probe_reward_model(model)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert probe_reward_model(model) == first


def test_the_probe_has_texts_of_different_lengths_without_special_tokens(reward_model):
    items = probe_items(reward_model.config)
    lengths = [length for item in items for length in item.lengths]
    assert len(set(lengths)) == len(lengths)
    inside = {int(i) for item in items for sequence in item.sequences for i in sequence}
    assert not inside & {
        reward_model.config.pad_token_id,
        reward_model.config.bos_token_id,
        reward_model.config.eos_token_id,
    }
    for item in items:
        assert (item.sequences[0][: item.shared] == item.sequences[1][: item.shared]).all()


def longrope(architectures) -> RewardModel:
    """A Phi-3 whose frequencies change for the whole batch with a text above 16 tokens."""
    config = architectures.build("phi3").config
    factors = {"short_factor": [1.0] * 8, "long_factor": [9.0] * 8}
    config.original_max_position_embeddings = 16
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
        **factors,
    }
    torch.manual_seed(0)
    return RewardModel(AutoModelForSequenceClassification.from_config(config)).eval()


def test_a_long_text_that_changes_the_others_is_refused(architectures, monkeypatch):
    model = longrope(architectures)
    texts = [np.arange(3, 3 + length, dtype=np.int32) for length in (10, 12, 20)]
    short, long = (TokenizedItem((texts[0], texts[k]), 0, (False, False), (False, False)) for k in (1, 2))
    alone = model(lay_out([short], "plain", 0)).rewards[0, 0]
    with pytest.raises(UserError, match=r"20 tokens.*rope_type longrope.*max_length to at most 16"):
        model(lay_out([long], "plain", 0))
    monkeypatch.setattr("rm_methods.reward_models.model.check_length", lambda *_: None)
    assert (model(lay_out([long], "plain", 0)).rewards[0, 0] - alone).abs() > 1e-3  # what is refused


def test_shards_are_not_probed(reward_model):
    next(reward_model.classifier.parameters()).ds_id = 0
    assert reward_model.layout("auto") == "packed"
    assert reward_model.layout_probe is None
