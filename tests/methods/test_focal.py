import pytest
import torch

from rm_methods.errors import ConfigError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.focal import focal_loss
from tests.conftest import experiment_config
from tests.methods.loss_checks import assert_best_difference, assert_finite_up_to_extreme_differences, value_and_slope


def test_value_by_hand():
    # z = 0, gamma = 2: log(2) / 4; slope (1 - s)^2 (2 s log s - (1 - s)) = -(log 2 + 1/2) / 4.
    assert value_and_slope(lambda r: focal_loss(r, 2.0), 0.0) == pytest.approx((0.173287, -0.298287), abs=1e-6)


def test_it_is_the_published_formula():
    z = torch.linspace(-8, 8, 33, dtype=torch.float64)
    r = torch.stack([z, torch.zeros_like(z)], dim=1)
    torch.testing.assert_close(focal_loss(r, 1.5), -((1 - torch.sigmoid(z)) ** 1.5) * torch.log(torch.sigmoid(z)))


def test_with_gamma_zero_it_is_bradley_terry():
    r = torch.tensor([[1.3, -0.4], [-2.0, 7.0]])
    assert torch.equal(focal_loss(r, 0.0), bradley_terry_loss(r))


def test_beside_bradley_terry_a_contradicted_label_pulls_more_than_a_confirmed_one():
    share = {
        z: value_and_slope(lambda r: focal_loss(r, 2.0), z)[1] / value_and_slope(bradley_terry_loss, z)[1]
        for z in (-4.0, 0.0, 4.0)
    }
    assert share[-4.0] > 0.9 > share[0.0] > 0.5 > 0.1 > share[4.0]


def test_noise_shrinks_the_best_difference():
    # 3 (1 - s)^2 (2 s log s - (1 - s)) = s^2 (2 (1 - s) log(1 - s) - s) at s = 0.601176; Bradley-Terry's is log 3 =
    # 1.0986.
    assert_best_difference(lambda r: focal_loss(r, 2.0), 0.25, 0.410367)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_extreme_differences(gamma):
    assert_finite_up_to_extreme_differences(lambda r: focal_loss(r, gamma))


def test_a_negative_gamma_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"methods\.focal\.gamma: is -1; must be at least 0"):
        experiment_config(tmp_path, methods={"focal": {"gamma": -1}})
