"""The pure functions of PPO against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rm_methods.ppo.losses import (
    adapted_kl_coefficient,
    advantages_and_returns,
    distinct,
    policy_loss,
    token_rewards,
    value_loss,
    whitened,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_the_score_lands_on_the_last_real_token_and_kl_is_paid_at_each():
    log_ratio = torch.tensor([[0.5, -1.0, 2.0], [0.25, 9.0, 9.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), log_ratio, MASK, kl_coefficient=0.1)
    assert rewards.tolist() == [pytest.approx([-0.05, 0.1, 9.8]), pytest.approx([19.975, 0.0, 0.0])]


def test_advantages_and_returns_by_hand():
    """gamma 0.5, lambda 0.5, rewards 1 2 3, values 4 5 6.

    delta_2 = 3 - 6 = -3;  delta_1 = 2 + 0.5 * 6 - 5 = 0;  delta_0 = 1 + 0.5 * 5 - 4 = -0.5.
    A_2 = -3;  A_1 = 0 + 0.25 * -3 = -0.75;  A_0 = -0.5 + 0.25 * -0.75 = -0.6875.
    """
    rewards = torch.tensor([[1.0, 2.0, 3.0], [7.0, 0.0, 0.0]])
    values = torch.tensor([[4.0, 5.0, 6.0], [2.0, 99.0, 99.0]])
    advantages, returns = advantages_and_returns(rewards, values, MASK, gamma=0.5, lambda_=0.5)
    assert advantages.tolist() == [[-0.6875, -0.75, -3.0], [5.0, 0.0, 0.0]]
    assert returns.tolist() == [[3.3125, 4.25, 3.0], [7.0, 0.0, 0.0]]


def test_with_lambda_one_and_gamma_one_the_return_is_the_reward_still_to_come():
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    _, returns = advantages_and_returns(rewards, torch.tensor([[0.3, -4.0, 2.0]]), MASK[:1], gamma=1.0, lambda_=1.0)
    assert returns[0].tolist() == pytest.approx([6.0, 5.0, 3.0])


def test_whitening_looks_at_valid_tokens_only():
    values = torch.tensor(
        [[1.0, 2.0, 3.0], [6.0, 1000.0, -1000.0]]
    )  # 1 2 3 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5
    scaled = whitened(values, MASK)
    root = math.sqrt(3.5)
    assert scaled[0].tolist() == pytest.approx([-2 / root, -1 / root, 0.0], abs=1e-6)
    assert scaled[1].tolist() == [pytest.approx(3 / root), 0.0, 0.0]


def test_equal_advantages_whiten_to_zero():
    assert whitened(torch.full((2, 3), 0.7), MASK).abs().max() < 1e-3


def test_the_policy_loss_is_clipped_only_where_that_is_the_worse():
    old = torch.zeros(1, 3)
    new = torch.log(torch.tensor([[1.5, 1.5, 0.5]]))
    advantages = torch.tensor([[1.0, -1.0, -1.0]])
    loss, clipped = policy_loss(new, old, advantages, MASK[:1], clip_range=0.2)
    # -min(1.5, 1.2) - min(-1.5, -1.2) - min(-0.5, -0.8)
    assert float(loss) == pytest.approx(-1.2 + 1.5 + 0.8)
    assert int(clipped) == 2
    loss, clipped = policy_loss(new[:, :1].expand(1, 3), old, advantages[:, :1].expand(1, 3), MASK[1:], clip_range=0.2)
    assert (float(loss), int(clipped)) == (pytest.approx(-1.2), 1)


def test_the_policy_gradient_pushes_toward_what_was_better():
    new = torch.zeros(1, 2, requires_grad=True)
    loss, _ = policy_loss(new, torch.zeros(1, 2), torch.tensor([[2.0, -3.0]]), MASK[:1, :2], clip_range=0.2)
    loss.backward()
    assert new.grad.tolist() == [[-2.0, 3.0]]


def test_the_value_loss_takes_the_worse_of_free_and_clipped():
    old, returns = torch.zeros(1, 3), torch.ones(1, 3)
    # 0.9 is cut to 0.2: 0.64 against 0.01; 0.1 is not cut: 0.81.
    loss = value_loss(
        torch.tensor([[0.9, 0.1, 50.0]]), old, returns, torch.tensor([[True, True, False]]), clip_range=0.2
    )
    assert float(loss) == pytest.approx(0.5 * (0.64 + 0.81))


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1 + 0.1 * 32 / 1000), (100.0, 1 + 0.2 * 32 / 1000), (0.0, 1 - 0.2 * 32 / 1000)]
)
def test_the_kl_coefficient_follows_the_target(kl, factor):
    assert adapted_kl_coefficient(0.05, kl, target=6.0, responses=32, horizon=1000) == pytest.approx(0.05 * factor)


def test_distinct_counts_different_n_grams_of_the_batch():
    responses = [[1, 2, 1, 2], [1, 2], [7]]
    assert distinct(responses, 1) == 3 / 7
    assert distinct(responses, 2) == 2 / 4  # (1, 2), (2, 1), (1, 2), (1, 2)
    assert distinct([[1]], 2) == 0.0
