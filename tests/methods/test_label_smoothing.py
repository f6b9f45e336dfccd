import math

import pytest
import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.label_smoothing import label_smoothing_loss


def loss(z, smoothing):
    return label_smoothing_loss(torch.tensor([[z, 0.0]], dtype=torch.float64), smoothing).item()


@pytest.mark.parametrize("z", [-2.0, 0.0, 0.7])
def test_is_the_mixture_of_both_labels(z):
    r = torch.tensor([[z, 0.0]], dtype=torch.float64)
    mixture = 0.9 * bradley_terry_loss(r) + 0.1 * bradley_terry_loss(r.flip(1))
    assert loss(z, 0.1) == pytest.approx(mixture.item(), abs=1e-12)


@pytest.mark.parametrize(("smoothing", "best", "value"), [(0.1, 2.1972, 0.3251), (0.25, 1.0986, 0.5623)])
def test_optimum_and_its_value_by_hand(smoothing, best, value):
    # z* = log((1 - a) / a), and the minimum is the entropy of the label.
    assert math.log((1 - smoothing) / smoothing) == pytest.approx(best, abs=1e-4)
    assert loss(best, smoothing) == pytest.approx(value, abs=1e-4)
    assert loss(best, smoothing) < min(loss(best - 0.1, smoothing), loss(best + 0.1, smoothing))


def test_without_smoothing_it_is_bradley_terry():
    r = torch.tensor([[1.3, -0.4]])
    assert torch.equal(label_smoothing_loss(r, 0.0), bradley_terry_loss(r))
