"""Label smoothing: a label is taken to be wrong with probability `smoothing`.

    loss = (1 - a) * -log sigmoid(z) + a * -log sigmoid(-z),   z = r_chosen - r_rejected

which equals softplus(-z) + a z, with its minimum at the finite margin z* = log((1 - a) / a).
Mitchell 2023 (conservative DPO), as a reward-model loss: Wang et al. 2024 (arXiv 2401.06080, equation 5).
"""

from __future__ import annotations

import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod


def label_smoothing_loss(rewards: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Smoothed negative log-likelihood, fp32 [pairs], of rewards fp32 [pairs, 2] (chosen, rejected)."""
    return bradley_terry_loss(rewards) + smoothing * (rewards[:, 0] - rewards[:, 1])


class Method(TrainedMethod):
    def loss(self, model, batch):
        return Loss(label_smoothing_loss(model(batch).rewards, self.settings["smoothing"]))
