from __future__ import annotations

import math

import numpy as np
import pytest

from rm_methods.errors import UserError
from rm_methods.overoptimization.curve_fits import fit_curve

KL = np.array([0.0, 0.193, 0.636, 1.204, 1.835, 2.497, 3.175])


def test_best_of_n_gets_its_coefficients_back():
    """a = 0.6, b = 0.25: d* = 0.6 / 0.5 = 1.2, R* = 0.36 / 1 = 0.36."""
    d = np.sqrt(KL)
    fit = fit_curve(KL, d * (0.6 - 0.25 * d), "best_of_n")
    assert (fit.a, fit.b, fit.best_d, fit.best_reward) == pytest.approx((0.6, 0.25, 1.2, 0.36))
    assert fit.r_squared == pytest.approx(1.0)
    assert (fit.n_points, fit.refused) == (6, "")
    assert fit.reward([0.0, 1.2]) == pytest.approx([0.0, 0.36])


def test_reinforcement_learning_gets_its_coefficients_back():
    """a = 0.5, b = 0.3: d* = exp(0.5 / 0.3 - 1) = 1.948, R* = 0.3 * 1.948 = 0.584."""
    d = np.sqrt(KL)
    fit = fit_curve(KL, d * (0.5 - 0.3 * np.log(np.where(d > 0, d, 1))), "reinforcement_learning")
    assert (fit.a, fit.b) == pytest.approx((0.5, 0.3))
    assert fit.best_d == pytest.approx(math.exp(2 / 3))
    assert fit.best_reward == pytest.approx(0.3 * math.exp(2 / 3))
    assert fit.reward(fit.best_d) > max(fit.reward(fit.best_d * 0.9), fit.reward(fit.best_d * 1.1))


def test_least_squares_by_hand_with_noise():
    """The residual is orthogonal to both columns, and R squared counts about the mean."""
    generator = np.random.default_rng(0)
    d = np.sqrt(KL)
    reward = d * (0.6 - 0.25 * d) + 0.02 * generator.standard_normal(len(d))
    fit = fit_curve(KL, reward, "best_of_n")
    residual = (reward - fit.reward(d))[1:]
    assert residual @ d[1:] == pytest.approx(0, abs=1e-12)
    assert residual @ d[1:] ** 2 == pytest.approx(0, abs=1e-12)
    assert fit.r_squared == pytest.approx(1 - (residual**2).sum() / ((reward[1:] - reward[1:].mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("kl", "reward", "reason"),
    [
        (KL[:4], KL[:4], "too few points: 3 different distances"),
        (np.ones(9), np.arange(9.0), "too few points: 1 different"),
        (KL, np.sqrt(KL) * (0.2 + 0.3 * np.sqrt(KL)), "b = -0.3 is not above 0"),
        (KL, np.sqrt(KL) * (-0.2 - 0.3 * np.sqrt(KL)), "a = -0.2 is not above 0"),
        (KL, np.sqrt(KL) * (1.0 - 0.01 * np.sqrt(KL)), "the optimum d = 50 is beyond"),
        (KL, np.zeros(7), "the same at every distance"),
    ],
)
def test_what_has_no_optimum_is_refused_with_a_reason(kl, reward, reason):
    fit = fit_curve(kl, reward, "best_of_n")
    assert reason in fit.refused
    assert math.isnan(fit.best_d)
    assert math.isnan(fit.best_reward)


def test_unknown_forms_and_missing_values_are_errors():
    with pytest.raises(UserError, match="Did you mean 'best_of_n'"):
        fit_curve(KL, KL, "best_of")
    with pytest.raises(UserError, match="not finite"):
        fit_curve(KL, np.full(7, np.nan), "best_of_n")
