"""The robust loss of ROPO: Bradley-Terry plus a multiple of the sigmoid loss; strongly contradicted labels pull less.

    loss = 4 a / (1 + a)^2 * [-log sigmoid(z) + a * sigmoid(-z)],   z = r_chosen - r_rejected

The factor in front makes the steepest slope 1, at sigmoid(z) = (a - 1) / (2 a).  Liang et al. 2024 (arXiv 2404.04102),
with the reward difference in place of DPO's implicit one.  Only the loss is used: no filtering of pairs, no rejection
sampling.
"""

from __future__ import annotations

import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.methods.symmetric import symmetric_loss


def ropo_loss(rewards: torch.Tensor, alpha: float) -> torch.Tensor:
    """fp32 [pairs] from rewards fp32 [pairs, 2] (chosen, rejected); alpha > 2."""
    return 4 * alpha / (1 + alpha) ** 2 * (bradley_terry_loss(rewards) + alpha * symmetric_loss(rewards))


class Method(TrainedMethod):
    def loss(self, model, batch):
        rewards = model(batch).rewards
        return Loss(ropo_loss(rewards, self.settings["alpha"]), {"preference_loss": bradley_terry_loss(rewards)})
