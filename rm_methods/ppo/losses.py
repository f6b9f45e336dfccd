"""The mathematics of PPO for language policies, as pure functions.

Shapes: B responses, T tokens.  `mask` bool [B, T] marks the tokens of the responses; they begin each
row. Sources: PPO (Schulman et al. 2017, arXiv 1707.06347), GAE (Schulman et al. 2016, arXiv 1506.02438), the KL
penalty and its controller (Ziegler et al. 2019, arXiv 1909.08593).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def token_rewards(
    scores: torch.Tensor, log_ratio: torch.Tensor, mask: torch.Tensor, kl_coefficient: float
) -> torch.Tensor:
    """Rewards of tokens [B, T]: -kl_coefficient * log(pi / pi_ref) at each, plus the response's score at its last
    token.

    Args:
        scores: [B].
        log_ratio: [B, T], log-probability under the policy minus that under the reference.
    """
    rewards = torch.where(mask, -kl_coefficient * log_ratio, 0.0)
    last = mask.sum(1) - 1
    rewards[torch.arange(len(last)), last] += scores.to(rewards.dtype)
    return rewards


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lambda_: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimates and the returns that values are trained on, both [B, T], 0 outside of `mask`.

    delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1},  return_t = A_t + V_t (arXiv
    1506.02438, equation 16). The value after the last token of a response is 0, even if the length limit cut it.
    """
    values = torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    following_value = following_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        advantages[:, t] = torch.where(mask[:, t], delta + gamma * lambda_ * following_advantage, 0.0)
        following_value, following_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values


def whitened(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values with mean 0 and variance 1 over the tokens in `mask`, 0 outside; all zeros if they are all equal."""
    inside = values[mask]
    scaled = (values - inside.mean()) * torch.rsqrt(inside.var(unbiased=False) + 1e-8)
    return torch.where(mask, scaled, 0.0)


def policy_loss(
    log_probabilities: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped policy loss (arXiv 1707.06347, equation 7), summed over tokens, and the number of clipped tokens.

    Args:
        log_probabilities, old: [B, T], under the policy now and when it sampled.
    """
    ratio = (log_probabilities - old).exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.where(mask, torch.maximum(free, clipped), 0.0).sum()
    return loss, ((clipped > free) & mask).sum()


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """Half the squared error of the values, clipped around their old ones, summed over tokens (Ziegler et al. 2019,
    their code)."""
    clipped = old + (values - old).clamp(-clip_range, clip_range)
    worse = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * torch.where(mask, worse, 0.0).sum()


def adapted_kl_coefficient(coefficient: float, kl: float, target: float, responses: int, horizon: float) -> float:
    """The KL coefficient for the next update: it rises while KL is above the target (arXiv 1909.08593, section 2.2).

    Args:
        kl: mean KL of a response in nats.
        responses: in this update.
        horizon: responses over which the coefficient changes by a factor of about e^0.2 at the most.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * responses / horizon)


def distinct(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens as a share of all n-grams of a batch (Li et al. 2016, arXiv 1510.03055); 0 without
    n-grams."""
    grams = [tuple(ids[k : k + n]) for ids in responses for k in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
