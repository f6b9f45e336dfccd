"""Captured queries and keys are those that the model computes its attention with."""

import copy

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.reward_models.attention_capture import layer_numbers
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.model import RewardModel
from rm_methods.reward_models.packed_attention import tokens_of_pairs


@pytest.fixture
def items(tokenizer, pairs):
    return tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:5])


def causal_maps(attention):
    attention = attention.repeated()
    scores = attention.query @ attention.key.transpose(2, 3) * attention.scaling
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf).softmax(-1)


def test_captured_plain_rows_give_the_maps_of_eager_attention(reward_model, items):
    from transformers import AutoModelForSequenceClassification

    eager = AutoModelForSequenceClassification.from_config(
        copy.deepcopy(reward_model.config), attn_implementation="eager"
    ).eval()
    eager.load_state_dict(reward_model.classifier.state_dict())
    reward_model.capture_attention((0, 1))
    batch = lay_out(items, "plain", 0)
    with torch.no_grad():
        taken = reward_model(batch).attention
        expected = eager.base_model(batch.input_ids, position_ids=batch.position_ids, output_attentions=True).attentions
    assert sorted(taken) == [0, 1]
    for layer in taken:
        torch.testing.assert_close(causal_maps(taken[layer]), expected[layer], atol=1e-5, rtol=0)


def test_packed_tokens_of_a_pair_are_those_of_its_plain_rows(reward_model, items):
    reward_model.capture_attention((1,))
    with torch.no_grad():
        packed_batch = lay_out(items, "packed", 0)
        packed, plain = (reward_model(batch).attention[1] for batch in (packed_batch, lay_out(items, "plain", 0)))
    regrouped = tokens_of_pairs(packed.key, packed_batch.attention_map)
    width, length = (bucket.queries.shape[1] for bucket in packed_batch.attention_map.regrouping().buckets)
    for b, item in enumerate(items):
        torch.testing.assert_close(
            regrouped[b, :, : item.shared], plain.key[2 * b, :, : item.shared], atol=1e-5, rtol=0
        )
        for k in range(2):
            own = plain.key[2 * b + k, :, item.shared : item.lengths[k]]
            start = width + k * length
            torch.testing.assert_close(regrouped[b, :, start : start + own.shape[1]], own, atol=1e-5, rtol=0)


def test_recomputed_activations_leave_the_gradient_of_captured_tokens(reward_model, items):
    gradients = []
    for recompute in (False, True):
        if recompute:
            reward_model.recompute_activations()
        reward_model.train().zero_grad()
        reward_model.capture_attention((1,))
        output = reward_model(lay_out(items, "packed", 0))
        (output.attention[1].query.square().mean() + output.rewards.square().mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in reward_model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-6, rtol=1e-5)


def test_nothing_is_captured_unless_asked(reward_model, items):
    assert reward_model(lay_out(items, "packed", 0)).attention == {}


def test_attention_that_cannot_be_captured_is_refused(reward_model):
    from transformers import AutoModelForSequenceClassification

    eager = RewardModel(
        AutoModelForSequenceClassification.from_config(copy.deepcopy(reward_model.config), attn_implementation="eager")
    )
    with pytest.raises(UserError, match="cannot be captured: attention 'eager'"):
        eager.capture_attention((0,))
    reward_model.config.attn_logit_softcapping = 50.0
    with pytest.raises(UserError, match="caps its attention scores"):
        reward_model.capture_attention((0,))


def test_layers_are_counted_from_one_and_from_the_end():
    assert layer_numbers([1, 4, -1, -4], 4, "key") == (0, 3, 3, 0)
    for wrong in (0, 5, -5):
        with pytest.raises(UserError, match=rf"a.key: the model has 4 layers, so \[{wrong}\] do not exist"):
            layer_numbers([1, wrong], 4, "a.key")
