"""What the tests of losses of the reward difference share."""

from __future__ import annotations

import torch

EXTREMES = (0.0, 1.0, 20.0, 90.0, 104.0, 1e3, 1e4)


def value_and_slope(loss, z: float) -> tuple[float, float]:
    """Loss of one pair with reward difference z, and its derivative by z, in fp64."""
    rewards = torch.tensor([[z, 0.0]], dtype=torch.float64, requires_grad=True)
    value = loss(rewards)
    value.sum().backward()
    return value.item(), rewards.grad[0, 0].item()


def assert_finite_up_to_extreme_differences(loss) -> None:
    """In fp32, value and gradient are finite for |z| up to 1e4, whichever reward is the large one."""
    rows = [row for z in EXTREMES for row in ([z, 0.0], [-z, 0.0], [z / 2, -z / 2], [0.0, z])]
    rewards = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    values = loss(rewards)
    assert values.dtype == torch.float32
    assert values.shape == (len(rows),)
    assert torch.isfinite(values).all()
    values.sum().backward()
    assert torch.isfinite(rewards.grad).all()


def assert_best_difference(loss, flipped: float, z: float) -> None:
    """z minimizes (1 - flipped) * loss(z) + flipped * loss(-z): the slope changes its sign there."""

    def slope(at: float) -> float:
        return (1 - flipped) * value_and_slope(loss, at)[1] - flipped * value_and_slope(loss, -at)[1]

    assert slope(z - 1e-3) < 0 < slope(z + 1e-3)
