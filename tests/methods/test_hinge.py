import pytest
import torch

from rm_methods.errors import ConfigError
from rm_methods.methods.hinge import hinge_loss
from tests.conftest import experiment_config
from tests.methods.loss_checks import assert_best_difference, assert_finite_up_to_extreme_differences, value_and_slope


@pytest.mark.parametrize(
    ("z", "margin", "value", "slope"), [(0.25, 1.0, 0.75, -1), (-3.0, 1.0, 4.0, -1), (1.5, 2.0, 0.5, -1)]
)
def test_a_pair_below_the_margin_pulls_with_slope_one(z, margin, value, slope):
    assert value_and_slope(lambda r: hinge_loss(r, margin), z) == pytest.approx((value, slope))


@pytest.mark.parametrize("z", [1.0, 1.01, 50.0])
def test_from_the_margin_on_there_is_neither_loss_nor_gradient(z):
    assert value_and_slope(lambda r: hinge_loss(r, 1.0), z) == (0.0, 0.0)


@pytest.mark.parametrize("flipped", [0.1, 0.25, 0.4])
def test_the_best_difference_is_the_margin_whatever_the_noise(flipped):
    assert_best_difference(lambda r: hinge_loss(r, 0.7), flipped, 0.7)


def test_only_the_difference_counts():
    r = torch.tensor([[0.7, -0.2], [5.0, 9.0]], dtype=torch.float64)
    torch.testing.assert_close(hinge_loss(r, 1.0), hinge_loss(r + torch.tensor([[3.0], [-8.0]]), 1.0))


def test_extreme_differences():
    assert_finite_up_to_extreme_differences(lambda r: hinge_loss(r, 1.0))


def test_a_margin_of_zero_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"methods\.hinge\.margin: is 0; must be more than 0"):
        experiment_config(tmp_path, methods={"hinge": {"margin": 0}})
