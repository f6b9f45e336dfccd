"""Sigmoid loss, which is symmetric: right and wrong label together always cost 1, so flipped labels only scale it.

    loss = sigmoid(-z),   z = r_chosen - r_rejected

Nishimori et al. 2025 (symmetric losses for preferences, arXiv 2505.24709).
"""

from __future__ import annotations

import torch

from rm_methods.methods.contract import Loss, TrainedMethod


def symmetric_loss(rewards: torch.Tensor) -> torch.Tensor:
    """1 minus the probability of the label, fp32 [pairs] in [0, 1], from rewards fp32 [pairs, 2] (chosen, rejected)."""
    return torch.sigmoid(rewards[:, 1] - rewards[:, 0])


class Method(TrainedMethod):
    def loss(self, model, batch):
        return Loss(symmetric_loss(model(batch).rewards))
