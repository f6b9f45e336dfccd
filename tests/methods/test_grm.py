import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import UserError
from rm_methods.methods.grm import dpo_regularizer, sft_regularizer
from rm_methods.methods.registry import load_method_card
from rm_methods.preferences.pair import make_pair
from rm_methods.reward_models import language_head
from rm_methods.reward_models.backbones import load_tokenizer, prepare_backbone
from rm_methods.reward_models.language_head import predicted_tokens, summed_log_probabilities
from rm_methods.validation import schema_problems
from tests.conftest import experiment_config
from tests.methods.ready import ready_to_train


def made(prepared, tokenizer, pairs, folder, layout="packed", name="grm", **settings):
    """(method, model, micro-batch, items) as training would make them."""
    return ready_to_train(prepared, tokenizer, pairs, folder, name, layout, **settings)


def causal_language_model(model):
    """The language model of transformers with the weights of a reward model and its language-model head."""
    from transformers import AutoModelForCausalLM

    language_model = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    assert not language_model.model.load_state_dict(model.backbone.state_dict()).missing_keys
    language_model.lm_head.weight.data = model.language_head.projection.weight.data
    return language_model


@torch.no_grad()
def one_by_one(language_model, items):
    """Summed log-probabilities [items, 2], each sequence alone, by a loop over its response tokens."""
    sums = []
    for item in items:
        for sequence in item.sequences:
            ids = torch.from_numpy(sequence.astype(np.int64))
            log_probabilities = language_model(ids[None]).logits[0].double().log_softmax(-1)
            sums.append(sum(log_probabilities[t - 1, ids[t]].item() for t in range(item.shared, len(ids))))
    return torch.tensor(sums).view(-1, 2)


def test_regularizers_by_hand():
    logs = torch.tensor([[-30.0, -50.0], [-20.0, -20.0]], dtype=torch.float64)
    # -log sigmoid(0.1 * -30) = log(1 + e^3); plain: 30.
    assert sft_regularizer(logs[:, 0], 0.1)[0].item() == pytest.approx(math.log1p(math.exp(3)))
    assert sft_regularizer(logs[:, 0], 0.1, saturated=False).tolist() == [30, 20]
    # Difference 20, so log(1 + e^-2); with a reference of 25 the difference is -5.
    assert dpo_regularizer(logs, 0.1)[0].item() == pytest.approx(math.log1p(math.exp(-2)))
    assert dpo_regularizer(logs, 0.1, torch.tensor([25.0, 0.0]))[0].item() == pytest.approx(math.log1p(math.exp(0.5)))
    assert dpo_regularizer(logs, 0.1)[1].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_log_probabilities_equal_a_loop_over_the_language_model(
    prepared, tokenizer, pairs, tmp_path, layout, monkeypatch
):
    _, model, batch, items = made(prepared, tokenizer, pairs[:7], tmp_path, layout)
    model.eval()
    expected = one_by_one(causal_language_model(model), items)
    hidden = model(batch).hidden_states
    actual = summed_log_probabilities(model.language_head, hidden, items, batch, (0, 1))
    torch.testing.assert_close(actual, expected.float(), atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(summed_log_probabilities(model.language_head, hidden, items, batch, (0,)), actual[:, :1])
    # In parts of 3 tokens, with the logits computed again in the backward pass, value and gradients stay the same.
    gradient = torch.autograd.grad(actual.sum(), model.parameters(), allow_unused=True, retain_graph=True)
    monkeypatch.setattr(language_head, "LOGITS_AT_ONCE", 3 * model.config.vocab_size)
    parts = summed_log_probabilities(model.language_head, hidden, items, batch, (0, 1))
    torch.testing.assert_close(parts, actual)
    for one, other in zip(
        gradient, torch.autograd.grad(parts.sum(), model.parameters(), allow_unused=True), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_only_response_tokens_count_and_each_is_read_one_place_before(prepared, tokenizer, pairs, tmp_path, layout):
    _, model, batch, items = made(prepared, tokenizer, pairs[:5], tmp_path, layout)
    places, tokens, sequence = predicted_tokens(items, batch, (0, 1))
    positions = batch.position_ids.flatten()[places]
    expected = [t - 1 for item in items for length in item.lengths for t in range(item.shared, length)]
    assert positions.tolist() == expected
    assert sequence.bincount().tolist() == [length - item.shared for item in items for length in item.lengths]
    assert tokens.tolist() == [int(t) for item in items for s in item.sequences for t in s[item.shared :]]
    # No other state of the micro-batch changes anything: neither prompt tokens before the last one, nor padding.
    hidden = torch.randn(*batch.input_ids.shape, model.hidden_size, requires_grad=True)
    summed_log_probabilities(model.language_head, hidden, items, batch, (0, 1)).sum().backward()
    is_read = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    is_read[places] = True
    assert ((hidden.grad.flatten(0, 1) != 0).any(-1) == is_read).all()


def test_labels_of_the_prompt_do_not_matter(prepared, tokenizer, pairs, tmp_path):
    """The ids of the prompt make the hidden states, but they are never what is predicted."""
    _, model, batch, items = made(prepared, tokenizer, pairs[:5], tmp_path)
    hidden = model(batch).hidden_states
    others = [
        replace(item, sequences=tuple(np.r_[np.full(item.shared, 7), s[item.shared :]] for s in item.sequences))
        for item in items
    ]
    actual = [summed_log_probabilities(model.language_head, hidden, these, batch, (0, 1)) for these in (items, others)]
    assert torch.equal(*actual)
    wrong = [replace(item, sequences=tuple(np.r_[s[:-1], 7] for s in item.sequences)) for item in items]
    assert not torch.allclose(actual[0], summed_log_probabilities(model.language_head, hidden, wrong, batch, (0, 1)))


@pytest.mark.parametrize(
    "settings",
    [{"regularizer": "sft"}, {"regularizer": "dpo_no_reference"}, {"regularizer": "dpo"}, {"saturated": False}],
)
def test_packed_and_plain_layouts_give_the_same_loss(prepared, tokenizer, pairs, tmp_path, settings):
    losses = []
    for layout in ("packed", "plain"):
        method, model, batch, _ = made(prepared, tokenizer, pairs[:6], tmp_path, layout, weight=0.5, **settings)
        with torch.no_grad():  # other weights than those that the reference was computed with
            model.language_head.projection.weight *= 1.5
        losses.append(method.loss(model.eval(), batch).per_pair)
    torch.testing.assert_close(*losses, atol=2e-5, rtol=1e-5)


def test_weight_0_is_bradley_terry_to_the_bit(prepared, tokenizer, pairs, tmp_path):
    actual = {}
    for name, settings in (("grm", {"weight": 0}), ("bradley_terry", {})):
        method, model, batch, _ = made(prepared, tokenizer, pairs[:6], tmp_path, name=name, **settings)
        loss = method.loss(model, batch).per_pair
        loss.mean().backward()
        actual[name] = [loss.detach(), *(p.grad for p in model.parameters())]
    assert len(actual["grm"]) == len(actual["bradley_terry"])
    assert all(map(torch.equal, actual["grm"], actual["bradley_terry"]))


def test_loss_is_the_weighted_mean_of_both(prepared, tokenizer, pairs, tmp_path):
    method, model, batch, _ = made(prepared, tokenizer, pairs[:6], tmp_path, weight=0.25)
    loss = method.loss(model, batch)
    expected = 0.75 * loss.terms["preference_loss"] + 0.25 * sft_regularizer(loss.terms["chosen_log_probability"], 0.1)
    torch.testing.assert_close(loss.per_pair, expected)


def test_language_head_moves_backbone_and_itself(prepared, tokenizer, pairs, tmp_path):
    method, model, batch, _ = made(prepared, tokenizer, pairs[:6], tmp_path)
    method.loss(model, batch).terms["regularizer"].sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["classifier.score.weight"]


def test_identical_responses_give_log_2_without_a_reference(prepared, tokenizer, pairs, tmp_path):
    same = [make_pair(p.prompt, p.chosen, p.chosen, split="train", source="made up") for p in pairs[:4]]
    method, model, batch, _ = made(prepared, tokenizer, same, tmp_path, regularizer="dpo_no_reference")
    torch.testing.assert_close(method.loss(model, batch).terms["regularizer"], torch.full((4,), math.log(2)))


def test_dpo_starts_at_log_2_and_the_reference_keeps_the_starting_weights(prepared, tokenizer, pairs, tmp_path):
    method, model, batch, items = made(prepared, tokenizer, pairs[:12], tmp_path, regularizer="dpo")
    assert model.training
    torch.testing.assert_close(
        method.loss(model, batch).terms["regularizer"], torch.full((12,), math.log(2)), atol=1e-5, rtol=0
    )
    start = one_by_one(causal_language_model(model), items)
    with torch.no_grad():
        model.backbone.embed_tokens.weight *= 2
    now = one_by_one(causal_language_model(model), items)
    expected = dpo_regularizer(now.float(), 0.1, (start[:, 0] - start[:, 1]).float())
    assert (expected - math.log(2)).abs().max() > 0.01
    torch.testing.assert_close(method.loss(model, batch).terms["regularizer"], expected, atol=1e-4, rtol=1e-4)
    # A run that is resumed builds anew, from the starting weights.
    again = made(prepared, tokenizer, pairs[:12], tmp_path, regularizer="dpo")[0]
    assert torch.equal(again.reference, method.reference)


def test_pairs_whose_prompt_was_cut_differently_have_no_regularizer(prepared, pairs, tmp_path):
    tokenizer = load_tokenizer(prepared[1], 60)
    long = make_pair([{"role": "user", "content": "paint " * 80}], "red", "blue " * 20, split="train", source="made up")
    method, model, batch, items = made(prepared, tokenizer, [long, pairs[0]], tmp_path, weight=0.5)
    assert items[0].conversations[0][:-1] != items[0].conversations[1][:-1]
    loss = method.loss(model, batch)
    assert (loss.terms["regularizer"] > 0).tolist() == [False, True]
    assert torch.equal(loss.per_pair[0], 0.5 * loss.terms["preference_loss"][0])
    assert method.report() == {"pairs_without_regularizer": 1}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pretrained(request, prepared, pairs, tmp_path_factory):
    """(language model folder, backbone folder, configuration) of a small model that counts as pretrained."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("pretrained")
    config = AutoConfig.from_pretrained(prepared[1], tie_word_embeddings=request.param)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(prepared[1]).save_pretrained(folder / "model")
    section = experiment_config(folder, backbone={"source": str(folder / "model"), "dtype": "float32"})
    prepare_backbone(section["backbone"], pairs, folder / "backbone")
    return folder / "model", folder / "backbone", section


def test_language_head_is_the_backbones_own(pretrained, tokenizer, pairs, tmp_path):
    from transformers import AutoModelForCausalLM

    source, folder, section = pretrained
    language_model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
    _, model, batch, items = made((None, folder, section), tokenizer, pairs[:4], tmp_path)
    assert torch.equal(model.language_head.projection.weight, language_model.get_output_embeddings().weight)
    actual = summed_log_probabilities(model.language_head, model.eval()(batch).hidden_states, items, batch, (0, 1))
    torch.testing.assert_close(actual, one_by_one(language_model, items).float(), atol=2e-4, rtol=1e-5)


def test_logits_are_capped_where_the_backbone_caps_them():
    head = language_head.LanguageHead(torch.tensor([[3.0], [-1.0]]), torch.tensor([1.0, 0.0]), softcap=2.0)
    expected = [[2 * math.tanh(7 / 2), 2 * math.tanh(-2 / 2)]]
    assert head(torch.tensor([[2.0]])).tolist() == [pytest.approx(expected[0], abs=1e-6)]


def test_backbones_that_scale_their_logits_are_refused(prepared, reward_model):
    reward_model.config.logits_scaling = 8.0
    with pytest.raises(UserError, match=r"grm: this backbone .* scales its logits \(\{'logits_scaling': 8.0\}\)"):
        language_head.language_head(reward_model, prepared[1], {}, 0, method="grm")


def test_output_embeddings_of_another_width_are_refused(prepared, reward_model):
    reward_model.config.tie_word_embeddings = True
    reward_model.backbone.embed_tokens = torch.nn.Embedding(400, 16)
    with pytest.raises(UserError, match="reads 16 numbers, but its last layer gives 32"):
        language_head.language_head(reward_model, prepared[1], {}, 0, method="grm")


@pytest.mark.parametrize(
    "settings", [{"weight": 1.0}, {"weight": -0.1}, {"beta": 0}, {"regularizer": "ppo"}, {"saturated": 1}]
)
def test_impossible_settings_are_refused(settings):
    assert schema_problems(load_method_card("grm").defaults() | settings, load_method_card("grm").settings_schema)


def test_export_has_no_trace_of_the_language_head(prepared, tokenizer, pairs, tmp_path):
    method, model, _, _ = made(prepared, tokenizer, pairs[:4], tmp_path)
    method.export(model, tmp_path / "model")
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == set(model.classifier.state_dict())
