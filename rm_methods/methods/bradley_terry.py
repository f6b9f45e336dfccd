"""Bradley-Terry reward model, with optional margin and reward centering.

    loss = -log sigmoid(r_chosen - r_rejected - margin) + centering * (r_chosen + r_rejected)^2

Bradley & Terry 1952; for language models Ouyang et al. 2022 (arXiv 2203.02155).  Margin from the strength of the label:
Llama 2 (arXiv 2307.09288, section 3.2.2).  Centering: Eisenstein et al. 2023 (arXiv 2312.09244), with the sign of the
released implementations (added to a loss that is minimized).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from rm_methods.errors import UserError
from rm_methods.methods.contract import Loss, TrainedMethod


def bradley_terry_loss(rewards: torch.Tensor, margin: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Negative log-likelihood of the labels under Bradley-Terry.

    Args:
        rewards: fp32 [pairs, 2], column 0 chosen, column 1 rejected.
        margin: [pairs] or a number, in reward units, by which the chosen response should be ahead.

    Returns:
        fp32 [pairs].  softplus(-z) is used for -log sigmoid(z): finite for every finite z.
    """
    return F.softplus(margin - (rewards[:, 0] - rewards[:, 1]))


def centering_penalty(rewards: torch.Tensor) -> torch.Tensor:
    """(r_chosen + r_rejected)^2, fp32 [pairs].  It moves the mean of a pair toward zero, not its difference."""
    return rewards.sum(dim=1).square()


class Method(TrainedMethod):
    def transform_pairs(self, pairs, inputs):
        scale = self.settings["margin_scale"]
        if not scale:
            return pairs
        missing = sum(pair.strength is None for pair in pairs)
        if missing:
            raise UserError(
                f"bradley_terry: margin_scale = {scale} needs a strength for every pair, but {missing} of {len(pairs)} "
                "training pairs have none. Set margin_scale to 0, or use data whose reader gives strengths."
            )
        return [replace(pair, margin=scale * pair.strength) for pair in pairs]

    def loss(self, model, batch):
        rewards = model(batch).rewards
        preference = bradley_terry_loss(rewards, batch.margin)
        if not self.settings["centering"]:
            return Loss(preference)
        penalty = centering_penalty(rewards)
        return Loss(
            preference + self.settings["centering"] * penalty,
            {"preference_loss": preference, "centering_penalty": penalty},
        )
