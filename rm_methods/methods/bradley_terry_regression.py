"""Bradley-Terry together with a regression on ratings.

    loss = -log sigmoid(z) + weight * penalty,   z = r_chosen - r_rejected

    with ratings      penalty = mean of (r_chosen - g_chosen)^2 and (r_rejected - g_rejected)^2
                      g: ratings, standardized over all rated responses
    without ratings   penalty = (z - d)^2
                      d: strength of the label, divided by its root mean square over the training pairs

Ratings fix the level of the rewards; differences fix only z.  Source of regression reward models and of combining them
with preferences: Wang et al. 2024 (HelpSteer2-Preference, arXiv 2410.01257), who train one after the other.  The sum
is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.pair_numbers import label_strengths, meta_numbers


def regression_penalty(rewards: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared distance from ratings or from a difference of ratings, fp32 [pairs].

    Args:
        rewards: fp32 [pairs, 2], column 0 chosen, column 1 rejected.
        target: ratings [pairs, 2] of the same columns (the penalty is the mean of the two), or differences [pairs],
            chosen minus rejected.
    """
    if target.dim() == 2:
        return (rewards - target).square().mean(dim=1)
    return (rewards[:, 0] - rewards[:, 1] - target).square()


def bradley_terry_regression_loss(rewards: torch.Tensor, target: torch.Tensor, weight: float) -> torch.Tensor:
    """Bradley-Terry loss plus `weight` times `regression_penalty`, fp32 [pairs]; arguments as there."""
    return bradley_terry_loss(rewards) + weight * regression_penalty(rewards, target)


def ratings_of_pairs(pairs: Sequence[PreferencePair], keys: Sequence[str]) -> torch.Tensor:
    """Ratings of chosen and rejected after label noise, fp64 [pairs, 2].

    Args:
        keys: keys in the pairs' meta of the ratings of the responses that were chosen and rejected before label noise.
            A rating belongs to a response, so the two are swapped in a flipped pair.

    Raises:
        UserError: a rating is missing or not a finite number.
    """
    columns = [meta_numbers(pairs, key, "bradley_terry_regression.ratings") for key in keys]
    ratings = torch.tensor(columns, dtype=torch.float64).T
    is_flipped = torch.tensor([bool(pair.meta.get("flipped")) for pair in pairs])
    return torch.where(is_flipped[:, None], ratings.flip(1), ratings)


class Method(TrainedMethod):
    def transform_pairs(self, pairs, inputs):
        self._targets(pairs)  # raises before the pairs are tokenized
        return pairs

    def build(self, model, inputs):
        # Mean and scale are over the pairs that fit into the context, which are known only now.
        targets, self.measured = self._targets(inputs.pairs)
        self.target = dict(zip((pair.pair_id for pair in inputs.pairs), targets.float(), strict=True))

    def loss(self, model, batch):
        rewards = model(batch).rewards
        target = torch.stack([self.target[pair_id] for pair_id in batch.pair_ids]).to(rewards.device)
        terms = {
            "preference_loss": bradley_terry_loss(rewards),
            "regression_penalty": regression_penalty(rewards, target),
        }
        return Loss(bradley_terry_regression_loss(rewards, target, self.settings["weight"]), terms)

    def report(self):
        return self.measured

    def _targets(self, pairs) -> tuple[torch.Tensor, dict[str, float]]:
        """Standardized ratings [pairs, 2] or differences [pairs], and the mean and scale that undo it."""
        if keys := self.settings["ratings"]:
            ratings = ratings_of_pairs(pairs, keys)
            mean = float(ratings.mean())
            scale = float(ratings.std(correction=0))
            _check_scale(scale, f"the ratings {keys[0]} and {keys[1]} of all training pairs are equal")
            against = int((ratings[:, 0] < ratings[:, 1]).sum())
            return (ratings - mean) / scale, {
                "rating_mean": mean,
                "rating_scale": scale,
                "pairs_rated_against_their_label": against,
            }
        advice = (
            "Or name the keys of the two responses' ratings in the pairs' meta as bradley_terry_regression.ratings."
        )
        differences = torch.tensor(label_strengths(pairs, "bradley_terry_regression", advice), dtype=torch.float64)
        scale = float(differences.square().mean().sqrt())
        _check_scale(scale, "the strengths of all training pairs are 0")
        return differences / scale, {"difference_scale": scale}


def _check_scale(scale: float, problem: str) -> None:
    if not 0 < scale < math.inf:
        raise UserError(
            f"bradley_terry_regression: {problem}, or too large to compute with (their scale is {scale:g}). Give "
            "ratings that differ, or train bradley_terry."
        )
