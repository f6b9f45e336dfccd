from dataclasses import replace

import pytest
import torch

from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.methods.scaled_bradley_terry import scaled_bradley_terry_loss, strength_factors
from tests.conftest import experiment_config, made_up_pairs
from tests.methods.loss_checks import assert_finite_up_to_extreme_differences, value_and_slope


def method(**settings):
    return load_method("scaled_bradley_terry", load_method_card("scaled_bradley_terry").defaults() | settings)


def with_strengths(*strengths):
    return [
        replace(pair, strength=strength)
        for pair, strength in zip(made_up_pairs(len(strengths)), strengths, strict=True)
    ]


class Model:
    """Stands for a reward model: gives back the rewards that are to be tested."""

    def __init__(self, rewards):
        self.rewards = torch.tensor(rewards)

    def __call__(self, batch):
        return self


class Batch:
    def __init__(self, pair_ids):
        self.pair_ids = pair_ids


def test_factor_one_is_bradley_terry():
    r = torch.tensor([[1.3, -0.4], [-2.0, 7.0]])
    assert torch.equal(scaled_bradley_terry_loss(r, 1.0), bradley_terry_loss(r))


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_value_and_slope_are_proportional_to_the_factor(factor):
    value, slope = value_and_slope(lambda r: scaled_bradley_terry_loss(r, factor), 0.0)
    assert (value, slope) == pytest.approx((factor * 0.693147, factor * -0.5), abs=1e-6)


def test_factors_by_hand():
    # mean of 1, 2, 3, 2 is 2; of their squares 18/4; clipped at 2, the mean is 7/4.
    assert strength_factors([1, 2, 3, 2], 1.0, None) == pytest.approx([0.5, 1.0, 1.5, 1.0])
    assert strength_factors([1, 2, 3, 2], 2.0, None) == pytest.approx([4 / 18, 16 / 18, 36 / 18, 16 / 18])
    assert strength_factors([1, 2, 3, 2], 1.0, 2.0) == pytest.approx([4 / 7, 8 / 7, 8 / 7, 8 / 7])
    assert strength_factors([0.0, 2, 3], 0.0, None) == [1.0, 1.0, 1.0]


def test_each_pair_gets_its_own_factor_with_mean_one_over_the_pairs_that_are_trained_on(tmp_path):
    pairs = with_strengths(1.0, 2.0, 3.0, 50.0)
    scaled = method()
    assert list(scaled.transform_pairs(pairs, Inputs(0, tmp_path))) == pairs
    scaled.build(None, Inputs(0, tmp_path, pairs=pairs[:3]))  # the last one did not fit into the context
    loss = scaled.loss(Model([[0.0, 0.0], [0.0, 0.0]]), Batch((pairs[2].pair_id, pairs[0].pair_id)))
    assert loss.per_pair.tolist() == pytest.approx([1.5 * 0.693147, 0.5 * 0.693147], abs=1e-6)
    assert loss.terms["preference_loss"].tolist() == pytest.approx([0.693147, 0.693147], abs=1e-6)
    assert scaled.report() == pytest.approx({"smallest_factor": 0.5, "largest_factor": 1.5})


def test_pairs_without_strengths_are_refused_with_their_number(tmp_path):
    pairs = with_strengths(1.0, None, 2.0, float("nan"))
    with pytest.raises(
        UserError, match=rf"2 of 4 training pairs have none; the first is {pairs[1].pair_id} \(made up\), with None"
    ):
        method().transform_pairs(pairs, Inputs(0, tmp_path))


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ((1.0, -2.0, -1.0), "2 of 3 training pairs have one, the first -2"),
        ((0.0, 0.0), "0 on average over 2 training pairs"),
    ],
)
def test_strengths_that_cannot_count_are_refused(strengths, message, tmp_path):
    with pytest.raises(UserError, match=message):
        method().transform_pairs(with_strengths(*strengths), Inputs(0, tmp_path))


def test_extreme_differences():
    assert_finite_up_to_extreme_differences(lambda r: scaled_bradley_terry_loss(r, 3.0))


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"power: is -1; must be at least 0") as caught:
        experiment_config(tmp_path, methods={"scaled_bradley_terry": {"power": -1, "maximum_strength": 0}})
    assert "maximum_strength: is 0; must be more than 0" in str(caught.value)
