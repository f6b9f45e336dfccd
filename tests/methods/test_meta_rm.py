import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs
from rm_methods.methods.meta_rm import difference_objective, losses_at_shifted_parameters
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.preferences.pair import write_pairs
from rm_methods.reward_models.layouts import PairBatch, lay_out
from rm_methods.validation import schema_problems
from tests.conftest import experiment_config, made_up_pairs


def pair_batch(tokenizer, pairs, weight=None, layout="packed"):
    rows = lay_out(tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs), layout, 0)
    weight = torch.ones(len(pairs)) if weight is None else torch.tensor(weight)
    return PairBatch(
        **vars(rows), margin=torch.zeros(len(pairs)), weight=weight, pair_ids=tuple(p.pair_id for p in pairs)
    )


def built(model, tokenizer=None, **settings):
    method = load_method("meta_rm", load_method_card("meta_rm").defaults() | settings)
    config = {"backbone": {"refused_conversations": "error"}, "training": {"tokens_per_microbatch": 400}}
    method.build(model, Inputs(0, None, config=config, reader=tokenizer))
    return method


def gradients(model, loss, batch, total_weight):
    """As the trainer makes them for a step of this one micro-batch."""
    model.zero_grad()
    ((batch.weight / total_weight) * loss.per_pair).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("responses", [2, 3, 5])
def test_objective_of_equal_rewards(responses):
    value = difference_objective(torch.full((4, responses), 0.7))
    assert value.tolist() == pytest.approx([(responses - 1) / (2 * responses)] * 4, abs=1e-6)


def test_objective_by_hand():
    def s(x):
        return 1 / (1 + math.exp(-x))

    value = difference_objective(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 4.0]]))
    assert value.tolist() == pytest.approx([2 / 9 * (s(3) + s(0.5) + s(2.5)), 2 / 9 * (0.5 + 2 * s(4))], abs=1e-6)
    # Which response is the better one does not matter.
    torch.testing.assert_close(
        difference_objective(torch.tensor([[3.0, 1.0]])), difference_objective(torch.tensor([[1.0, 3.0]]))
    )
    assert difference_objective(torch.tensor([[900.0, -900.0]])).item() == pytest.approx(0.5)


def test_a_step_on_quadratics_has_its_closed_form():
    # J = a theta^2 / 2 and L = b (theta - c)^2 / 2, so J' = a theta and L' = b (theta - c).
    # The step gives theta - alpha b ((1 + eta a) theta - c).
    a, b, c, eta, alpha = 3.0, 2.0, 5.0, 0.1, 0.25
    theta = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    start = theta.detach().clone()
    weight = torch.tensor([2.0], dtype=torch.float64)
    per_pair = losses_at_shifted_parameters(
        [theta], a * theta.square().sum() / 2, lambda: b * (theta - c).square().sum()[None] / 2, weight=weight, eta=eta
    )
    shifted = (1 + eta * a) * start
    torch.testing.assert_close(per_pair.detach(), b * (shifted - c).square().sum()[None] / 2)
    assert torch.equal(theta, start)
    (weight / 2 * per_pair).sum().backward()
    with torch.no_grad():
        theta -= alpha * theta.grad
    torch.testing.assert_close(theta.detach(), start - alpha * b * (shifted - c))


def test_weights_weigh_and_the_trainers_factor_scales():
    # Losses theta and 10 theta: the gradient of the weighted sum is 3 * 1 + 1 * 10.
    theta = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    weight = torch.tensor([3.0, 1.0], dtype=torch.float64)
    per_pair = losses_at_shifted_parameters(
        [theta], theta, lambda: torch.stack([theta, 10 * theta]), weight=weight, eta=0.0
    )
    (2 * weight / 8 * per_pair).sum().backward()
    assert theta.grad.item() == pytest.approx(2 * 13 / 8, abs=1e-12)


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_without_a_step_the_gradient_is_bradley_terrys_to_the_bit(reward_model, tokenizer, pairs, layout):
    batch = pair_batch(tokenizer, pairs[:8], layout=layout)
    loss = built(reward_model, eta=0.0).loss(reward_model, batch)
    actual = gradients(reward_model, loss, batch, 8)
    preference = bradley_terry_loss(reward_model(batch).rewards)
    assert torch.equal(loss.per_pair, preference)
    reward_model.zero_grad()
    ((batch.weight / 8) * preference).sum().backward()
    assert all(torch.equal(x, parameter.grad) for x, parameter in zip(actual, reward_model.parameters(), strict=True))


def test_loss_and_gradient_are_those_of_a_model_moved_along_the_objective(reward_model, tokenizer, pairs):
    batch = pair_batch(tokenizer, pairs[:6], weight=[1.0, 0.5, 2.0, 0.0, 1.0, 3.0])
    start = {name: weight.clone() for name, weight in reward_model.state_dict().items()}
    loss = built(reward_model, eta=0.5).loss(reward_model, batch)
    assert all(torch.equal(weight, start[name]) for name, weight in reward_model.state_dict().items())
    actual = gradients(reward_model, loss, batch, 10.0)
    assert (
        loss.terms["difference_objective"].tolist()
        == [difference_objective(reward_model(batch).rewards).mean().item()] * 6
    )
    reward_model.zero_grad()
    difference_objective(reward_model(batch).rewards).mean().backward()
    with torch.no_grad():
        for parameter in reward_model.parameters():
            parameter += 0.5 * parameter.grad
    expected = bradley_terry_loss(reward_model(batch).rewards)
    torch.testing.assert_close(loss.per_pair, expected)
    assert (loss.per_pair - math.log(2)).abs().max() > 1e-3
    reward_model.zero_grad()
    (batch.weight / 10.0 * expected).sum().backward()
    for x, parameter in zip(actual, reward_model.parameters(), strict=True):
        torch.testing.assert_close(x, parameter.grad, atol=1e-6, rtol=1e-4)


def test_recomputed_activations_give_the_same_gradient(reward_model, tokenizer, pairs):
    batch, method = pair_batch(tokenizer, pairs[:4]), built(reward_model.train(), eta=0.5)
    stored = gradients(reward_model, method.loss(reward_model, batch), batch, 4)
    reward_model.recompute_activations()
    recomputed = gradients(reward_model, method.loss(reward_model, batch), batch, 4)
    assert all(torch.equal(x, y) for x, y in zip(stored, recomputed, strict=True))


def test_parameters_are_restored_when_the_loss_fails():
    theta = nn.Parameter(torch.tensor([1e8, 0.1]))
    start = theta.detach().clone()

    def fails():
        assert not torch.equal(theta, start)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        losses_at_shifted_parameters([theta], theta.square().sum(), fails, weight=torch.ones(1), eta=1.0)
    assert torch.equal(theta, start)


def test_a_filler_has_losses_and_a_gradient_of_zero(reward_model, tokenizer, pairs):
    batch = pair_batch(tokenizer, pairs[:3], weight=[0.0, 0.0, 0.0])
    loss = built(reward_model, eta=0.5).loss(reward_model, batch)
    assert (loss.per_pair > 0.3).all()
    actual = gradients(reward_model, loss, batch, 8)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in actual)


def test_losses_can_be_computed_without_gradients_for_the_message_of_a_failed_step(reward_model, tokenizer, pairs):
    batch, method = pair_batch(tokenizer, pairs[:3]), built(reward_model, eta=0.5)
    with torch.no_grad():
        without = method.loss(reward_model, batch).per_pair
    assert torch.equal(without, method.loss(reward_model, batch).per_pair)


def test_samples_are_drawn_by_seed_and_step_and_fit_into_a_micro_batch(reward_model, tokenizer, pairs, tmp_path):
    samples = made_up_pairs(30, seed=3)
    write_pairs(samples, tmp_path / "samples.parquet")
    make = partial(built, reward_model, tokenizer, samples=str(tmp_path / "samples.parquet"))
    method, batch = make(), pair_batch(tokenizer, pairs[:3])
    first, again = method.meta_batch(batch), make().meta_batch(batch)
    later, other = method.meta_batch(replace(batch, progress=0.5)), method.meta_batch(pair_batch(tokenizer, pairs[3:6]))
    assert torch.equal(first.input_ids, again.input_ids)
    assert len(first.read_row) == 6
    assert not torch.equal(first.input_ids, later.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    assert first.attention_map is not None
    assert method.meta_batch(pair_batch(tokenizer, pairs[:3], layout="plain")).attention_map is None
    # 48 pairs of about 40 tokens do not fit into 400.
    assert 200 < method.meta_batch(pair_batch(tokenizer, pairs)).launched_tokens <= 400
    assert {key: method.report()[key] for key in ("sample_prompts", "samples_cut")} == {
        "sample_prompts": 30,
        "samples_cut": 0,
    }


def test_labels_of_samples_do_not_matter(reward_model, tokenizer, pairs, tmp_path):
    samples = made_up_pairs(4, seed=3)
    actual = []
    for k, rows in enumerate((samples, [replace(p, chosen=p.rejected, rejected=p.chosen) for p in samples])):
        write_pairs(rows, tmp_path / f"{k}.parquet")
        method = built(reward_model, tokenizer, samples=str(tmp_path / f"{k}.parquet"), eta=0.5)
        actual.append(method.loss(reward_model, pair_batch(tokenizer, pairs[:4])).per_pair)
    torch.testing.assert_close(*actual)
    with_own_pairs = built(reward_model, eta=0.5).loss(reward_model, pair_batch(tokenizer, pairs[:4])).per_pair
    assert not torch.allclose(with_own_pairs, actual[0], atol=1e-5)


def test_samples_that_are_not_there_are_refused(reward_model, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"missing\.parquet"):
        built(reward_model, tokenizer, samples=str(tmp_path / "missing.parquet"))
    write_pairs([], tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="has no pairs"):
        built(reward_model, tokenizer, samples=str(tmp_path / "empty.parquet"))


def test_zero3_is_refused_by_name_and_by_file_before_anything_trains(tmp_path):
    (tmp_path / "own.json").write_text(
        '{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": true}}'
    )
    for name in ("zero3", str(tmp_path / "own.json")):
        with pytest.raises(ConfigError, match=r"methods.meta_rm: 'meta_rm' trains with ZeRO stages 0, 1, 2 only"):
            experiment_config(tmp_path, methods={"meta_rm": {}}, training={"deepspeed": name})
    for name in (None, "zero2"):
        experiment_config(tmp_path, methods={"meta_rm": {}}, training={"deepspeed": name})


def test_a_negative_step_is_refused():
    (problem,) = schema_problems({"eta": -0.1}, load_method_card("meta_rm").settings_schema)
    assert "must be at least 0" in problem


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def exchanges(wrapped):
    """What DDP exchanges from now on: a list that grows.  The others' answer is ten times our own gradient."""
    seen = []

    def exchange(state, bucket):
        seen.append(bucket.buffer().clone())
        future = torch.futures.Future()
        future.set_result(10 * bucket.buffer())
        return future

    wrapped.register_comm_hook(None, exchange)
    return seen


def test_ranks_exchange_the_gradient_at_the_shifted_parameters_and_no_other(one_rank):
    inner, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    with torch.no_grad():
        inner.weight.fill_(2.0)
    model = nn.parallel.DistributedDataParallel(inner)
    seen = exchanges(model)
    losses = losses_at_shifted_parameters(
        [inner.weight], model(x).sum(), lambda: 3 * inner(x)[:, 0].square(), weight=torch.ones(1), eta=0.5
    )
    assert seen == []
    losses.sum().backward()
    # theta' = 2.5, where 3 theta^2 is 18.75 and its gradient 15.
    assert losses.tolist() == [18.75]
    assert [gradient.tolist() for gradient in seen] == [[15.0]]
    assert inner.weight.grad.tolist() == [[150.0]]
    assert inner.weight.tolist() == [[2.0]]


def test_the_first_forward_makes_ranks_ready_to_exchange(one_rank, reward_model, tokenizer, pairs):
    batch, method = pair_batch(tokenizer, pairs[:4]), built(reward_model, eta=0.5)
    alone = gradients(reward_model, method.loss(reward_model, batch), batch, 4)
    wrapped = nn.parallel.DistributedDataParallel(reward_model)
    seen = exchanges(wrapped)
    together = gradients(reward_model, method.loss(wrapped, batch), batch, 4)
    assert sum(gradient.numel() for gradient in seen) == sum(
        parameter.numel() for parameter in reward_model.parameters()
    )
    assert all(torch.equal(10 * x, y) for x, y in zip(alone, together, strict=True))
