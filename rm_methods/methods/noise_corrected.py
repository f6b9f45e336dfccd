"""Noise-corrected Bradley-Terry: an unbiased estimate of the loss on clean labels, given the share of flipped labels.

    loss = [(1 - e) * -log sigmoid(z) - e * -log sigmoid(-z)] / (1 - 2 e),   z = r_chosen - r_rejected

which equals softplus(-z) - e / (1 - 2 e) * z.  Chowdhury et al. 2024 (robust DPO, arXiv 2403.00409), with the reward
difference in place of DPO's implicit one.
"""

from __future__ import annotations

import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod


def noise_corrected_loss(rewards: torch.Tensor, noise_rate: float) -> torch.Tensor:
    """Corrected loss, fp32 [pairs], of rewards fp32 [pairs, 2] (chosen, rejected).

    It is negative for large z and has no lower bound.

    Args:
        noise_rate: probability e that a label is flipped, in [0, 0.5).
    """
    return bradley_terry_loss(rewards) - noise_rate / (1 - 2 * noise_rate) * (rewards[:, 0] - rewards[:, 1])


class Method(TrainedMethod):
    def loss(self, model, batch):
        rewards = model(batch).rewards
        return Loss(
            noise_corrected_loss(rewards, self.settings["noise_rate"]), {"preference_loss": bradley_terry_loss(rewards)}
        )
