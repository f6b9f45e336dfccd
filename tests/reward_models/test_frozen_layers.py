"""Only the last layers are trained: what is frozen, and that stored states change nothing but rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from rm_methods.errors import UserError
from rm_methods.reward_models.frozen_layers import decoder_layers, freeze_lower_layers
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.model import RewardModel
from rm_methods.reward_models.tokenization import TokenizedItem


def classifier(layers: int = 4, seed: int = 0, **changes):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        num_labels=1,
        initializer_range=0.2,
        **changes,
    )
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")


def batch(*prompts: int, layout: str = "packed", seed: int = 0):
    random = np.random.default_rng(seed)
    items = []
    for length in prompts:
        prompt = random.integers(1, 90, length)
        sequences = tuple(
            np.concatenate([prompt, random.integers(1, 90, size)]).astype(np.int32) for size in (length + 2, 3)
        )
        items.append(TokenizedItem(sequences, length, (False, False), (False, False)))
    return lay_out(items, layout, 0)


def frozen_model(folder=None, trained: int = 1, autocast=None, **changes) -> RewardModel:
    model = RewardModel(classifier(**changes), autocast)
    model.layout("auto")
    model.freeze_lower_layers(trained, folder)
    return model


def files(folder) -> list:
    return sorted(folder.rglob("*.npy"))


def test_the_embeddings_and_the_lower_layers_are_frozen_and_nothing_else():
    model = frozen_model(trained=2)
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = {name.split(".")[3] for name in free if ".layers." in name}
    assert layers == {"2", "3"}
    assert {name for name in free if ".layers." not in name} == {
        "classifier.model.norm.weight",
        "classifier.score.weight",
    }


def test_gpt2_freezes_both_embeddings():
    config = GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=50, n_positions=32, num_labels=1, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config)
    assert freeze_lower_layers(model, 1) == 2
    frozen = {name.split(".")[1] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"wte", "wpe", "h"}
    assert all(p.requires_grad for p in model.transformer.h[2].parameters())


@pytest.mark.parametrize("layout", ["packed", "plain"])
@pytest.mark.parametrize("stores", [False, True])
def test_rewards_and_gradients_are_those_of_the_whole_forward(layout, stores, tmp_path):
    model = frozen_model(tmp_path if stores else None, trained=2)
    whole = RewardModel(classifier())
    whole.layout("auto")
    data = batch(5, 9, layout=layout)
    for _ in range(2):  # the second time from the folder
        outputs = [each(data).rewards for each in (model, whole)]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    for rewards in outputs:
        rewards.sum().backward()
    theirs = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)
        else:
            assert parameter.grad is None
    assert len(files(tmp_path)) == (6 if stores and layout == "packed" else 0)


def test_stored_states_are_read_and_not_computed_again(tmp_path, monkeypatch):
    first = frozen_model(tmp_path)
    rewards = first(batch(5, 9)).rewards
    other_run = frozen_model(tmp_path)
    monkeypatch.setattr(other_run.frozen, "_computed", lambda _: pytest.fail("computed again"))
    assert torch.equal(other_run(batch(5, 9)).rewards, rewards)


def test_a_prompt_is_stored_once_and_a_response_with_each_prompt(tmp_path):
    model = frozen_model(tmp_path)
    prompt = np.arange(1, 7, dtype=np.int32)
    other = np.arange(11, 17, dtype=np.int32)
    ends = [np.array(end, dtype=np.int32) for end in ([20, 21], [22], [23, 24, 25])]
    for start, end in ((prompt, ends[:2]), (prompt, ends[1:]), (other, ends[1:])):
        item = TokenizedItem(tuple(np.concatenate([start, e]) for e in end), 6, (False,) * 2, (False,) * 2)
        model(lay_out([item], "packed", 0))
    assert len(files(tmp_path)) == 2 + 3 + 2


def test_the_place_where_a_prompt_ends_belongs_to_the_key(tmp_path):
    """The same tokens with another shared part are other segments, of other lengths."""
    model = frozen_model(tmp_path)
    sequences = tuple(np.array([1, 2, 3, 4, last], dtype=np.int32) for last in (5, 6))
    rewards = []
    for shared in (2, 3, 4):
        item = TokenizedItem(sequences, shared, (False,) * 2, (False,) * 2)
        rewards.append(model(lay_out([item], "packed", 0)).rewards)
    torch.testing.assert_close(rewards[0], rewards[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rewards[0], rewards[2], rtol=1e-5, atol=1e-6)


def test_other_weights_layers_and_precisions_have_other_folders(tmp_path):
    for options in ({}, {"seed": 1}, {"trained": 2}, {"autocast": torch.bfloat16}, {"rms_norm_eps": 1e-3}):
        frozen_model(tmp_path, **options)(batch(4))
    assert len(list(tmp_path.iterdir())) == 5


def test_a_trained_model_finds_the_states_of_its_backbone(tmp_path):
    first = frozen_model(tmp_path)
    first(batch(4))
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    trained = RewardModel(first.classifier)
    trained.layout("auto")
    trained.freeze_lower_layers(1, tmp_path)
    trained(batch(4))
    assert len(list(tmp_path.iterdir())) == 1
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_file_is_computed_again(damage, tmp_path):
    expected = frozen_model(tmp_path)(batch(4)).rewards
    (path, *_) = files(tmp_path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-9], "empty": b"", "other": b"not an array"}[damage])
    torch.testing.assert_close(frozen_model(tmp_path)(batch(4)).rewards, expected)
    assert path.read_bytes() == content
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_pickled_file_is_not_loaded(tmp_path):
    expected = frozen_model(tmp_path)(batch(4)).rewards
    (path, *_) = files(tmp_path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    torch.testing.assert_close(frozen_model(tmp_path)(batch(4)).rewards, expected)


def test_frozen_layers_have_no_dropout(tmp_path):
    model = frozen_model(tmp_path, trained=1, attention_dropout=0.5)
    model.train()
    states = [model.frozen.states(batch(6, seed=seed)) for seed in (0, 0)]
    fresh = frozen_model(trained=1, attention_dropout=0.5).eval().frozen.states(batch(6))
    torch.testing.assert_close(states[0], fresh)
    assert torch.equal(states[0], states[1])
    assert all(module.training for module in model.modules())


def test_a_captured_frozen_layer_takes_the_whole_forward(tmp_path):
    model = frozen_model(tmp_path, trained=2)
    model.capture_attention((1, 3))
    assert set(model(batch(4)).attention) == {1, 3}
    assert not files(tmp_path)
    model.capture_attention((3,))
    assert set(model(batch(4)).attention) == {3}
    assert files(tmp_path)


def test_the_layers_are_whole_again_after_an_error():
    model = frozen_model()
    seen = []

    def fail(*_):
        seen.append(len(model.backbone.layers))
        raise RuntimeError("a failing layer")

    model.backbone.norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a failing layer"):
        model(batch(4))
    assert seen == [1]
    assert len(model.backbone.layers) == 4


@pytest.mark.parametrize("trained", [4, 5])
def test_more_trained_layers_than_the_model_has_are_refused(trained):
    with pytest.raises(UserError, match=f"trained_layers: {trained}, but the backbone has 4 layers. Use at most 3"):
        RewardModel(classifier()).freeze_lower_layers(trained)


def test_a_model_without_a_list_of_layers_is_refused():
    model = classifier()
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match=r"cannot be told apart \(no list of 7 layers\)"):
        decoder_layers(model)


def test_a_backbone_that_changes_its_embeddings_is_computed_whole(capsys):
    """Gemma, for one, scales embeddings inside its forward in some versions; states must not be scaled."""
    model = RewardModel(classifier())
    model.layout("auto")
    forward = model.backbone.forward

    def scaled(*, input_ids=None, inputs_embeds=None, **options):
        states = model.backbone.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return forward(inputs_embeds=3.0 * states, **options)

    model.backbone.forward = scaled
    model.freeze_lower_layers(2)
    assert model.frozen is None
    assert "computed in every forward" in capsys.readouterr().err
    assert not any(p.requires_grad for p in model.backbone.layers[0].parameters())
