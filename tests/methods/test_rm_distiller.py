import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import UserError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.methods.rm_distiller import margin_loss, mean_divergence, token_divergence
from rm_methods.reward_models import language_head
from rm_methods.reward_models.language_head import LanguageHead
from rm_methods.validation import schema_problems
from tests.methods.ready import ready_to_train


def made(prepared, tokenizer, pairs, folder, layout="packed", name="rm_distiller", **settings):
    """(method, model, micro-batch, items) as training would make them."""
    return ready_to_train(prepared, tokenizer, pairs, folder, name, layout, **settings)


def moved(model):
    with torch.no_grad():
        model.backbone.embed_tokens.weight *= 1.5
        model.language_head.projection.weight *= 20
    return model


def head_of(weight):
    return LanguageHead(torch.tensor(weight), None)


def test_margin_loss_by_hand():
    rewards = torch.tensor([[2.0, 0.5], [0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    margin = torch.tensor([1.0, 2.0, 1.0])
    # Differences 1.5, -1 and 1.
    loss = margin_loss(rewards, margin)
    assert loss.tolist() == [0.25, 9.0, 0.0]
    loss.sum().backward()
    assert rewards.grad.tolist() == [[1.0, -1.0], [-6.0, 6.0], [0.0, 0.0]]
    # A constant that is added to both rewards changes nothing; a pair that is too far ahead is pulled back.
    torch.testing.assert_close(margin_loss(rewards + 7, margin), loss)


def test_divergence_by_hand():
    # Two tokens of the vocabulary: start (1/2, 1/2), policy (1/4, 3/4).
    # KL = 1/2 log 2 + 1/2 log(2/3) = 0.143841.
    states = torch.ones(1, 1)
    policy = head_of([[0.0], [math.log(3)]])
    start = head_of([[0.0], [0.0]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert expected == pytest.approx(0.143841, abs=1e-6)
    assert token_divergence(policy, states, start, states, 1.0).item() == pytest.approx(expected)
    # The other direction is 1/4 log(1/2) + 3/4 log(3/2) = 0.130812.
    assert token_divergence(start, states, policy, states, 1.0).item() == pytest.approx(0.130812, abs=1e-6)
    # Logits twice as large at temperature 2 are the same distributions, and the factor is 4.
    assert token_divergence(policy, 2 * states, start, states, 2.0).item() == pytest.approx(4 * expected)
    # What is added to all logits changes nothing.
    shifted = head_of([[5.0], [5.0 + math.log(3)]])
    assert token_divergence(shifted, states, start, states, 1.0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("at_once", [2**26, 2])
def test_mean_over_the_tokens_of_each_pair_in_parts(monkeypatch, at_once):
    monkeypatch.setattr(language_head, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    states, start_states = torch.randn(2, 5, 3, generator=generator)
    states.requires_grad_()
    head, start = (LanguageHead(torch.randn(7, 3, generator=generator), None) for _ in range(2))
    each = token_divergence(head, states, start, start_states, 1.5)
    sequence = torch.tensor([0, 0, 0, 2, 2])
    actual = mean_divergence(head, states, start, start_states, sequence, pairs=3, temperature=1.5)
    expected = torch.stack([each[:3].mean(), torch.tensor(0.0), each[3:].mean()])
    torch.testing.assert_close(actual, expected)
    slopes = [torch.autograd.grad(x.sum(), states, retain_graph=True)[0] for x in (actual, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_divergence_equals_a_loop_over_the_language_models(prepared, tokenizer, pairs, tmp_path, layout):
    from transformers import AutoModelForCausalLM

    method, model, batch, items = made(prepared, tokenizer, pairs[:4], tmp_path, layout, preference="bradley_terry")
    moved(model).eval()
    models = []
    for reward_model in (model, method.start):
        one = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
        assert not one.model.load_state_dict(reward_model.backbone.state_dict()).missing_keys
        one.lm_head.weight.data = reward_model.language_head.projection.weight.data.clone()
        models.append(one)
    expected = []
    for item in items:
        ids = torch.from_numpy(item.sequences[0].astype(np.int64))[None]
        with torch.no_grad():
            policy, start = (one(ids).logits[0].double().log_softmax(-1) for one in models)
        each = [(start[t].exp() * (start[t] - policy[t])).sum() for t in range(item.shared - 1, ids.shape[1] - 1)]
        expected.append(torch.stack(each).mean())
    actual = method.loss(model, batch).terms["divergence"]
    torch.testing.assert_close(actual, torch.stack(expected).float(), atol=1e-4, rtol=1e-4)
    assert actual.min() > 0.01


def test_it_starts_without_divergence(prepared, tokenizer, pairs, tmp_path):
    method, model, batch, _ = made(prepared, tokenizer, pairs[:6], tmp_path, preference="bradley_terry")
    loss = method.loss(model, batch)
    torch.testing.assert_close(loss.terms["divergence"], torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(loss.per_pair, loss.terms["preference_loss"], atol=1e-5, rtol=0)


def test_loss_is_the_sum_of_both_parts(prepared, tokenizer, pairs, tmp_path):
    strong = [replace(pair, strength=float(k)) for k, pair in enumerate(pairs[:4])]
    method, model, batch, _ = made(prepared, tokenizer, strong, tmp_path, scale=0.5, weight=0.3)
    moved(model)
    loss = method.loss(model, batch)
    expected = margin_loss(model(batch).rewards, torch.tensor([0.0, 0.5, 1.0, 1.5]))
    torch.testing.assert_close(loss.terms["margin_loss"], expected)
    torch.testing.assert_close(loss.per_pair, expected + 0.3 * loss.terms["divergence"])


def test_without_both_parts_it_is_bradley_terry_to_the_bit(prepared, tokenizer, pairs, tmp_path):
    actual = {}
    for name, settings in (("rm_distiller", {"weight": 0, "preference": "bradley_terry"}), ("bradley_terry", {})):
        method, model, batch, _ = made(prepared, tokenizer, pairs[:6], tmp_path, name=name, **settings)
        loss = method.loss(model, batch).per_pair
        loss.mean().backward()
        actual[name] = [loss.detach(), *(p.grad for p in model.parameters())]
    assert len(actual["rm_distiller"]) == len(actual["bradley_terry"])
    assert all(map(torch.equal, actual["rm_distiller"], actual["bradley_terry"]))


def test_the_rejected_response_does_not_count_in_the_divergence(prepared, tokenizer, pairs, tmp_path):
    other = [replace(pair, rejected=pair.rejected + " and more") for pair in pairs[:3]]
    values = []
    for these in (pairs[:3], other):
        method, model, batch, _ = made(prepared, tokenizer, these, tmp_path, preference="bradley_terry")
        values.append(method.loss(moved(model), batch).terms["divergence"])
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)


def test_only_the_model_learns_and_the_start_stays(prepared, tokenizer, pairs, tmp_path):
    method, model, batch, _ = made(prepared, tokenizer, pairs[:4], tmp_path, preference="bradley_terry")
    before = {name: p.clone() for name, p in method.start.named_parameters()}
    method.loss(moved(model), batch).terms["divergence"].sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["classifier.score.weight"]
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in method.start.named_parameters())
    assert not method.start.training


def test_pairs_without_a_strength_are_refused_before_they_are_read(pairs, tmp_path):
    method = load_method("rm_distiller", load_method_card("rm_distiller").defaults())
    without = [replace(pairs[0], strength=1.0), replace(pairs[1], strength=None)]
    with pytest.raises(UserError, match=r"1 of 2 training pairs have none.*preference: bradley_terry"):
        method.transform_pairs(without, Inputs(0, tmp_path))
    negative = [replace(pairs[0], strength=1.0), replace(pairs[1], strength=-2.0)]
    with pytest.raises(UserError, match=r"1 of 2 training pairs have one, the first -2"):
        method.transform_pairs(negative, Inputs(0, tmp_path))
    method = load_method("rm_distiller", load_method_card("rm_distiller").defaults() | {"preference": "bradley_terry"})
    assert method.transform_pairs(without, Inputs(0, tmp_path)) == without


@pytest.mark.parametrize(
    "settings", [{"scale": 0}, {"weight": -1}, {"temperature": 0}, {"preference": "hinge"}, {"preference": None}]
)
def test_impossible_settings_are_refused(settings):
    card = load_method_card("rm_distiller")
    assert schema_problems(card.defaults() | settings, card.settings_schema)


def test_export_has_no_trace_of_the_language_head(prepared, tokenizer, pairs, tmp_path):
    method, model, _, _ = made(prepared, tokenizer, pairs[:4], tmp_path, preference="bradley_terry")
    method.export(model, tmp_path / "model")
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == set(model.classifier.state_dict())
