import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs
from rm_methods.methods.contrastive import add_dropout, contrasted_states, simcse_loss, sinkhorn, swav_loss
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.reward_models.layouts import PairBatch, lay_out
from rm_methods.reward_models.model import RewardModel
from rm_methods.validation import schema_problems

ORTHOGONAL = torch.tensor([[1.0, 0.0], [0.0, 3.0]])


def pair_batch(tokenizer, pairs, layout="packed"):
    rows = lay_out(tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs), layout, 0)
    return PairBatch(
        **vars(rows),
        margin=torch.zeros(len(pairs)),
        weight=torch.ones(len(pairs)),
        pair_ids=tuple(p.pair_id for p in pairs),
    )


def built(model, **settings):
    method = load_method("contrastive", load_method_card("contrastive").defaults() | settings)
    method.build(model, Inputs(0, None))
    return method


def test_simcse_of_identical_views_has_a_closed_form():
    # Own cosine 1, the other's 0: log(1 + exp(-1 / T)).
    loss = simcse_loss(ORTHOGONAL, ORTHOGONAL, 0.5)
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-2.0))] * 2, abs=1e-6)


def test_simcse_by_hand():
    # Cosines of the first state with the second views: 0.6 and 0.8; of the second state: 0.8 and -0.6.
    loss = simcse_loss(ORTHOGONAL, torch.tensor([[3.0, 4.0], [8.0, -6.0]]), 0.2)
    expected = [math.log1p(math.exp((0.8 - 0.6) / 0.2)), math.log1p(math.exp((0.8 + 0.6) / 0.2))]
    assert loss.tolist() == pytest.approx(expected, abs=1e-5)


def test_simcse_of_states_that_are_all_alike_is_the_log_of_their_number():
    assert simcse_loss(torch.ones(6, 4), torch.ones(6, 4), 0.05).tolist() == pytest.approx([math.log(6)] * 6, abs=1e-5)


def test_one_state_alone_has_no_negatives_and_no_loss():
    states = torch.tensor([[0.3, -1.0]], requires_grad=True)
    loss = simcse_loss(states, torch.tensor([[5.0, 2.0]]), 0.05)
    loss.sum().backward()
    assert loss.item() == 0
    assert states.grad.abs().max() == 0


def test_states_of_pairs_and_differences():
    last = torch.tensor([[[1.0, 2.0], [0.5, 4.0]], [[3.0, 0.0], [1.0, 1.0]]])
    assert contrasted_states(last, "pairs").tolist() == [[1, 2], [0.5, 4], [3, 0], [1, 1]]
    assert contrasted_states(last, "difference").tolist() == [[0.5, -2], [-0.5, 2], [2, -1], [-2, 1]]
    assert contrasted_states(last.bfloat16(), "pairs").dtype == torch.float32


def test_sinkhorn_makes_rows_distributions_and_uses_all_columns():
    scores = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    few, many = sinkhorn(scores, 0.3, 1), sinkhorn(scores, 0.3, 200)
    torch.testing.assert_close(few.sum(1), torch.ones(12))
    torch.testing.assert_close(many.sum(1), torch.ones(12))
    torch.testing.assert_close(many.sum(0), torch.full((4,), 3.0), atol=1e-3, rtol=0)
    assert (few.sum(0) - 3).abs().max() > 0.02


def test_sinkhorn_by_hand():
    # Already balanced: the softmax itself.  Both prefer the first column by as much: no preference is left.
    share = math.exp(2) / (1 + math.exp(2))
    torch.testing.assert_close(sinkhorn(torch.eye(2), 0.5, 3), torch.tensor([[share, 1 - share], [1 - share, share]]))
    torch.testing.assert_close(sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.5, 3), torch.full((2, 2), 0.5))
    assert torch.isfinite(sinkhorn(torch.eye(2), 1e-3, 3)).all()


def test_swav_by_hand():
    # Assignments of both views are softmax(score / 0.5) of a balanced matrix; the predictions use temperature 1.
    first = torch.eye(2)
    second = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    options = {"temperature": 1.0, "regularization": 0.5, "iterations": 3}
    share = math.exp(2) / (1 + math.exp(2))
    p = math.e / (1 + math.e)
    # Each view's assignment falls on the other column than the other's prediction.
    one_way = -share * math.log(1 - p) - (1 - share) * math.log(p)
    assert swav_loss(first, second, **options).tolist() == pytest.approx([2 * one_way] * 2, abs=1e-5)
    agreeing = -share * math.log(p) - (1 - share) * math.log(1 - p)
    assert swav_loss(first, first, **options).tolist() == pytest.approx([2 * agreeing] * 2, abs=1e-5)


def test_no_gradient_goes_through_assignments():
    first, second = torch.eye(2, requires_grad=True), torch.eye(2)
    swav_loss(first, second, temperature=1.0, regularization=0.5, iterations=3).sum().backward()
    # Of a cross-entropy with fixed targets: p - q.
    p, q = torch.eye(2).softmax(1), sinkhorn(torch.eye(2), 0.5, 3)
    torch.testing.assert_close(first.grad, p - q)


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 50}
CONFIGS = [
    LlamaConfig(**SMALL),
    Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8),
    GPT2Config(
        n_embd=16, n_layer=3, n_head=2, vocab_size=50, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    GPTNeoXConfig(**SMALL),
    MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_dropout_goes_behind_attention_and_mlp_of_any_decoder(config):
    from transformers import AutoModel

    torch.manual_seed(0)
    backbone = AutoModel.from_config(config)
    ids = torch.arange(7)[None]
    without = backbone.train()(ids).last_hidden_state
    handles = add_dropout(backbone, 0.5)
    assert len(handles) == 2 * 3
    first, second = (backbone.train()(ids).last_hidden_state for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.equal(backbone.eval()(ids).last_hidden_state, without)
    for handle in handles:
        handle.remove()
    assert torch.equal(backbone.train()(ids).last_hidden_state, without)


def test_the_asked_share_of_an_output_is_dropped_and_the_rest_is_scaled():
    part = torch.nn.Sequential(torch.nn.Identity())
    backbone = torch.nn.Module()
    backbone.layers = torch.nn.ModuleList([torch.nn.Module()])
    backbone.layers[0].mlp, backbone.config = part, SimpleNamespace(num_hidden_layers=1)
    add_dropout(backbone, 0.2)
    out = part.train()(torch.ones(50_000))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    # Standard error 0.0018.
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_a_model_without_decoder_layers_is_refused():
    backbone = torch.nn.Linear(2, 2)
    backbone.config = SimpleNamespace(num_hidden_layers=2)
    with pytest.raises(UserError, match="both views of a response are the same"):
        add_dropout(backbone, 0.1)


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_views_differ_in_training_and_are_equal_in_evaluation(reward_model, tokenizer, pairs, layout):
    method, batch = built(reward_model, dropout=0.2), pair_batch(tokenizer, pairs[:4], layout)
    # In evaluation nothing is left of the method but the cosines of a view with itself.
    loss, output = method.loss(reward_model.eval(), batch), reward_model(batch)
    assert torch.equal(loss.terms["preference_loss"], bradley_terry_loss(output.rewards))
    states = F.normalize(output.last_hidden.flatten(0, 1), dim=1)
    by_state = -((states @ states.T) / 0.05).log_softmax(1).diagonal()
    torch.testing.assert_close(loss.terms["contrastive_loss"], by_state.view(-1, 2).mean(1), atol=1e-4, rtol=0)
    reward_model.train()
    assert not torch.equal(reward_model(batch).rewards, reward_model(batch).rewards)
    assert not torch.equal(method.loss(reward_model, batch).per_pair, method.loss(reward_model, batch).per_pair)


def test_equal_random_states_give_equal_losses(reward_model, tokenizer, pairs):
    method, batch = built(reward_model.train()), pair_batch(tokenizer, pairs[:4])
    actual = []
    for _ in range(2):
        torch.manual_seed(7)
        actual.append(method.loss(reward_model, batch).per_pair)
    assert torch.equal(*actual)


def test_a_pair_alone_has_its_own_other_response_as_negative(reward_model, tokenizer, pairs):
    batch = pair_batch(tokenizer, pairs[:1])
    loss = built(reward_model).loss(reward_model, batch).terms["contrastive_loss"]
    cosine = F.cosine_similarity(*reward_model(batch).last_hidden[0], dim=0)
    assert loss.item() == pytest.approx(math.log1p(math.exp((cosine.item() - 1) / 0.05)), abs=1e-5)


@pytest.mark.parametrize("states", ["pairs", "difference"])
def test_swav_trains_its_prototypes_but_does_not_export_them(reward_model, tokenizer, pairs, states, tmp_path):
    method = built(reward_model.train(), objective="swav", states=states, prototypes=5, weight=0.5)
    loss = method.loss(reward_model, pair_batch(tokenizer, pairs[:4]))
    torch.testing.assert_close(loss.per_pair, loss.terms["preference_loss"] + 0.5 * loss.terms["contrastive_loss"])
    loss.per_pair.sum().backward()
    assert reward_model.prototypes.weight.shape == (5, 32)
    # The lengths of the prototypes do not matter.
    along = (reward_model.prototypes.weight * reward_model.prototypes.weight.grad).sum(1)
    assert reward_model.prototypes.weight.grad.abs().max() > 1e-4
    assert along.abs().max() < 1e-5
    method.export(reward_model, tmp_path / "out")
    from safetensors.torch import load_file

    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert set(exported) == set(reward_model.classifier.state_dict())


def test_prototypes_depend_on_the_seed_alone(prepared):
    from rm_methods.reward_models.backbones import load_classifier

    weights = []
    for seed in (1, 1, 2):
        model = RewardModel(load_classifier(prepared[1], prepared[2]["backbone"], seed=0))
        torch.rand(seed)
        method = load_method("contrastive", load_method_card("contrastive").defaults() | {"objective": "swav"})
        method.build(model, Inputs(seed, None))
        weights.append(model.prototypes.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("dropout", 0, "must be more than 0"),
        ("dropout", 1, "must be less than 1"),
        ("temperature", 0, "must be more than 0"),
        ("objective", "simclr", "allowed: simcse, swav"),
        ("states", "sum", "allowed: pairs, difference"),
        ("prototypes", 1, "must be at least 2"),
    ],
)
def test_impossible_settings_are_refused(setting, value, expected):
    (problem,) = schema_problems({setting: value}, load_method_card("contrastive").settings_schema)
    assert setting in problem
    assert expected in problem
