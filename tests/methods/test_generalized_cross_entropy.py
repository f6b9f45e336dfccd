import pytest
import torch

from rm_methods.errors import ConfigError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.generalized_cross_entropy import generalized_cross_entropy_loss
from rm_methods.methods.symmetric import symmetric_loss
from tests.conftest import experiment_config
from tests.methods.loss_checks import assert_best_difference, assert_finite_up_to_extreme_differences, value_and_slope

DIFFERENCES = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0])


def test_values_by_hand():
    # q = 1/2, z = 0: 2 (1 - sqrt(1/2)) = 0.585786; slope -s^q (1 - s) = -0.353553.
    assert value_and_slope(lambda r: generalized_cross_entropy_loss(r, 0.5), 0.0) == pytest.approx(
        (0.585786, -0.353553), abs=1e-6
    )


def test_it_is_the_published_formula():
    torch.testing.assert_close(
        generalized_cross_entropy_loss(DIFFERENCES, 0.7), (1 - torch.sigmoid(DIFFERENCES[:, 0]) ** 0.7) / 0.7
    )


def test_toward_zero_it_becomes_bradley_terry():
    # The next term of the series is q * loss^2 / 2.
    r = DIFFERENCES
    torch.testing.assert_close(generalized_cross_entropy_loss(r, 1e-9), bradley_terry_loss(r), atol=1e-7, rtol=0)
    assert generalized_cross_entropy_loss(torch.tensor([[0.0, 0.0]]), 1e-6).item() == pytest.approx(0.693147, abs=1e-5)


def test_at_one_it_is_the_sigmoid_loss():
    torch.testing.assert_close(generalized_cross_entropy_loss(DIFFERENCES, 1.0), symmetric_loss(DIFFERENCES))


@pytest.mark.parametrize(("q", "best"), [(0.5, 2.197225), (0.7, 3.662041)])
def test_best_difference_with_a_quarter_flipped(q, best):
    # (s / (1 - s))^(1 - q) = 3, so z = log 3 / (1 - q).
    assert_best_difference(lambda r: generalized_cross_entropy_loss(r, q), 0.25, best)


@pytest.mark.parametrize("q", [1e-6, 0.7, 1.0])
def test_extreme_differences(q):
    assert_finite_up_to_extreme_differences(lambda r: generalized_cross_entropy_loss(r, q))


@pytest.mark.parametrize(("q", "message"), [(0, "is 0; must be more than 0"), (1.5, "is 1.5; must be at most 1")])
def test_impossible_values_of_q_are_refused(q, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"methods\.generalized_cross_entropy\.q: {message}"):
        experiment_config(tmp_path, methods={"generalized_cross_entropy": {"q": q}})
