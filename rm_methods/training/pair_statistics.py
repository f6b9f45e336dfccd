"""Accuracy, margin and rewards of preference pairs, added up over micro-batches and ranks.

The names are those of TRL's RewardTrainer (accuracy, margin), and `reward_mean`, `reward_min`, `reward_max` for its
mean_reward, min_reward and max_reward, so that a list in alphabetical order keeps them together.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from rm_methods.system.ranks import rank_and_ranks

PAIR_METRICS = ("accuracy", "margin", "reward_mean", "reward_min", "reward_max")


class PairStatistics:
    """Sums over pairs, weighted with the pairs' weights, and the extremes of their rewards.

    A pair of weight 0, such as one that only keeps the ranks in step, is left out.  The sums are fp64, so the result
    depends on micro-batches and ranks by rounding only.
    """

    def __init__(self) -> None:
        self.sums: torch.Tensor | None = None
        self.extremes: torch.Tensor | None = None
        self.has_rewards = False

    def add(self, margins: torch.Tensor, rewards: torch.Tensor | None, weight: torch.Tensor) -> None:
        """Count pairs.  Waits for no GPU.

        Args:
            margins: [pairs], reward of chosen minus rejected; 0 counts as wrong.
            rewards: [pairs, 2]; None for a model that gives a response alone no reward.
            weight: [pairs].
        """
        margins = margins.detach().double()
        weight = weight.double()
        is_counted = weight > 0
        rewards_P2 = torch.zeros_like(margins[:, None]) if rewards is None else rewards.detach().double()
        values = [torch.ones_like(margins), margins > 0, margins, F.softplus(-margins), rewards_P2.mean(dim=1)]
        # Not a product with the weight: 0 times a reward that is not finite would not be 0.
        columns = [torch.where(is_counted, weight * value, 0.0).sum() for value in values]
        sums = torch.stack(columns)
        lowest = torch.where(is_counted[:, None], -rewards_P2, -torch.inf).max()
        highest = torch.where(is_counted[:, None], rewards_P2, -torch.inf).max()
        extremes = torch.stack([lowest, highest])
        self.has_rewards = rewards is not None
        self.sums = sums if self.sums is None else self.sums + sums
        self.extremes = extremes if self.extremes is None else torch.maximum(self.extremes, extremes)

    def reduced(self) -> dict[str, float]:
        """The metrics over all ranks; every rank calls this.  Empty if nothing was counted.

        Returns:
            accuracy (share of pairs with a positive margin), margin, loss (mean Bradley-Terry loss in nats), and of
            scalar rewards the mean, the smallest and the largest one.
        """
        if self.sums is None or self.extremes is None:
            return {}
        sums = self.sums.clone()
        extremes = self.extremes.clone()
        if rank_and_ranks()[1] > 1:
            dist.all_reduce(sums)
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        total, correct, margin, loss, reward = sums.tolist()
        if not total:
            return {}
        metrics = {"accuracy": correct / total, "margin": margin / total, "loss": loss / total}
        if self.has_rewards:
            lowest, highest = extremes.tolist()
            metrics |= {"reward_mean": reward / total, "reward_min": -lowest, "reward_max": highest}
        return metrics
