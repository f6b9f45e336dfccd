"""Bradley-Terry together with a regression on ratings.

    loss = -log sigmoid(z) + weight * penalty,   z = r_chosen - r_rejected

    penalty with ratings:   mean of (r_chosen - g_chosen)^2 and (r_rejected - g_rejected)^2, g standardized over all rated responses
    penalty without:        (z - d)^2, d = strength of the label, divided by its root mean square over the training pairs

Ratings bind the rewards themselves, so their level is no longer free; differences bind only z.  Regression reward models and
their combination with preferences: Wang et al. 2024 (HelpSteer2-Preference, arXiv 2410.01257), one after the other; the sum is ours.
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
        target: ratings [pairs, 2] of the same columns (the mean over the two is taken), or differences [pairs], chosen minus rejected.
    """
    if target.dim() == 2:
        return (rewards - target).square().mean(dim=1)
    return (rewards[:, 0] - rewards[:, 1] - target).square()


def bradley_terry_regression_loss(rewards: torch.Tensor, target: torch.Tensor, weight: float) -> torch.Tensor:
    """Bradley-Terry loss plus `weight` times `regression_penalty`, fp32 [pairs]; arguments as there."""
    return bradley_terry_loss(rewards) + weight * regression_penalty(rewards, target)


def ratings_of_pairs(pairs: Sequence[PreferencePair], keys: Sequence[str]) -> torch.Tensor:
    """Ratings fp64 [pairs, 2] of chosen and rejected as the pairs are now.

    A rating belongs to a response: `keys` name those of the responses that were chosen and rejected before label noise was put in,
    so they change places in a flipped pair.

    Raises:
        UserError: a rating is missing or not a finite number.
    """
    columns = [meta_numbers(pairs, key, "bradley_terry_regression.ratings") for key in keys]
    rows = [
        row[::-1] if pair.meta.get("flipped") else row
        for pair, row in zip(pairs, zip(*columns, strict=True), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


class Method(TrainedMethod):
    def transform_pairs(self, pairs, inputs):
        self._targets(pairs)  # refuses here, before anything is tokenized, what build could not use
        return pairs

    def build(self, model, inputs):
        # Only now is it known which pairs fit into the context: mean and scale are over those.
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
        """Standardized ratings [pairs, 2] or differences [pairs], and what takes rewards back to the units of the data."""
        if keys := self.settings["ratings"]:
            ratings = ratings_of_pairs(pairs, keys)
            mean, scale = float(ratings.mean()), float(ratings.std(correction=0))
            _check_scale(scale, f"the ratings {keys[0]} and {keys[1]} of all training pairs are equal")
            against = int((ratings[:, 0] < ratings[:, 1]).sum())
            return (ratings - mean) / scale, {
                "rating_mean": mean,
                "rating_scale": scale,
                "pairs_rated_against_their_label": against,
            }
        instead = (
            "Or name the keys of the two responses' ratings in the pairs' meta as bradley_terry_regression.ratings."
        )
        differences = torch.tensor(label_strengths(pairs, "bradley_terry_regression", instead), dtype=torch.float64)
        scale = float(differences.square().mean().sqrt())
        _check_scale(scale, "the strengths of all training pairs are 0")
        return differences / scale, {"difference_scale": scale}


def _check_scale(scale: float, problem: str) -> None:
    if not 0 < scale < math.inf:
        raise UserError(
            f"bradley_terry_regression: {problem}, or beyond what can be computed (their scale is {scale:g}). Give ratings that differ, "
            "or train bradley_terry."
        )
