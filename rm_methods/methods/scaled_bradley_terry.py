"""Scaled Bradley-Terry: a pair counts as much as its label is strong.

    loss = m * -log sigmoid(z),   m = strength^power / mean over the training pairs,   z = r_chosen - r_rejected

Wang et al. 2024 (HelpSteer2-Preference, arXiv 2410.01257), where the strength is 1, 2 or 3 and is not normalized.
Here the mean of m is 1, so that a learning rate means the same as for Bradley-Terry; `power` and `maximum_strength`
are our additions.

m is a factor of the loss, not the weight of the pair.  The trainer divides by the total weight of the optimizer step,
so as a weight m would give a step of weak labels the size of a step of strong ones, and no effect to a step of one
pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.preferences.pair_numbers import label_strengths


def scaled_bradley_terry_loss(rewards: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
    """fp32 [pairs] from rewards fp32 [pairs, 2] (chosen, rejected) and one factor per pair, [pairs] or a number."""
    return factor * bradley_terry_loss(rewards)


def strength_factors(strengths: Sequence[float], power: float, maximum_strength: float | None) -> list[float]:
    """min(strength, maximum_strength)^power, divided by the mean.

    Raises:
        UserError: a negative strength (it would reverse the label), or none above 0.
    """
    negative = [strength for strength in strengths if strength < 0]
    if negative:
        raise UserError(
            f"scaled_bradley_terry: strengths must not be negative, but {len(negative)} of {len(strengths)} training "
            f"pairs have one, the first {negative[0]:g}. Swap chosen and rejected of these pairs, or drop them."
        )
    limit = float("inf") if maximum_strength is None else maximum_strength
    factors = [min(strength, limit) ** power for strength in strengths]
    mean = sum(factors) / len(factors)
    if not 0 < mean < float("inf"):
        raise UserError(
            f"scaled_bradley_terry: strength^power is {mean:g} on average over {len(strengths)} training pairs, so it "
            f"cannot scale the loss (power = {power:g}). Use data with strengths above 0, or a smaller power."
        )
    return [factor / mean for factor in factors]


class Method(TrainedMethod):
    def transform_pairs(self, pairs, inputs):
        self._factors(pairs)  # raises before the pairs are tokenized
        return pairs

    def build(self, model, inputs):
        # The mean is over the pairs that fit into the context, which are known only now.
        self.factor = dict(zip((pair.pair_id for pair in inputs.pairs), self._factors(inputs.pairs), strict=True))

    def loss(self, model, batch):
        rewards = model(batch).rewards
        factor = torch.tensor(
            [self.factor[pair_id] for pair_id in batch.pair_ids], dtype=torch.float32, device=rewards.device
        )
        return Loss(scaled_bradley_terry_loss(rewards, factor), {"preference_loss": bradley_terry_loss(rewards)})

    def report(self):
        return {"smallest_factor": min(self.factor.values()), "largest_factor": max(self.factor.values())}

    def _factors(self, pairs) -> list[float]:
        strengths = label_strengths(pairs, "scaled_bradley_terry", "Or train bradley_terry.")
        return strength_factors(strengths, self.settings["power"], self.settings["maximum_strength"])
