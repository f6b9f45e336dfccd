import math

import pytest
import torch

from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.methods.product_of_experts import BiasExpert
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.reward_models.response_tokens import response_tokens
from tests.conftest import experiment_config
from tests.methods.length_toy import LengthWorld, LinearModel, accuracy, correlation, trained


class BradleyTerry(TrainedMethod):
    def loss(self, model, batch):
        return Loss(bradley_terry_loss(model(batch).rewards))


def method(**settings):
    return load_method("product_of_experts", load_method_card("product_of_experts").defaults() | settings)


def built(world, tmp_path, seed=0, **settings):
    made, model = method(**settings), LinearModel(world.features.shape[-1])
    made.build(model, world.inputs(tmp_path, seed=seed))
    return made, model


def expert(noise=2.0, factor=1.0, mean=0.0, deviation=1.0):
    return BiasExpert(5, 3, noise=noise, factor=factor, log_length_mean=mean, log_length_deviation=deviation, seed=0)


def random_output(made):
    made.expert.output_weight.data = torch.randn(
        made.expert.output_weight.shape, generator=torch.Generator().manual_seed(3)
    )


def test_an_expert_fixed_to_zero_leaves_bradley_terry(tmp_path):
    world = LengthWorld(8)
    made, model = built(world, tmp_path)  # the output layer begins at zero
    actual = made.loss(model, world.batch([0, 1, 2], 0.5))
    rewards = model.classifier.score(world.features[:3])[..., 0]
    assert torch.equal(actual.per_pair, bradley_terry_loss(rewards))
    (ours,) = torch.autograd.grad(actual.per_pair.sum(), model.classifier.score.weight)
    (theirs,) = torch.autograd.grad(bradley_terry_loss(rewards).sum(), model.classifier.score.weight)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(actual.terms["bias_loss"], torch.full((3,), math.log(2)))


def test_the_loss_is_that_of_the_summed_rewards(tmp_path):
    world = LengthWorld(8)
    made, model = built(world, tmp_path)
    random_output(made)
    model.eval()
    batch = world.batch([4, 2], 0.5)
    main, bias = model(batch).rewards, made.bias_rewards(batch.pair_ids, 0.5, "cpu")
    assert bias.std() > 0.1
    actual = made.loss(model, batch)
    z = (main + bias)[:, 0] - (main + bias)[:, 1]
    torch.testing.assert_close(actual.per_pair, torch.log1p(torch.exp(-z)))
    torch.testing.assert_close(actual.terms["preference_loss"], bradley_terry_loss(main))


def test_what_the_expert_sees_by_hand():
    # Rows brought to root mean square 1: (3, 0, 0) -> (sqrt 3, 0, 0), (2, -2, 2) -> (1, -1, 1).
    made = expert(mean=0.5, deviation=2.0)
    made.embedding.data[:2] = torch.tensor([[3.0, 0, 0], [2, -2, 2]])
    actual = made.features(torch.tensor([[0, 1, 1, 1], [1, 4, 4, 4], [0, 0, 0, 0]]), torch.tensor([4, 1, 0]), None)
    root = math.sqrt(3)
    torch.testing.assert_close(actual[0, :3], torch.tensor([(root + 3) / 4, -3 / 4, 3 / 4]))
    torch.testing.assert_close(actual[1, :3], torch.tensor([1.0, -1, 1]))  # the padding behind it is not seen
    assert actual[2, :3].tolist() == [0, 0, 0]
    torch.testing.assert_close(actual[:, 3], torch.tensor([(math.log(n + 1) - 0.5) / 2 for n in (4, 1, 0)]))


def test_noise_on_the_mean_is_that_of_its_tokens_averaged():
    made, noise = expert(noise=2.0), torch.ones(2, 3)
    ids, lengths = torch.zeros(2, 9, dtype=torch.int64), torch.tensor([9, 4])
    added = made.features(ids, lengths, noise) - made.features(ids, lengths, None)
    torch.testing.assert_close(added, torch.tensor([[2 / 3, 2 / 3, 2 / 3, 0], [1, 1, 1, 0]]))  # length stays exact


def test_noise_is_off_in_evaluation_and_the_same_however_a_step_is_cut(tmp_path):
    world = LengthWorld(8)
    made, model = built(world, tmp_path)
    random_output(made)
    ids = tuple(pair.pair_id for pair in world.pairs)
    whole = made.bias_rewards(ids, 0.25, "cpu")
    parts = torch.cat([made.bias_rewards(part, 0.25, "cpu") for part in (ids[:3], ids[3:])])
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    assert (made.bias_rewards(ids, 0.5, "cpu") - whole).abs().min() > 0
    model.eval()
    assert torch.equal(made.bias_rewards(ids, 0.5, "cpu"), made.bias_rewards(ids, 0.25, "cpu"))
    other, _ = built(world, tmp_path, seed=1)
    random_output(other)
    other.expert.load_state_dict(made.expert.state_dict())
    assert (other.bias_rewards(ids, 0.25, "cpu") - whole).abs().min() > 0


def test_a_step_moves_the_expert_by_its_own_learning_rate_and_its_gradient_is_unscaled(tmp_path):
    world = LengthWorld(16)
    gradients = []
    for rate in (0.01, 0.5):
        made, model = built(world, tmp_path, expert_learning_rate=rate)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=0.01
        )  # the first step of Adam moves each weight by the rate
        made.loss(model, world.batch(list(range(16)), 0.0)).per_pair.mean().backward()
        gradients.append(made.expert.output_weight.grad.clone())
        optimizer.step()
        moved = made.expert.factor * made.expert.output_weight.detach()
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, rate), atol=1e-4, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert made.report() == {
        "bias_expert_parameters": 40 * 16 + 32 * 17 + 32 + 32,
        "bias_expert_learning_rate_factor": 50.0,
    }


def test_labels_that_depend_on_length_alone_are_left_to_the_bias_expert(tmp_path):
    world, unseen = LengthWorld(192), LengthWorld(384, seed=1)
    options = {"tmp_path": tmp_path, "steps": 300, "learning_rate": 0.001, "pairs_per_step": 32}
    made = method()
    with_expert, alone = trained(made, world, **options), trained(BradleyTerry({}), world, **options)
    slope, slope_alone = (model.classifier.score.weight[0, 0].item() for model in (with_expert, alone))
    assert slope < 0.5 * slope_alone
    main, main_alone = (model.classifier.score(unseen.features)[..., 0].detach() for model in (with_expert, alone))
    assert correlation(main, unseen.lengths) < correlation(main_alone, unseen.lengths) - 0.1
    made.tokens = dict(
        zip([p.pair_id for p in unseen.pairs], response_tokens(unseen.items, unseen.reader), strict=True)
    )
    bias = made.bias_rewards(list(made.tokens), 0.0, "cpu").detach()
    assert accuracy(bias) > 0.97
    assert correlation(bias, unseen.lengths) > 0.9


@pytest.mark.parametrize("wrong", [{"noise": -1}, {"embedding_size": 0}, {"expert_learning_rate": 0}])
def test_impossible_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"methods.product_of_experts.{next(iter(wrong))}"):
        resolve(experiment_config(tmp_path) | {"methods": {"product_of_experts": wrong}})


def test_the_common_learning_rate_can_still_be_set_for_the_method(tmp_path):
    entry = experiment_config(tmp_path, methods={"product_of_experts": {"learning_rate": 0.5}})["methods"][
        "product_of_experts"
    ]
    assert entry["learning_rate"] == 0.5
    assert "learning_rate" not in entry["settings"]
