"""Reward transforms by hand, their invariances, and that missing references are refused."""

from __future__ import annotations

import numpy as np
import pytest

from rm_methods.errors import ConfigError, UserError
from rm_methods.ppo.reward_transforms import NAMES, RewardTransform, RunningMoments, contrastive, preference_as_reward

REFERENCES = {"a": [1.0, 3.0], "b": [-2.0, 6.0]}  # all: mean 2, standard deviation sqrt((1 + 1 + 16 + 16) / 4)
SPREAD = np.sqrt(34 / 4)


def test_contrastive_subtracts_the_mean_of_the_prompts_references():
    assert contrastive(np.array([5.0, 5.0]), np.array([[1.0, 3.0], [-2.0, 6.0]])).tolist() == [3.0, 3.0]


def test_contrastive_rewards_of_the_references_themselves_average_to_zero():
    transform = RewardTransform("contrastive", REFERENCES, standardize=False)
    rewards = transform(np.array([1.0, 3.0, -2.0, 6.0]), ["a", "a", "b", "b"])
    assert rewards.tolist() == [-1.0, 1.0, -4.0, 4.0]


def test_a_shift_of_all_scores_of_a_prompt_changes_neither_contrastive_nor_par():
    shifted = {"a": [11.0, 13.0], "b": [-2.0, 6.0]}
    for name in ("contrastive", "par"):
        plain = RewardTransform(name, REFERENCES, standardize=False)(np.array([2.5]), ["a"])
        moved = RewardTransform(name, shifted, standardize=False)(np.array([12.5]), ["a"])
        assert moved == pytest.approx(plain)


def test_par_is_the_mean_probability_of_beating_a_reference():
    # sigmoid(0) = 1/2; sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4.
    rewards = preference_as_reward(np.array([0.0, 0.0]), np.array([[0.0, 0.0], [-np.log(3), 0.0]]))
    assert rewards.tolist() == pytest.approx([0.5, (0.75 + 0.5) / 2])


def test_par_stays_between_zero_and_one_and_keeps_the_order_within_a_prompt():
    scores = np.linspace(-50, 50, 21)
    rewards = RewardTransform("par", REFERENCES)(scores, ["b"] * 21)
    assert (np.diff(rewards) > 0).all()
    assert 0 <= rewards.min() < rewards.max() <= 1


def test_standardized_scores_have_the_references_mean_and_spread_as_zero_and_one():
    transform = RewardTransform("none", REFERENCES)
    assert (transform.center, transform.scale) == pytest.approx((2.0, SPREAD))
    assert transform(np.array([2.0, 2.0 + SPREAD]), ["x", "y"]) == pytest.approx([0.0, 1.0])


def test_standardized_rewards_do_not_depend_on_the_scale_of_the_reward_model():
    for name in NAMES:
        small = RewardTransform(name, REFERENCES)(np.array([0.5, 4.0]), ["a", "b"])
        scaled = {key: [7 * value - 3 for value in values] for key, values in REFERENCES.items()}
        large = RewardTransform(name, scaled)(np.array([0.5, 4.0]) * 7 - 3, ["a", "b"])
        assert large == pytest.approx(small), name


def test_clip_cuts_at_so_many_standard_deviations_around_the_references_mean():
    plain = RewardTransform("clip", REFERENCES, standardize=False, clip_width=2)
    assert plain(np.array([100.0, -100.0, 2.5]), ["x"] * 3) == pytest.approx([2 + 2 * SPREAD, 2 - 2 * SPREAD, 2.5])
    scaled = RewardTransform("clip", REFERENCES, clip_width=2)
    assert scaled(np.array([100.0, -100.0, 2.0]), ["x"] * 3) == pytest.approx([2.0, -2.0, 0.0])


def test_running_centers_and_scales_by_all_scores_so_far():
    transform = RewardTransform("running", standardize=False)
    assert transform(np.array([1.0, 3.0]), ["x", "y"]) == pytest.approx([-1.0, 1.0])
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5.
    assert transform(np.array([5.0, 7.0]), ["x", "y"]) == pytest.approx([1 / np.sqrt(5), 3 / np.sqrt(5)])


def test_running_goes_on_from_a_saved_state():
    first, again = RewardTransform("running", standardize=False), RewardTransform("running", standardize=False)
    first(np.array([1.0, 3.0]), ["x", "y"])
    again.load_state(first.state())
    assert again(np.array([5.0, 7.0]), ["x", "y"]).tolist() == first(np.array([5.0, 7.0]), ["x", "y"]).tolist()


def test_running_moments_are_those_of_all_values_at_once():
    values = np.random.default_rng(0).normal(3, 2, size=100)
    moments = RunningMoments()
    for batch in np.split(values, [1, 7, 50]):
        moments.update(batch)
    assert (moments.count, moments.mean, moments.spread) == (
        100,
        pytest.approx(values.mean()),
        pytest.approx(values.std()),
    )


def test_equal_scores_do_not_divide_by_zero():
    assert RewardTransform("running", standardize=False)(np.array([4.0, 4.0]), ["x", "y"]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "standardize"),
    [("none", True), ("running", True), ("contrastive", False), ("par", False), ("clip", False)],
)
def test_missing_references_are_refused_and_plain_scores_never_taken(name, standardize):
    with pytest.raises(UserError, match=f"'{name}'.*needs the scores of stored SFT responses, but none were given"):
        RewardTransform(name, {}, standardize)
    with pytest.raises(UserError, match="some prompts have none"):
        RewardTransform(name, {"a": [1.0], "b": []}, standardize)


def test_a_prompt_without_references_is_refused_by_name():
    for name in ("contrastive", "par"):
        with pytest.raises(UserError, match=r"no stored SFT responses for prompt c \(and 1 more"):
            RewardTransform(name, REFERENCES)(np.array([1.0, 2.0, 3.0]), ["a", "c", "d"])


def test_unusable_references_are_refused():
    with pytest.raises(UserError, match="to prompt b is not finite"):
        RewardTransform("none", {"a": [1.0], "b": [float("nan")]})
    with pytest.raises(UserError, match="all 2 stored SFT responses the same score"):
        RewardTransform("none", {"a": [1.0], "b": [1.0]})
    with pytest.raises(UserError, match="different numbers"):
        RewardTransform("par", {"a": [1.0, 2.0], "b": [1.0]})


def test_an_unknown_transform_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'contrastive'"):
        RewardTransform("contrast", REFERENCES)
    with pytest.raises(ConfigError, match="clip_width"):
        RewardTransform("clip", REFERENCES, clip_width=0)
