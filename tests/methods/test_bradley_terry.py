import math

import pytest
import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss, centering_penalty


def rewards(*rows):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def test_values_by_hand():
    # z = 0: -log 1/2.  z = 1: log(1 + e^-1).  z = -3: log(1 + e^3).
    loss = bradley_terry_loss(rewards([2.0, 2.0], [1.5, 0.5], [-1.0, 2.0]))
    assert loss.tolist() == pytest.approx([math.log(2), math.log1p(math.exp(-1)), math.log1p(math.exp(3))], abs=1e-12)


def test_gradient_at_equal_rewards_is_a_half_each_way():
    r = rewards([0.3, 0.3])
    bradley_terry_loss(r).sum().backward()
    assert r.grad.tolist() == [[-0.5, 0.5]]


def test_shifting_both_rewards_of_a_pair_changes_nothing():
    r = rewards([0.7, -0.2], [5.0, 9.0])
    torch.testing.assert_close(bradley_terry_loss(r), bradley_terry_loss(r + torch.tensor([[3.0], [-8.0]])))


def test_a_margin_moves_the_loss_along_its_argument():
    r = rewards([1.2, 0.1])
    torch.testing.assert_close(bradley_terry_loss(r, torch.tensor([0.4])), bradley_terry_loss(rewards([0.8, 0.1])))


def test_extreme_differences_stay_finite():
    assert bradley_terry_loss(torch.tensor([[1e4, -1e4], [-1e4, 1e4]])).tolist() == [0.0, 2e4]


def test_centering_by_hand():
    # A shift c of both rewards adds 4 c (r_c + r_r) + 4 c^2.
    r, c = rewards([1.0, -0.5], [0.2, 0.3]), 0.7
    added = centering_penalty(r + c) - centering_penalty(r)
    expected = [4 * c * s + 4 * c * c for s in (0.5, 0.5)]
    assert added.tolist() == pytest.approx(expected, abs=1e-12)
    assert centering_penalty(rewards([2.0, -2.0])).item() == 0


def test_linear_features_recover_the_direction_of_the_true_weights():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([1.0, -2.0, 0.5])
    features = torch.randn(4000, 2, 3, generator=generator)
    wins = torch.rand(4000, generator=generator) < torch.sigmoid((features[:, 0] - features[:, 1]) @ truth)
    ordered = torch.where(wins[:, None, None], features, features.flip(1))
    weight = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = bradley_terry_loss(ordered @ weight).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    # Standard error of a coefficient is about 0.05 here.
    torch.testing.assert_close(weight.detach(), truth, atol=0.2, rtol=0)
