"""Soft labels: the label says how probable it is that the chosen response is better.

    loss = q * -log sigmoid(z) + (1 - q) * -log sigmoid(-z),   z = r_chosen - r_rejected

with its minimum at z* = log(q / (1 - q)).  q comes from the strength of the label, sigmoid(scale * strength), or is a
probability that the data set gives.  Cross-entropy with soft labels: Christiano et al. 2017 (arXiv 1706.03741, section
2.2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.preferences.pair_numbers import label_strengths, meta_numbers


def soft_label_loss(rewards: torch.Tensor, target: torch.Tensor | float) -> torch.Tensor:
    """Cross-entropy with the probability of the label.

    Args:
        rewards: fp32 [pairs, 2], column 0 chosen, column 1 rejected.
        target: probability in [0, 1] that chosen is better, [pairs] or a number.

    Returns:
        fp32 [pairs].
    """
    return target * bradley_terry_loss(rewards) + (1 - target) * bradley_terry_loss(rewards.flip(1))


def targets_of_strengths(strengths: Sequence[float], scale: float) -> list[float]:
    """sigmoid(scale * strength): 1/2 for strength 0; less for a negative one, whose label is more likely wrong."""
    return torch.sigmoid(scale * torch.tensor(strengths, dtype=torch.float64)).tolist()


class Method(TrainedMethod):
    def transform_pairs(self, pairs, inputs):
        if key := self.settings["probability"]:
            targets = meta_numbers(pairs, key, "soft_labels.probability", lowest=0.0, highest=1.0)
        else:
            advice = "Or name the key of a probability in the pairs' meta as soft_labels.probability."
            targets = targets_of_strengths(label_strengths(pairs, "soft_labels", advice), self.settings["scale"])
        return [replace(pair, target=target) for pair, target in zip(pairs, targets, strict=True)]

    def loss(self, model, batch):
        rewards = model(batch).rewards
        return Loss(
            soft_label_loss(rewards, batch.target),
            {"preference_loss": bradley_terry_loss(rewards), "target": batch.target},
        )
