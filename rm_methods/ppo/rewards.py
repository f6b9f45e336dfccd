"""Rewards for PPO: `reward(prompts, responses) -> float64 [B]`.

Policies and reward models may have different tokenizers and chat templates, so they exchange text.  The policy's
response is decoded, and the reward model renders prompt and response with its template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError
from rm_methods.overoptimization.gold import check_finite
from rm_methods.policies.policy import Prompt
from rm_methods.preferences.pair import Message

Reward = Callable[[Sequence[Sequence[Message]], Sequence[str]], np.ndarray]


def scorer_reward(scorer, label: str = "proxy") -> Reward:
    """The reward of a scorer (`rm_methods.scoring.scorer.load_scorer`).

    Raises:
        UserError: the scorer compares responses with each other, so a single one has no reward.
    """
    from rm_methods.scoring.scorer import JointScorer

    if isinstance(scorer, JointScorer):
        raise UserError(
            "A joint model compares two responses and gives a single one no reward, so PPO cannot optimize it. Take a "
            "scalar one."
        )

    def reward(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> np.ndarray:
        items = [
            BenchmarkItem(str(k), label, prompt, [text], 0)
            for k, (prompt, text) in enumerate(zip(prompts, responses, strict=True))
        ]
        return np.array([row.score for row in scorer.score(items, label)], dtype=np.float64)

    return reward


def text_reward(function: Callable[[Sequence[Message], str], float]) -> Reward:
    """The reward of a function of one prompt and one response, such as the gold of the controlled world."""

    def reward(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> np.ndarray:
        return np.array(
            [function(prompt, text) for prompt, text in zip(prompts, responses, strict=True)], dtype=np.float64
        )

    return reward


def rewards_of(reward: Reward, what: str, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
    """Call a reward and check the result.

    Raises:
        UserError: another number of rewards than responses, or one that is not finite; names prompt and response.
    """
    rewards = np.asarray(reward([prompt.messages for prompt in prompts], responses), dtype=np.float64)
    if rewards.shape != (len(responses),):
        raise UserError(
            f"The {what} returned an array of shape {rewards.shape} for {len(responses)} responses; one number for "
            "each is needed."
        )
    check_finite(rewards, [prompt.messages for prompt in prompts], responses, f"the {what}")
    return rewards
