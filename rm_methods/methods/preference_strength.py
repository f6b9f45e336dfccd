"""Preference strength: the margins of other reward models decide which labels are swapped, smoothed or given a margin.

    loss = (1 - a) * -log sigmoid(z - m) + a * -log sigmoid(m - z),   z = r_chosen - r_rejected

    mu   mean over reward models of their margin for the labeled pair
    flip the share `flip` of pairs with the lowest mu is swapped, and mu with them: -mu if it was negative
    m    margin * clip(mu / std(mu), 0, 3)
    a    smoothing where mu < 0 after the flips, else 0

Wang et al. 2024 (Secrets of RLHF part II, arXiv 2401.06080, section 2); the released code does not contain it.  Our
choices: the models did not see the pair whose strength they measure (`cross_fitted`), mu is divided by its standard
deviation, and margins are never negative.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.methods.cross_fitted import fold_of
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.pair_numbers import label_strengths
from rm_methods.scoring.scorer import load_scorer, pair_rewards, settings_of_training

RELEASED = "data"
LARGEST_MARGIN = 3.0  # in standard deviations of mu, before `margin`


def preference_strength_loss(rewards: torch.Tensor, margin: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Smoothed Bradley-Terry loss of z - margin, fp32 [pairs].

    Args:
        rewards: fp32 [pairs, 2], column 0 chosen, column 1 rejected.
        margin: [pairs], in reward units.
        target: [pairs], 1 - a: the probability given to the label.
    """
    return bradley_terry_loss(rewards, margin) + (1 - target) * (rewards[:, 0] - rewards[:, 1] - margin)


def lowest(strengths: np.ndarray, pairs: Sequence[PreferencePair], share: float) -> np.ndarray:
    """Which pairs are swapped, bool [pairs]: round(share * pairs) pairs of lowest strength; pair_id decides ties."""
    order = sorted(range(len(pairs)), key=lambda i: (strengths[i], pairs[i].pair_id))
    is_swapped = np.zeros(len(pairs), dtype=bool)
    is_swapped[order[: round(share * len(pairs))]] = True
    return is_swapped


def relabeled(
    pairs: Sequence[PreferencePair], strengths: np.ndarray, flipped: np.ndarray, *, margin: float, smoothing: float
) -> list[PreferencePair]:
    """The pairs with swaps, margins and targets.

    Args:
        strengths: mu, fp64 [pairs], of the labeled pairs.
        flipped: bool [pairs], which are swapped.

    Raises:
        UserError: margins are asked for, but all strengths are equal.
    """
    spread = strengths.std()
    if margin and not spread > 0:
        raise UserError(
            f"preference_strength: margin = {margin:g} is in standard deviations of the strengths, but the strengths "
            f"of all {len(pairs)} training pairs are equal ({strengths[0]:g}). Set margin to 0, or use strengths that "
            "differ."
        )
    after = np.where(flipped, np.abs(strengths), strengths)
    margins = margin * np.clip(after / spread, 0, LARGEST_MARGIN) if margin else np.zeros(len(pairs))
    targets = np.where(after < 0, 1 - smoothing, 1.0)
    result = []
    for pair, swap, target, m in zip(pairs, flipped, targets.tolist(), margins.tolist(), strict=True):
        if swap:
            pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
        result.append(replace(pair, margin=m, target=target))
    return result


def cross_fitted_strengths(pairs: Sequence[PreferencePair], inputs) -> tuple[np.ndarray, np.ndarray, int]:
    """Margins of the models that did not see a pair.

    Returns:
        Their mean and their population standard deviation, each fp64 [pairs]; the number of folds.

    Raises:
        UserError: folds that no model left out, models of different folds, a reward that is not finite.
    """
    folders = [Path(folder) for folder in inputs.required["strengths"]]
    left_out, folds = _folds(folders)
    fold = np.array([fold_of(pair.group, folds) for pair in pairs])
    margins: list[list[float]] = [[] for _ in pairs]
    settings = settings_of_training(inputs.config)
    # Ranks share no process group yet, so each computes all strengths on its device; equal arguments give equal pairs.
    device: AbstractContextManager = nullcontext()
    if torch.cuda.is_available():
        device = torch.cuda.device(int(os.environ.get("LOCAL_RANK", 0)))
    for number, (folder, unseen_fold) in enumerate(zip(folders, left_out, strict=True), start=1):
        unseen = np.flatnonzero(fold == unseen_fold).tolist()
        label = f"{inputs.label}, strengths by model {number} of {len(folders)}"
        with device:
            rewards = pair_rewards(load_scorer(folder, settings), [pairs[i] for i in unseen], label)
        if not np.isfinite(rewards).all():
            raise UserError(
                f"preference_strength: {folder} gives rewards of training pairs that are not finite. "
                "Train that run again."
            )
        for i, margin in zip(unseen, rewards[:, 0] - rewards[:, 1], strict=True):
            margins[i].append(float(margin))
    means = np.array([np.mean(of_pair) for of_pair in margins])
    deviations = np.array([np.std(of_pair) for of_pair in margins])
    return means, deviations, folds


def _folds(folders: Sequence[Path]) -> tuple[list[int], int]:
    """The fold that each model left out, and the number of folds, from the summaries beside the models."""
    reports = [read_json(folder.parent / "summary.json")["report"] for folder in folders]
    numbers = {report["folds"] for report in reports}
    if len(numbers) > 1:
        raise UserError(
            "preference_strength: the models of `strengths` were trained with different numbers of folds: "
            f"{sorted(numbers)}."
        )
    folds = numbers.pop()
    left_out = [report["fold_left_out"] for report in reports]
    missing = sorted(set(range(folds)) - set(left_out))
    if missing:
        raise UserError(
            f"preference_strength: {folds} folds, but no model was trained without fold "
            f"{', '.join(map(str, missing))}, so none can judge its pairs (the {len(folders)} seeds leave out "
            f"{left_out}; a seed leaves out seed modulo folds). Add seeds, or lower folds."
        )
    return left_out, folds


def detection(strengths: np.ndarray, flipped: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """How well low strength detects injected label noise.

    Args:
        strengths: mu, fp64 [pairs].
        flipped: bool [pairs], swapped by the method.
        wrong: bool [pairs], labels that noise had flipped.

    Returns:
        auroc of -mu (0.5 by chance, ties count half); recall of the swaps; precision of the swaps if any pair was
        swapped.  Empty if all labels are wrong or none is.
    """
    from scipy.stats import mannwhitneyu

    if wrong.all() or not wrong.any():
        return {}
    above = mannwhitneyu(-strengths[wrong], -strengths[~wrong]).statistic
    measures = {"auroc": float(above / (wrong.sum() * (~wrong).sum())), "recall": float(flipped[wrong].mean())}
    if flipped.any():
        measures["precision"] = float(wrong[flipped].mean())
    return measures


class Method(TrainedMethod):
    def transform_pairs(self, pairs, inputs):
        settings = self.settings
        measured: dict[str, Any] = {}
        if settings["strengths"] == RELEASED:
            strengths = self._released(pairs)
            flipped = lowest(strengths, pairs, settings["flip"])
        else:
            strengths, deviations, folds = cross_fitted_strengths(pairs, inputs)
            flipped = lowest(strengths, pairs, settings["flip"])
            folds_of_flipped = [fold_of(pairs[i].group, folds) for i in np.flatnonzero(flipped).tolist()]
            measured = {
                "mean_deviation": float(deviations.mean()),
                "flipped_by_fold": np.bincount(folds_of_flipped, minlength=folds).tolist(),
            }
        result = relabeled(pairs, strengths, flipped, margin=settings["margin"], smoothing=settings["smoothing"])
        self.measured = self._measured(pairs, strengths, flipped, result) | measured
        return result

    def loss(self, model, batch):
        rewards = model(batch).rewards
        return Loss(
            preference_strength_loss(rewards, batch.margin, batch.target),
            {"preference_loss": bradley_terry_loss(rewards)},
        )

    def report(self):
        return self.measured

    def _released(self, pairs) -> np.ndarray:
        if noisy := sum("flipped" in pair.meta for pair in pairs):
            raise UserError(
                f"preference_strength: strengths = data, but {noisy} of {len(pairs)} training labels were flipped "
                "after the strengths were measured, so these strengths would give the flips away. Name a variant of "
                "cross_fitted instead, or train without label noise."
            )
        advice = "Or name a variant of cross_fitted as preference_strength.strengths, which measures them."
        return np.array(label_strengths(pairs, "preference_strength", advice), dtype=np.float64)

    @staticmethod
    def _measured(pairs, strengths: np.ndarray, flipped: np.ndarray, result) -> dict[str, Any]:
        levels = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
        wrong = np.array([bool(pair.meta.get("flipped")) for pair in pairs])
        return {
            "flipped": int(flipped.sum()),
            "flipped_share": float(flipped.mean()),
            "flipped_with_positive_strength": int((flipped & (strengths > 0)).sum()),
            "smoothed": sum(pair.target < 1 for pair in result),
            "mean_margin": float(np.mean([pair.margin for pair in result])),
            "share_negative": float((strengths < 0).mean()),
            "strength_mean": float(strengths.mean()),
            "strength_std": float(strengths.std()),
            "strength_quantiles": dict(zip(map(str, levels), np.quantile(strengths, levels).tolist(), strict=True)),
            "noise_detection": detection(strengths, flipped, wrong),
        }
