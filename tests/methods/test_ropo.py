import pytest
import torch

from rm_methods.errors import ConfigError
from rm_methods.methods.ropo import ropo_loss
from tests.conftest import experiment_config
from tests.methods.loss_checks import assert_best_difference, assert_finite_up_to_extreme_differences, value_and_slope


def test_value_by_hand():
    # a = 3, z = 0: 12/16 * (log 2 + 3/2) = 1.644860; slope -12/16 * (1/2 + 3/4) = -0.9375.
    assert value_and_slope(lambda r: ropo_loss(r, 3.0), 0.0) == pytest.approx((1.644860, -0.9375), abs=1e-6)


@pytest.mark.parametrize("alpha", [2.5, 6.0, 14.0, 30.0])
def test_the_steepest_slope_is_one_at_the_published_place(alpha):
    s = (alpha - 1) / (2 * alpha)
    best = torch.logit(torch.tensor(s, dtype=torch.float64)).item()
    slopes = [-value_and_slope(lambda r: ropo_loss(r, alpha), z)[1] for z in (best - 0.1, best, best + 0.1)]
    assert slopes[1] == pytest.approx(1.0, abs=1e-12)
    assert max(slopes[0], slopes[2]) < 1


def test_a_strongly_contradicted_label_pulls_a_quarter_as_much():
    # 4 a / (1 + a)^2 = 56/225 for a = 14.
    assert value_and_slope(lambda r: ropo_loss(r, 14.0), -40.0)[1] == pytest.approx(-56 / 225, abs=1e-9)


def test_best_difference_with_a_quarter_flipped():
    # 3 (1 - s)(1 + 14 s) = s (1 + 14 (1 - s)), so 28 s^2 - 24 s - 3 = 0, s = 0.967833, z = 3.404514.
    assert_best_difference(lambda r: ropo_loss(r, 14.0), 0.25, 3.404514)


def test_extreme_differences():
    assert_finite_up_to_extreme_differences(lambda r: ropo_loss(r, 14.0))


def test_alpha_of_two_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"methods\.ropo\.alpha: is 2; must be more than 2"):
        experiment_config(tmp_path, methods={"ropo": {"alpha": 2}})
