import pytest
import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.symmetric import symmetric_loss
from tests.methods.loss_checks import assert_finite_up_to_extreme_differences, value_and_slope


def test_values_by_hand():
    # sigmoid(-z): 1/2 at 0; sigma(-log 3) = 1/4.  Slope -s(1 - s): -1/4 at 0, -3/16 at log 3.
    assert value_and_slope(symmetric_loss, 0.0) == pytest.approx((0.5, -0.25))
    assert value_and_slope(symmetric_loss, 1.0986122886681098) == pytest.approx((0.25, -3 / 16))


def test_right_and_wrong_label_cost_one_together():
    r = torch.linspace(-30, 30, 61, dtype=torch.float64)[:, None] * torch.tensor([0.5, -0.5])
    torch.testing.assert_close(symmetric_loss(r) + symmetric_loss(r.flip(1)), torch.ones(61, dtype=torch.float64))


def test_flipped_labels_only_scale_and_shift_the_expected_loss():
    r = torch.tensor([[0.3, -1.0], [2.0, 2.5], [-1.0, 4.0]], dtype=torch.float64)
    noisy = 0.7 * symmetric_loss(r) + 0.3 * symmetric_loss(r.flip(1))
    torch.testing.assert_close(noisy, 0.4 * symmetric_loss(r) + 0.3)


def test_it_is_one_minus_the_likelihood_of_the_label():
    r = torch.tensor([[0.3, -1.0], [-1.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(symmetric_loss(r), 1 - torch.exp(-bradley_terry_loss(r)))


def test_extreme_differences():
    assert_finite_up_to_extreme_differences(symmetric_loss)
    assert symmetric_loss(torch.tensor([[1e4, 0.0], [0.0, 1e4]])).tolist() == [0.0, 1.0]
