from dataclasses import replace

import pytest
import torch

from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.bradley_terry_regression import bradley_terry_regression_loss, regression_penalty
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.world import generate, gold
from tests.conftest import experiment_config, made_up_pairs
from tests.methods.loss_checks import assert_finite_up_to_extreme_differences

KEYS = ["score_a", "score_b"]


def method(**settings):
    return load_method("bradley_terry_regression", load_method_card("bradley_terry_regression").defaults() | settings)


def rated(*ratings):
    pairs = made_up_pairs(len(ratings))
    return [replace(pair, meta=dict(zip(KEYS, row, strict=True))) for pair, row in zip(pairs, ratings, strict=True)]


def targets(pairs, folder, **settings):
    """{pair id: target} as training would use them, and the report."""
    regression = method(**settings)
    regression.build(None, Inputs(0, folder, pairs=regression.transform_pairs(pairs, Inputs(0, folder))))
    return {pair_id: target.tolist() for pair_id, target in regression.target.items()}, regression.report()


def test_penalties_by_hand():
    r = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    # Ratings: ((1 - 2)^2 + (-1 - 0)^2) / 2 and ((0.5 - 0.5)^2 + (2 - 0)^2) / 2.  Differences: (2 - 3)^2 and (-1.5 -
    # 0.5)^2.
    assert regression_penalty(r, torch.tensor([[2.0, 0.0], [0.5, 0.0]])).tolist() == [1.0, 2.0]
    assert regression_penalty(r, torch.tensor([3.0, 0.5])).tolist() == [1.0, 4.0]


def test_weight_zero_is_bradley_terry():
    r = torch.tensor([[1.3, -0.4], [-2.0, 7.0]])
    assert torch.equal(bradley_terry_regression_loss(r, torch.tensor([1.0, 2.0]), 0.0), bradley_terry_loss(r))


def test_the_default_weight_makes_both_parts_pull_alike_at_equal_rewards():
    r = torch.zeros(1, 2, requires_grad=True)
    weight = load_method_card("bradley_terry_regression").defaults()["weight"]
    (weight * regression_penalty(r, torch.tensor([1.0]))).sum().backward()
    assert r.grad.tolist() == [[-0.5, 0.5]]


def test_ratings_end_the_freedom_to_shift_rewards_and_differences_do_not():
    r = torch.tensor([[1.0, -1.0]])
    assert regression_penalty(r + 3, torch.tensor([[1.0, -1.0]])).item() == 9.0
    assert (
        regression_penalty(r + 3, torch.tensor([2.0])).item()
        == regression_penalty(r, torch.tensor([2.0])).item()
        == 0.0
    )


@pytest.mark.parametrize("with_ratings", [True, False])
def test_a_very_large_weight_recovers_least_squares(with_ratings):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 2, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    ratings = features @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + noise
    target = ratings if with_ratings else ratings[:, 0] - ratings[:, 1]
    inputs = features.reshape(120, 3) if with_ratings else features[:, 0] - features[:, 1]
    closed_form = torch.linalg.solve(inputs.T @ inputs, inputs.T @ target.reshape(-1))

    def fitted(weight):
        w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [w], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure():
            optimizer.zero_grad()
            loss = bradley_terry_regression_loss(features @ w, target, weight).mean() / max(weight, 1.0)
            loss.backward()
            return loss

        optimizer.step(closure)
        return w.detach()

    torch.testing.assert_close(fitted(1e7), closed_form, atol=1e-5, rtol=0)
    assert (fitted(0.1) - closed_form).abs().max() > 0.05


def test_ratings_are_standardized_over_all_responses(tmp_path):
    # Ratings 4, 1, 2, 1: mean 2, squared distances 4, 1, 0, 1, so a standard deviation of sqrt(1.5).
    pairs = rated((4, 1), (2.0, 1.0))
    actual, report = targets(pairs, tmp_path, ratings=KEYS)
    unit = 1.5**-0.5
    assert actual[pairs[0].pair_id] == pytest.approx([2 * unit, -unit])
    assert actual[pairs[1].pair_id] == pytest.approx([0.0, -unit])
    assert report == pytest.approx({"rating_mean": 2.0, "rating_scale": 1.5**0.5, "pairs_rated_against_their_label": 0})


def test_ratings_follow_their_responses_through_a_flip(tmp_path):
    pairs = rated((4, 1), (2.0, 1.0), (3, 0), (5, 2))
    noisy, _ = flip_labels(pairs, 0.25, "symmetric", 0)
    before, _ = targets(pairs, tmp_path, ratings=KEYS)
    after, report = targets(noisy, tmp_path, ratings=KEYS)
    for pair in noisy:
        expected = before[pair.pair_id]
        assert after[pair.pair_id] == (expected[::-1] if pair.meta.get("flipped") else expected)
    assert report["pairs_rated_against_their_label"] == 1


def test_in_the_controlled_world_every_rating_is_the_gold_reward_of_its_own_response(tmp_path):
    pairs = [
        pair for pair in generate(seed=0, train_pairs=40, validation_pairs=0, test_pairs=0) if pair.split == "train"
    ]
    noisy, _ = flip_labels(pairs, 0.3, "symmetric", 1)
    actual, report = targets(noisy, tmp_path, ratings=["gold_chosen", "gold_rejected"])
    assert report["pairs_rated_against_their_label"] == 12
    for pair in noisy:
        rewards = [reward * report["rating_scale"] + report["rating_mean"] for reward in actual[pair.pair_id]]
        assert rewards == pytest.approx([gold(pair.prompt, pair.chosen), gold(pair.prompt, pair.rejected)], abs=1e-5)


def test_by_default_strengths_are_differences_in_units_of_their_root_mean_square(tmp_path):
    # Strengths 1 and 7: root mean square 5; not centered.
    pairs = [replace(pair, strength=strength) for pair, strength in zip(made_up_pairs(2), (1.0, 7.0), strict=True)]
    actual, report = targets(pairs, tmp_path)
    assert [actual[pair.pair_id] for pair in pairs] == pytest.approx([0.2, 1.4])
    assert report == {"difference_scale": 5.0}


def test_each_pair_of_a_batch_meets_its_own_ratings(tmp_path):
    class Model:
        def __call__(self, batch):
            return type("Output", (), {"rewards": torch.zeros(2, 2)})

    pairs = rated((4, 1), (2, 1))
    regression = method(ratings=KEYS, weight=2.0)
    regression.build(None, Inputs(0, tmp_path, pairs=pairs))
    loss = regression.loss(Model(), type("Batch", (), {"pair_ids": (pairs[1].pair_id, pairs[0].pair_id)}))
    # Standardized: (0, -1) and (2, -1) over sqrt(1.5); mean squares 1/3 and 5/3.
    assert loss.terms["regression_penalty"].tolist() == pytest.approx([1 / 3, 5 / 3])
    assert loss.per_pair.tolist() == pytest.approx([0.693147 + 2 / 3, 0.693147 + 10 / 3], abs=1e-5)


@pytest.mark.parametrize("bad", [None, "4", True, float("inf")])
def test_ratings_that_are_no_numbers_are_refused_with_their_number_and_the_first(bad, tmp_path):
    pairs = rated((4, 1), (2, bad), (3, bad))
    with pytest.raises(
        UserError, match=rf"bradley_terry_regression\.ratings: .*'score_b', but 2 of 3 .*first is {pairs[1].pair_id}"
    ):
        method(ratings=KEYS).transform_pairs(pairs, Inputs(0, tmp_path))


def test_ratings_or_strengths_without_any_difference_are_refused(tmp_path):
    with pytest.raises(UserError, match="score_a and score_b of all training pairs are equal"):
        method(ratings=KEYS).transform_pairs(rated((2, 2), (2, 2)), Inputs(0, tmp_path))
    without = [replace(pair, strength=0.0) for pair in made_up_pairs(2)]
    with pytest.raises(UserError, match="strengths of all training pairs are 0"):
        method().transform_pairs(without, Inputs(0, tmp_path))


def test_pairs_without_strengths_are_refused(tmp_path):
    pairs = [replace(pair, strength=None) for pair in made_up_pairs(3)]
    with pytest.raises(UserError, match=r"3 of 3 training pairs have none.*bradley_terry_regression\.ratings"):
        method().transform_pairs(pairs, Inputs(0, tmp_path))


def test_extreme_differences():
    ones = torch.ones(1)
    assert_finite_up_to_extreme_differences(lambda r: bradley_terry_regression_loss(r, ones.expand(len(r)), 1.0))
    assert_finite_up_to_extreme_differences(lambda r: bradley_terry_regression_loss(r, ones.expand(len(r), 2), 1.0))


@pytest.mark.parametrize("ratings", [["score"], ["score", "score"], ["a", "b", "c"], "score", ["", "a"]])
def test_ratings_must_be_two_different_keys(ratings, tmp_path):
    with pytest.raises(ConfigError, match=r"methods\.bradley_terry_regression\.ratings"):
        experiment_config(tmp_path, methods={"bradley_terry_regression": {"ratings": ratings}})
