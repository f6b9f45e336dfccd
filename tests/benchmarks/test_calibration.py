from __future__ import annotations

import math

import numpy as np
import pytest

from rm_methods.benchmarks.calibration import calibration, confidence_bins

LOGIT_75 = math.log(3)  # sigmoid is 0.75
LOGIT_90 = math.log(9)


def measured(margins):
    result = calibration(np.array(margins, dtype=np.float64))
    assert result is not None
    return result


def test_one_bin_by_hand():
    """Four predictions at confidence 0.75, of which two are right: the error is 0.25."""
    result = measured([LOGIT_75, LOGIT_75, -LOGIT_75, -LOGIT_75])
    assert result["ece"] == pytest.approx(0.25)
    assert result["bins"] == [
        {
            "low": pytest.approx(0.75),
            "high": pytest.approx(0.75),
            "n": 4,
            "mean_confidence": pytest.approx(0.75),
            "accuracy": 0.5,
        }
    ]


def test_two_bins_weigh_by_their_pairs():
    """20 pairs at 0.75, all right: 0.25 off. 40 at 0.9, half right: 0.4 off. (20 x 0.25 + 40 x 0.4) / 60 = 0.35."""
    result = measured([LOGIT_75] * 20 + [LOGIT_90, -LOGIT_90] * 20)
    assert [(b["n"], b["accuracy"]) for b in result["bins"]] == [(20, 1.0), (40, 0.5)]
    assert result["ece"] == pytest.approx(0.35)


def test_errors_of_opposite_signs_cancel_within_a_bin_and_not_between_bins():
    """At 0.75 half are right, at 0.9 all: gaps of 0.25 and 0.1."""
    result = measured([LOGIT_75, -LOGIT_75] * 10 + [LOGIT_90] * 20)
    assert result["ece"] == pytest.approx((0.25 + 0.1) / 2)


def test_what_chance_alone_makes_of_a_calibrated_model():
    """Simulated: margins whose sigmoid is the probability of being right get about `ece_if_calibrated`."""
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(300):
        size = np.abs(generator.normal(0, 1.5, size=300))
        right = generator.random(300) < 1 / (1 + np.exp(-size))
        result = measured(np.where(right, size, -size))
        errors.append(result["ece"])
        expected = result["ece_if_calibrated"]
    assert np.mean(errors) == pytest.approx(expected, rel=0.1)
    assert expected > 0.05


def test_fifteen_bins_of_equal_numbers_of_pairs():
    sizes = [b["n"] for b in measured(np.linspace(0.01, 4, 1500))["bins"]]
    assert sizes == [100] * 15
    assert [b["n"] for b in measured(np.linspace(0.01, 4, 100))["bins"]] == [20] * 5
    assert len(measured(np.linspace(0.01, 4, 39))["bins"]) == 1


def test_the_order_of_pairs_and_of_responses_has_no_influence():
    generator = np.random.default_rng(1)
    margins = np.round(generator.normal(size=400), 1)  # many equal confidences
    shuffled = measured(generator.permutation(margins))
    assert shuffled["ece"] == pytest.approx(measured(margins)["ece"], abs=1e-12)
    assert [b["n"] for b in shuffled["bins"]] == [b["n"] for b in measured(margins)["bins"]]
    swapped = measured(-margins)  # every label is the other one
    assert [b["accuracy"] for b in swapped["bins"]] == pytest.approx(
        [1 - b["accuracy"] for b in measured(margins)["bins"]]
    )


def test_equal_confidences_are_never_in_two_bins():
    number = confidence_bins(np.array([0.6] * 30 + [0.7] * 31 + [0.8] * 39))
    assert len(set(number[:30])) == len(set(number[30:61])) == len(set(number[61:])) == 1
    assert (np.diff(number) >= 0).all()


def test_equal_rewards_are_half_right_at_one_half():
    result = measured([0.0] * 50)
    assert result["ece"] == 0.0
    assert result["bins"] == [{"low": 0.5, "high": 0.5, "n": 50, "mean_confidence": 0.5, "accuracy": 0.5}]


def test_missing_scores_are_left_out_and_huge_margins_are_certain():
    result = measured([math.nan, 1e30, -1e30, 1e30, 1e30])
    assert result["bins"] == [{"low": 1.0, "high": 1.0, "n": 4, "mean_confidence": 1.0, "accuracy": 0.75}]
    assert result["ece_if_calibrated"] == 0.0
    assert calibration(np.array([math.nan])) is None
    assert calibration(np.array([])) is None
