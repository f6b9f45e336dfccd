"""Focal loss: pairs that are already right count less, so hard pairs, including wrong labels, count more.

    loss = (1 - sigmoid(z))^gamma * -log sigmoid(z),   z = r_chosen - r_rejected

Lin et al. 2017 (arXiv 1708.02002), for detection; used on reward differences here.  A negative control under label
noise.
"""

from __future__ import annotations

import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod


def focal_loss(rewards: torch.Tensor, gamma: float) -> torch.Tensor:
    """fp32 [pairs] from rewards fp32 [pairs, 2] (chosen, rejected); gamma >= 0.

    (1 - sigmoid(z))^gamma is computed as exp(-gamma * Bradley-Terry loss of the opposite label).  Its gradient is
    finite where 1 - sigmoid(z) is 0 in fp32; the gradient of the power would not be, for gamma < 1.
    """
    return torch.exp(-gamma * bradley_terry_loss(rewards.flip(1))) * bradley_terry_loss(rewards)


class Method(TrainedMethod):
    def loss(self, model, batch):
        rewards = model(batch).rewards
        return Loss(focal_loss(rewards, self.settings["gamma"]), {"preference_loss": bradley_terry_loss(rewards)})
