"""Generalized cross-entropy: between Bradley-Terry (q -> 0) and the sigmoid loss (q = 1).

    loss = (1 - sigmoid(z)^q) / q,   z = r_chosen - r_rejected

Zhang & Sabuncu 2018 (arXiv 1805.07836), for classification; used on reward differences here.
"""

from __future__ import annotations

import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod


def generalized_cross_entropy_loss(rewards: torch.Tensor, q: float) -> torch.Tensor:
    """fp32 [pairs] in [0, 1/q] from rewards fp32 [pairs, 2] (chosen, rejected); 0 < q <= 1.

    sigmoid(z)^q is exp(-q * Bradley-Terry loss), and 1 minus it is computed with -expm1.  This is exact for small q and
    takes no power of 0 for very wrong pairs.
    """
    return -torch.expm1(-q * bradley_terry_loss(rewards)) / q


class Method(TrainedMethod):
    def loss(self, model, batch):
        rewards = model(batch).rewards
        return Loss(
            generalized_cross_entropy_loss(rewards, self.settings["q"]),
            {"preference_loss": bradley_terry_loss(rewards)},
        )
