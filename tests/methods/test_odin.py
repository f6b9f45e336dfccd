import math

import pytest
import torch

from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError
from rm_methods.methods import odin
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.odin import LENGTH, ORDER, QUALITY, STAMP, LengthHead, direction, expanded_correlation, pearson
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.reward_models.response_tokens import response_tokens
from tests.conftest import experiment_config
from tests.methods.length_toy import LengthWorld, LinearModel, accuracy, correlation, trained


def method(**settings):
    return load_method("odin", load_method_card("odin").defaults() | settings)


def built(world, tmp_path, **settings):
    """A method and its model."""
    made = method(**settings)
    model = LinearModel(world.features.shape[-1])
    made.build(model, world.inputs(tmp_path, pairs_per_step=32))
    return made, model


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pearson_by_hand():
    # Deviations (-1, 0, 1) and (-1, 1, 0): covariance 1/3, variances 2/3 each.
    assert pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 6.0, 5.0])).item() == pytest.approx(0.5, abs=1e-6)


def test_pearson_stays_within_one_and_is_that_of_numpy():
    for seed in range(20):
        first, second = normal(2, 30, seed=seed)
        assert pearson(first, second).item() == pytest.approx(
            torch.corrcoef(torch.stack([first, second]))[0, 1].item(), abs=1e-5
        )
        assert pearson(first, 1e4 * first + 3).item() == pytest.approx(1, abs=1e-4)
        assert -1 <= pearson(first, -first).item() <= 1


def test_scaling_and_shifting_a_head_changes_no_correlation_term():
    rewards, lengths, memory, before = normal(4, 2), normal(4, 2, seed=1), normal(50, seed=2), normal(50, seed=3)
    rho, expanded = expanded_correlation(rewards, lengths, memory, before)
    scaled_rho, scaled = expanded_correlation(7 * rewards + 2, lengths, 7 * memory + 2, before)
    assert scaled_rho.item() == pytest.approx(rho.item(), abs=1e-5)
    torch.testing.assert_close(scaled, expanded, atol=1e-5, rtol=0)


def test_the_expansion_about_a_sample_has_that_samples_correlation_and_its_gradient():
    rewards, lengths = normal(16, 2).requires_grad_(), normal(16, 2, seed=1).abs() * 100
    rho, expanded = expanded_correlation(rewards, lengths, rewards.detach().flatten(), lengths.flatten())
    assert expanded.mean().item() == pytest.approx(rho.item(), abs=1e-6)
    (of_expansion,) = torch.autograd.grad(expanded.mean(), rewards)
    (true,) = torch.autograd.grad(pearson(rewards.flatten(), lengths.flatten()), rewards)
    torch.testing.assert_close(of_expansion, true, atol=1e-6, rtol=0)
    assert true.abs().max() > 1e-3


@pytest.mark.parametrize("constant", [0.0, 3.3, 1e6])
def test_a_constant_head_or_length_gives_neither_nan_nor_gradient(constant):
    values = torch.full((8, 2), constant, requires_grad=True)
    for rewards, lengths in ((values, normal(8, 2)), (normal(8, 2).requires_grad_(), values.detach())):
        rho, expanded = expanded_correlation(rewards, lengths, rewards.detach().flatten(), lengths.flatten())
        assert rho.item() == 0
        assert expanded.tolist() == [0.0] * 8
        (gradient,) = torch.autograd.grad(expanded.sum(), rewards)
        assert gradient.abs().max() == 0


def test_labels_that_depend_on_length_alone_are_left_to_the_length_head(tmp_path):
    world, unseen = LengthWorld(256), LengthWorld(512, seed=1)
    model = trained(method(), world, tmp_path, steps=200, learning_rate=0.02)
    with torch.no_grad():
        quality, length_head = (
            head(unseen.features)[..., 0] for head in (model.classifier.score, model.length_head.score)
        )
    assert 0.4 < accuracy(quality) < 0.6  # standard error 0.022
    assert abs(correlation(quality, unseen.lengths)) < 0.15
    assert accuracy(length_head) > 0.97
    assert correlation(length_head, unseen.lengths) > 0.98


def test_without_both_weights_the_sum_of_the_heads_is_trained_and_quality_follows_length(tmp_path):
    world = LengthWorld(256)
    model = trained(method(length_weight=0.0, orthogonality_weight=0.0), world, tmp_path, steps=200, learning_rate=0.02)
    assert correlation(model.classifier.score(world.features)[..., 0].detach(), world.lengths) > 0.9


def test_loss_of_the_first_step_by_hand(tmp_path):
    # Nothing is remembered yet, so both correlations are 0 and the length terms are |0| + 1 - 0.
    world = LengthWorld(8)
    made, model = built(world, tmp_path, length_weight=0.5, orthogonality_weight=2.0)
    model.classifier.score.weight.data = torch.tensor([[3.0, 4.0, 0, 0, 0, 0, 0, 0]])
    model.length_head.score.weight.data = torch.tensor([[-1.0, 0, 0, 0, 0, 0, 0, 0]])
    actual = made.loss(model, world.batch([0, 1], 0.0))
    total = world.features[[0, 1]] @ torch.tensor([2.0, 4.0, 0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(actual.per_pair, bradley_terry_loss(total) + 0.5 + 2.0 * 3 / 5)
    assert actual.micro_batch is None


def test_orthogonality_pulls_the_directions_apart_whatever_their_lengths(tmp_path):
    _, model = built(LengthWorld(8), tmp_path)
    heads = (model.classifier.score, model.length_head.score)
    heads[0].weight.data, heads[1].weight.data = 5 * torch.eye(8)[:1], torch.eye(8)[:1] + torch.eye(8)[1:2]
    cosine = (direction(heads[0]) * direction(heads[1])).sum()
    assert cosine.item() == pytest.approx(math.sqrt(0.5), abs=1e-6)
    cosine.backward()
    # d cos / d w = (unit of the other - cos * own unit) / |w|
    torch.testing.assert_close(heads[0].weight.grad[0, :2], torch.tensor([0.0, math.sqrt(0.5) / 5]))


def test_sharded_weights_are_read_through_the_module():
    head = torch.nn.Linear(6, 1)
    whole = direction(head)
    head.weight.ds_id = 0  # as DeepSpeed marks the parameters that it shards
    torch.testing.assert_close(direction(head), whole, atol=1e-6, rtol=0)


def rows(stamp, *orders):
    made = torch.zeros(len(orders), 5)
    made[:, STAMP] = stamp
    made[:, ORDER] = torch.tensor(orders, dtype=torch.float32)
    made[:, QUALITY] = 10 * stamp + made[:, ORDER]
    return made


def test_memory_keeps_the_last_responses_of_earlier_steps_in_order():
    head = LengthHead(4, scale=0.02, seed=0, kept=6, most_per_step=4)
    assert len(head.earlier(0.0)) == 0
    for stamp in (0.0, 0.25, 0.5):
        head.remember(rows(stamp, 3, 1))
        head.remember(rows(stamp, 0, 2))
        # What is seen does not change within a step.
        assert head.earlier(stamp)[:, ORDER].tolist() == {0.0: [], 0.25: [0, 1, 2, 3], 0.5: [2, 3, 0, 1, 2, 3]}[stamp]
    assert head.earlier(0.75)[:, [STAMP, ORDER]].tolist() == [
        [0.25, 2],
        [0.25, 3],
        [0.5, 0],
        [0.5, 1],
        [0.5, 2],
        [0.5, 3],
    ]
    assert head.earlier(0.5)[:, STAMP].tolist() == [0.0, 0.0, 0.25, 0.25, 0.25, 0.25]


def test_how_a_step_is_cut_changes_neither_its_gradient_nor_the_memory(tmp_path):
    world = LengthWorld(96)
    actual = []
    for cut in ([32], [3, 9, 20], [1] * 32):
        made, model = built(world, tmp_path, memory=64)
        for step in range(3):
            positions = list(range(32 * step, 32 * step + 32))
            if len(cut) > 1:
                positions.reverse()
            model.zero_grad()
            for size in cut:
                part, positions = positions[:size], positions[size:]
                (made.loss(model, world.batch(part, step / 3)).per_pair.sum() / 32).backward()
        actual.append([model.length_head.memory.clone(), *(p.grad.clone() for p in model.parameters())])
    for other in actual[1:]:
        torch.testing.assert_close(other, actual[0], atol=1e-5, rtol=1e-5)
    assert actual[0][1].abs().max() > 1e-3


def test_correlations_act_once_there_are_responses_enough(tmp_path):
    world = LengthWorld(96)
    made, model = built(world, tmp_path)
    for step in range(2):
        terms = made.loss(model, world.batch(list(range(32 * step, 32 * step + 32)), step / 3)).terms
        assert (terms["quality_correlation"].abs().max() > 0) == (step == 1)
    later = made.loss(model, world.batch([64, 65], 2 / 3))
    seen = world.features[:64].flatten(0, 1) @ model.classifier.score.weight[0].detach()
    assert later.terms["quality_correlation"][0].item() == pytest.approx(
        correlation(seen, world.lengths[:64]), abs=1e-5
    )


def test_neither_evaluation_nor_fillers_nor_calls_without_gradient_are_remembered(tmp_path):
    world = LengthWorld(32)
    made, model = built(world, tmp_path)
    batch, before = world.batch([0, 1, 2], 0.0), model.length_head.memory.clone()
    with torch.no_grad():
        made.loss(model, batch)
    model.eval()
    made.loss(model, batch)
    model.train()
    batch.weight = torch.zeros(3)
    made.loss(model, batch)
    assert torch.equal(model.length_head.memory, before)
    batch.weight = torch.tensor([1.0, 0.0, 1.0])
    made.loss(model, batch)
    assert model.length_head.memory[-4:, ORDER].tolist() == [0, 1, 4, 5]
    assert model.length_head.memory[-4:, LENGTH].tolist() == world.lengths[[0, 2]].flatten().tolist()


def test_all_ranks_remember_the_responses_of_all(monkeypatch):
    def all_gather(parts, rows_of_rank):
        parts[0].copy_(rows_of_rank)
        parts[1].fill_(-1)
        parts[1][:1] = rows(0.5, 1)

    monkeypatch.setattr(odin.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(odin.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(odin.dist, "all_gather", all_gather)
    head = LengthHead(4, scale=0.02, seed=0, kept=6, most_per_step=4)
    head.remember(rows(0.5, 2, 0))
    assert head.earlier(1.0)[:, ORDER].tolist() == [0, 1, 2]


def test_memory_is_checkpointed_and_stays_the_same_tensor(tmp_path):
    # DDP holds on to the buffers that it saw first.
    world = LengthWorld(32)
    made, model = built(world, tmp_path)
    buffer = dict(model.named_buffers())["length_head.memory"]
    made.loss(model, world.batch([0, 1], 0.0))
    assert buffer is model.length_head.memory
    assert torch.equal(model.state_dict()["length_head.memory"], buffer)
    assert (buffer[-4:, STAMP] == 0).all()


def test_lengths_are_those_of_the_responses_alone(tokenizer, pairs):
    prompt = pairs[0].prompt
    longer = [{"role": "user", "content": "Well. " * 25 + prompt[0]["content"]}]
    items = tokenizer.encode([(prompt, ("It is red.", "")), (longer, ("It is red.", "It is red. " * 40))])
    alone = len(tokenizer.tokenizer("It is red.", add_special_tokens=False)["input_ids"])
    lengths = [tuple(map(len, ids)) for ids in response_tokens(items, tokenizer)]
    assert lengths[0] == (alone, 0)
    # The second prompt had to be cut for its longer response only.
    assert items[1].prompt_cut == (False, True)
    assert lengths[1][0] == alone
    assert lengths[1][1] > 30 * alone
    assert response_tokens([], tokenizer) == []


def test_the_report_has_the_correlations_of_the_last_responses(tmp_path):
    world = LengthWorld(32)
    made, model = built(world, tmp_path)
    assert made.report() == {"responses_in_memory": 0}
    model.length_head.score.weight.data = torch.eye(8)[:1]
    made.loss(model, world.batch(list(range(32)), 0.0))
    actual = made.report()
    assert actual["responses_in_memory"] == 64
    assert actual["length_head_correlation"] == pytest.approx(1, abs=1e-3)
    assert abs(actual["quality_correlation"]) < 1


@pytest.mark.parametrize("wrong", [{"memory": 32}, {"length_weight": -1}, {"orthogonality_weight": -0.5}])
def test_impossible_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"methods.odin.{next(iter(wrong))}"):
        resolve(experiment_config(tmp_path) | {"methods": {"odin": wrong}})
