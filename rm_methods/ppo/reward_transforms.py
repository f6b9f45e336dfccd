"""Transforms of a proxy's scores before PPO optimizes them.

`none`: the scores.  `contrastive`: minus the mean score of stored SFT responses to the same prompt (Shen et al. 2024,
arXiv 2403.07708).  `par`: mean sigmoid of the differences to them (Preference As Reward, arXiv 2502.18770).  `clip`:
cut at `clip_width` standard deviations around the mean of the stored responses' scores.  `running`: centered and scaled
by all scores that PPO has seen so far.

Scores are first centered and scaled on the stored responses (`standardize`), so that a KL coefficient means the same
for every reward model.  Missing stored responses are an error: with plain scores instead, a comparison of transforms
would compare a method with itself.

A transform that is monotone within a prompt does not change Best-of-N; only PPO can tell it from the plain scores.
All of these are, except `clip`, which makes ties, and `running`, which drifts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rm_methods.errors import ConfigError, UserError, nearest


def contrastive(scores_B: np.ndarray, references_BK: np.ndarray) -> np.ndarray:
    """Scores minus the mean of the reference scores of the same prompt, float64 [B] (arXiv 2403.07708, equation 4)."""
    return scores_B - references_BK.mean(axis=1)


def preference_as_reward(scores_B: np.ndarray, references_BK: np.ndarray) -> np.ndarray:
    """Mean probability, in (0, 1), that the response is preferred to a reference of the same prompt, float64 [B]
    (arXiv 2502.18770)."""
    from scipy.special import expit

    return expit(scores_B[:, None] - references_BK).mean(axis=1)


def clip(scores_B: np.ndarray, center: float, spread: float, width: float) -> np.ndarray:
    """Scores cut to center +- width * spread, float64 [B]."""
    return np.clip(scores_B, center - width * spread, center + width * spread)


class RunningMoments:
    """Mean and standard deviation of all values so far, updated a batch at a time (Chan et al. 1979)."""

    def __init__(self):
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0

    def update(self, values: np.ndarray) -> None:
        """Add values."""
        count = len(values)
        mean = float(values.mean())
        total = self.count + count
        shift = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def spread(self) -> float:
        """Standard deviation (of the population); 1 while all values are equal."""
        return float(np.sqrt(self.squares / self.count)) if self.squares > 0 else 1.0


NAMES = ("none", "contrastive", "par", "clip", "running")
NEEDS_REFERENCES = ("contrastive", "par", "clip")


class RewardTransform:
    """One of the transforms, with the reference scores of one reward model.

    Args:
        name: of `NAMES`.
        reference_scores: prompt id -> scores of its stored SFT responses by the proxy.
        standardize: center and scale by all reference scores first.
        clip_width: of `clip`, in standard deviations.

    Raises:
        ConfigError: an unknown name or a width that is not positive.
        UserError: references are needed and missing, differ in number, are not finite, or are all equal so that they
            give no scale.
    """

    def __init__(
        self,
        name: str,
        reference_scores: Mapping[str, Sequence[float]] | None = None,
        standardize: bool = True,
        clip_width: float = 3.0,
    ):
        if name not in NAMES:
            raise ConfigError([f"transform: is {name!r}. {nearest(name, NAMES)}"], "the PPO settings")
        if not clip_width > 0:
            raise ConfigError([f"clip_width: is {clip_width}; must be more than 0"], "the PPO settings")
        self.name = name
        self.clip_width = clip_width
        self.center = 0.0
        self.scale = 1.0
        self.running = RunningMoments()
        self.references: dict[str, np.ndarray] = {}
        if needs_references(name, standardize):
            self._take_references(reference_scores or {}, standardize)

    def __call__(self, scores: np.ndarray, prompt_ids: Sequence[str]) -> np.ndarray:
        """Rewards float64 [B] of scores float64 [B]; `running` learns from them first.

        Raises:
            UserError: a prompt has no references.
        """
        scores_B = (np.asarray(scores, dtype=np.float64) - self.center) / self.scale
        if self.name == "contrastive":
            return contrastive(scores_B, self._references_of(prompt_ids))
        if self.name == "par":
            return preference_as_reward(scores_B, self._references_of(prompt_ids))
        if self.name == "clip":
            pooled = np.concatenate(list(self.references.values()))
            return clip(scores_B, float(pooled.mean()), float(pooled.std()), self.clip_width)
        if self.name == "running":
            self.running.update(scores_B)
            return (scores_B - self.running.mean) / self.running.spread
        return scores_B

    def state(self) -> dict[str, Any]:
        """The state that changes during PPO, as a JSON-like value."""
        return vars(self.running).copy()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `state`."""
        vars(self.running).update(state)

    def _take_references(self, reference_scores: Mapping[str, Sequence[float]], standardize: bool) -> None:
        scores = {key: np.asarray(values, dtype=np.float64) for key, values in reference_scores.items()}
        if not scores or any(not len(values) for values in scores.values()):
            raise UserError(
                f"transform '{self.name}' with standardize: {str(standardize).lower()} needs the scores of stored SFT "
                f"responses, but {'some prompts have none' if scores else 'none were given'}. Sample a pool from the "
                "SFT policy on the PPO prompts first."
            )
        if len({len(values) for values in scores.values()}) > 1:
            raise UserError("Prompts have different numbers of stored SFT responses. Take the same number of each.")
        pooled = np.concatenate(list(scores.values()))
        if not np.isfinite(pooled).all():
            bad = next(key for key, values in scores.items() if not np.isfinite(values).all())
            raise UserError(
                f"The proxy's score of a stored SFT response to prompt {bad} is not finite. Score the pool again, or "
                "leave it out."
            )
        if standardize:
            if not pooled.std() > 0:
                raise UserError(
                    f"The proxy gives all {len(pooled)} stored SFT responses the same score ({pooled[0]}), so it has "
                    "no scale. Look at the reward model, or set standardize: false."
                )
            self.center = float(pooled.mean())
            self.scale = float(pooled.std())
        self.references = {key: (values - self.center) / self.scale for key, values in scores.items()}

    def _references_of(self, prompt_ids: Sequence[str]) -> np.ndarray:
        if missing := [prompt_id for prompt_id in prompt_ids if prompt_id not in self.references]:
            raise UserError(
                f"transform '{self.name}': no stored SFT responses for prompt {missing[0]} (and "
                f"{len(set(missing)) - 1} more in this batch). Sample them from the SFT policy; plain scores are never "
                "taken instead."
            )
        return np.stack([self.references[prompt_id] for prompt_id in prompt_ids])


def needs_references(name: str, standardize: bool) -> bool:
    """Whether stored SFT responses have to be scored."""
    return standardize or name in NEEDS_REFERENCES
