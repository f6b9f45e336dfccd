from dataclasses import replace

import pytest
import torch

from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs
from rm_methods.methods.label_smoothing import label_smoothing_loss
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.methods.soft_labels import soft_label_loss, targets_of_strengths
from rm_methods.preferences.noise import flip_labels
from tests.conftest import experiment_config, made_up_pairs
from tests.methods.loss_checks import assert_finite_up_to_extreme_differences, value_and_slope


def transformed(pairs, folder, **settings):
    return load_method("soft_labels", load_method_card("soft_labels").defaults() | settings).transform_pairs(
        pairs, Inputs(0, folder)
    )


def with_meta(*values):
    return [
        replace(pair, meta={"votes": value}) for pair, value in zip(made_up_pairs(len(values)), values, strict=True)
    ]


def test_a_certain_label_is_bradley_terry():
    r = torch.tensor([[1.3, -0.4], [-2.0, 7.0]])
    assert torch.equal(soft_label_loss(r, torch.ones(2)), bradley_terry_loss(r))


def test_an_undecided_label_wants_equal_rewards():
    assert value_and_slope(lambda r: soft_label_loss(r, 0.5), 0.0) == pytest.approx((0.693147, 0.0), abs=1e-6)


@pytest.mark.parametrize(("q", "best"), [(0.75, 1.098612), (0.9, 2.197225), (0.2, -1.386294)])
def test_the_best_difference_is_the_logit_of_the_target(q, best):
    assert value_and_slope(lambda r: soft_label_loss(r, q), best)[1] == pytest.approx(0, abs=1e-6)


def test_equal_targets_are_label_smoothing():
    r = torch.tensor([[1.3, -0.4], [-2.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(soft_label_loss(r, 0.9), label_smoothing_loss(r, 0.1))


def test_targets_of_strengths_by_hand():
    # sigmoid(log 3) = 3/4; a negative strength says that the label is more likely wrong.
    assert targets_of_strengths([1.098612, 0.0, -1.098612], 1.0) == pytest.approx([0.75, 0.5, 0.25], abs=1e-6)
    assert targets_of_strengths([0.549306], 2.0) == pytest.approx([0.75], abs=1e-6)
    assert targets_of_strengths([-1e6, 1e6], 1.0) == [0.0, 1.0]


def test_targets_come_from_the_strengths(tmp_path):
    pairs = made_up_pairs(6)
    soft = transformed(pairs, tmp_path, scale=2.0)
    assert [pair.target for pair in soft] == pytest.approx(
        [1 / (1 + 2.718281828 ** (-2 * pair.strength)) for pair in pairs]
    )
    assert [replace(pair, target=1.0) for pair in soft] == pairs


def test_targets_come_from_a_probability_of_the_data_even_without_strengths(tmp_path):
    pairs = [replace(pair, strength=None) for pair in with_meta(0, 0.3, 1)]
    assert [pair.target for pair in transformed(pairs, tmp_path, probability="votes")] == [0.0, 0.3, 1.0]


def test_a_flipped_label_keeps_its_probability(tmp_path):
    flipped, _ = flip_labels(with_meta(0.9, 0.9, 0.9, 0.9), 0.25, "symmetric", 0)
    assert [pair.target for pair in transformed(flipped, tmp_path, probability="votes")] == [0.9] * 4


@pytest.mark.parametrize("bad", [1.2, -0.1, None, "0.5", True, float("nan"), 10**400])
def test_probabilities_that_are_none_are_refused_with_their_number_and_the_first(bad, tmp_path):
    pairs = with_meta(0.5, bad, 1.0, bad)
    with pytest.raises(
        UserError,
        match=rf"soft_labels\.probability: .*'votes', but 2 of 4 .* do not; the first is {pairs[1].pair_id}",
    ):
        transformed(pairs, tmp_path, probability="votes")


def test_a_missing_key_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"3 of 3 .*has no such key\. Did you mean 'votes'"):
        transformed(with_meta(0.5, 0.5, 0.5), tmp_path, probability="vote")


def test_pairs_without_strengths_are_refused(tmp_path):
    pairs = [replace(pair, strength=None) for pair in made_up_pairs(3)]
    with pytest.raises(UserError, match=r"soft_labels: .* 3 of 3 training pairs have none.*soft_labels\.probability"):
        transformed(pairs, tmp_path)


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0])
def test_extreme_differences(q):
    assert_finite_up_to_extreme_differences(lambda r: soft_label_loss(r, q))


def test_a_scale_of_zero_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"methods\.soft_labels\.scale: is 0; must be more than 0"):
        experiment_config(tmp_path, methods={"soft_labels": {"scale": 0}})
