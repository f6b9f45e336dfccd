import math

import pytest
import torch

from rm_methods.errors import ConfigError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.noise_corrected import noise_corrected_loss
from tests.conftest import experiment_config
from tests.methods.loss_checks import assert_best_difference, assert_finite_up_to_extreme_differences, value_and_slope

DIFFERENCES = torch.linspace(-6, 6, 25, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0])


def test_it_is_the_published_formula():
    e = 0.2
    expected = ((1 - e) * bradley_terry_loss(DIFFERENCES) - e * bradley_terry_loss(DIFFERENCES.flip(1))) / (1 - 2 * e)
    torch.testing.assert_close(noise_corrected_loss(DIFFERENCES, e), expected)


@pytest.mark.parametrize("e", [0.1, 0.25, 0.4])
def test_on_average_over_flips_it_is_the_clean_loss(e):
    average = (1 - e) * noise_corrected_loss(DIFFERENCES, e) + e * noise_corrected_loss(DIFFERENCES.flip(1), e)
    torch.testing.assert_close(average, bradley_terry_loss(DIFFERENCES))


def test_clean_loss_by_hand():
    # log(1 + exp(-0.7)) = 0.403186.
    parts = [value_and_slope(lambda r: noise_corrected_loss(r, 0.25), z)[0] for z in (0.7, -0.7)]
    assert 0.75 * parts[0] + 0.25 * parts[1] == pytest.approx(0.403186, abs=1e-6)


def test_it_differs_from_bradley_terry_by_a_straight_line():
    # e = 0.3: slope -0.3/0.4.
    line = noise_corrected_loss(DIFFERENCES, 0.3) - bradley_terry_loss(DIFFERENCES)
    torch.testing.assert_close(line, -0.75 * DIFFERENCES[:, 0])


def test_without_noise_it_is_bradley_terry():
    r = torch.tensor([[1.3, -0.4], [-2.0, 7.0]])
    assert torch.equal(noise_corrected_loss(r, 0.0), bradley_terry_loss(r))


def test_flips_do_not_move_the_best_difference():
    # Clean labels right with probability sigmoid(2); with e = 0.2 flipped, a label is wrong with 0.2 s + 0.8 (1 - s).
    s = 1 / (1 + math.exp(-2))
    assert_best_difference(lambda r: noise_corrected_loss(r, 0.2), 0.2 * s + 0.8 * (1 - s), 2.0)


def test_extreme_differences():
    assert_finite_up_to_extreme_differences(lambda r: noise_corrected_loss(r, 0.25))
    assert_finite_up_to_extreme_differences(lambda r: noise_corrected_loss(r, 0.49))


@pytest.mark.parametrize(
    ("rate", "message"), [(0.5, "is 0.5; must be less than 0.5"), (-0.1, "is -0.1; must be at least 0")]
)
def test_impossible_rates_are_refused(rate, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"methods\.noise_corrected\.noise_rate: {message}"):
        experiment_config(tmp_path, methods={"noise_corrected": {"noise_rate": rate}})
