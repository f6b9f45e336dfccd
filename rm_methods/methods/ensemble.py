"""Ensemble of reward models: the runs of one variant with all seeds score together.

    mean         R = mean over members of r_i
    worst_case   R = min over members of r_i
    uncertainty  R = mean - weight * mean over members of (r_i - mean)^2

Coste et al. 2023 (arXiv 2310.02743): mean, worst-case and uncertainty-weighted optimization.  A Bradley-Terry reward is
determined up to a constant of its model, so each member's mean reward over the validation pairs is subtracted first.
Otherwise the minimum would pick the member with the lowest constant.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from rm_methods.errors import UserError
from rm_methods.files import write_json
from rm_methods.methods.contract import CombinedMethod
from rm_methods.scoring.scorer import SCORER_FILE, load_scorer, pair_rewards, scoring_settings


def aggregate_rewards(rewards_MS: np.ndarray, aggregate: str, weight: float) -> np.ndarray:
    """One reward for each response.

    Args:
        rewards_MS: centered rewards [members, responses].
        aggregate: "mean", "worst_case" or "uncertainty".
        weight: of the variance over the members (population variance: divided by their number), for "uncertainty".

    Returns:
        [responses]; NaN where a member's reward is NaN.
    """
    if aggregate == "worst_case":
        return rewards_MS.min(axis=0)
    mean_S = rewards_MS.mean(axis=0)
    if aggregate == "uncertainty":
        return mean_S - weight * rewards_MS.var(axis=0)
    return mean_S


class Method(CombinedMethod):
    def combine(self, pairs, inputs, folder):
        members = [Path(member) for member in inputs.required["members"]]
        if not pairs:
            raise UserError(
                "ensemble: the members' rewards are centered on the validation pairs, but the data has none. Set "
                "data.validation_fraction above 0, or use data with a validation split."
            )
        settings = scoring_settings(inputs.config)
        rewards = []
        for number, member in enumerate(members, start=1):
            label = f"{inputs.label}, center of member {number} of {len(members)}"
            rewards.append(pair_rewards(load_scorer(member, settings), pairs, label))
        rewards_MP2 = np.stack(rewards)
        centers_M = rewards_MP2.mean(axis=(1, 2))
        for member, center in zip(members, centers_M, strict=True):
            if not np.isfinite(center):
                raise UserError(
                    f"ensemble: {member} gives rewards of validation pairs that are not finite. Train that run again."
                )
        description = {
            "method": "ensemble",
            "settings": self.settings,
            # When `folder` is complete it gets another name in the same parent, so relative paths stay right.
            "members": [os.path.relpath(member.resolve(), folder.resolve()) for member in members],
            "centers": centers_M.tolist(),
        }
        write_json(folder / SCORER_FILE, description)
        variance = (rewards_MP2 - centers_M[:, None, None]).var(axis=0)
        return {
            "members": len(members),
            "centers": centers_M.tolist(),
            "member_accuracy": (rewards_MP2[:, :, 0] > rewards_MP2[:, :, 1]).mean(axis=1).tolist(),
            "mean_variance": float(variance.mean()),
        }

    def aggregate(self, rewards_MS: np.ndarray) -> np.ndarray:
        """`aggregate_rewards` with the settings."""
        return aggregate_rewards(rewards_MS, self.settings["aggregate"], self.settings["weight"])

    def left_out_scores(self, members_MR, combined_R, report):
        """Exactly the scores of the ensembles of the other members."""
        centered_MR = members_MR - np.array(report["centers"])[:, None]
        return np.stack([self.aggregate(np.delete(centered_MR, j, axis=0)) for j in range(len(centered_MR))])
