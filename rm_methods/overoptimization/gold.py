"""Gold rewards behind one call: gold(prompts, responses) -> float64 [responses].

* "world": the exact gold of the controlled world, computed from the text (rm_methods/preferences/world/gold.py);
* anything else: a reward model, as a folder or a Hugging Face hub id.  The project's scorer reads it: the chat template
  is applied once, and the reward is read at the end by length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError, nearest
from rm_methods.preferences.pair import Message
from rm_methods.scoring.model_source import model_folder, own_length
from rm_methods.scoring.scorer import ScoringSettings

Gold = Callable[[Sequence[Sequence[Message]], Sequence[str]], np.ndarray]
SOURCES = ("world",)


def load_gold(
    source: str,
    *,
    settings: ScoringSettings | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    keep_loaded: bool = False,
) -> Gold:
    """The gold reward that a configuration names.

    Args:
        source: "world", a reward-model folder, or a hub id (owner/name).
        settings: of the scores of a reward model; their `max_length` is that of the proxies and only the last resort.
        revision: commit of the hub repository; without it, the name may give another model tomorrow.
        max_length: longest sequence in tokens; None takes the positions of the gold model, or `settings.max_length` if
            it does not say.
        keep_loaded: whether an ensemble keeps its members in memory between calls.

    Returns:
        a function of conversations and responses, of equal number; its values are always finite.

    Raises:
        UserError: unknown source, a revision or length for a source that has none, a length beyond the model's
            positions, a folder or hub repository that is no scalar reward model.
    """
    if source == "world":
        if revision or max_length:
            raise UserError(
                "Gold source 'world' reads whole texts and is no hub repository: it takes neither revision nor "
                "max_length."
            )
        return world_gold
    if "/" not in source and not Path(source).is_dir():
        raise UserError(
            f"Unknown gold source {source!r}. {nearest(source, SOURCES)} Or name a reward-model folder, or a hub id "
            "owner/name."
        )
    folder = model_folder(source, revision, what="Gold reward model")
    settings = settings or ScoringSettings()
    limit = own_length(folder)
    if max_length and limit and max_length > limit:
        raise UserError(
            f"overoptimization.gold.max_length = {max_length} is more than the {limit} positions of {source}. Lower it."
        )
    return RewardModelGold(
        folder, replace(settings, max_length=max_length or limit or settings.max_length), keep_loaded
    )


def gold_of_experiment(config: Mapping[str, Any], threads: int, keep_loaded: bool = False) -> Gold:
    """The gold reward of a resolved configuration; see `load_gold`."""
    from rm_methods.scoring.scorer import scoring_settings

    gold = config["overoptimization"]["gold"]
    return load_gold(
        gold["source"],
        settings=replace(scoring_settings(dict(config)), threads=threads),
        revision=gold["revision"],
        max_length=gold["max_length"],
        keep_loaded=keep_loaded,
    )


def world_gold(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> np.ndarray:
    """Exact gold rewards of the controlled world, float64 [responses], at most 1."""
    from rm_methods.preferences.world.gold import gold

    _check_lengths(prompts, responses)
    return np.array(
        [gold(prompt, response) for prompt, response in zip(prompts, responses, strict=True)], dtype=np.float64
    )


class RewardModelGold:
    """Gold rewards of a trained sequence-classification reward model."""

    def __init__(self, folder: str | Path, settings: ScoringSettings, keep_loaded: bool = False):
        from rm_methods.scoring.scorer import JointScorer, load_scorer

        self.folder = Path(folder)
        self.scorer = load_scorer(self.folder, settings, keep_loaded)
        if isinstance(self.scorer, JointScorer):
            raise UserError(
                f"{folder}: a joint model compares responses and gives a single one no reward; it cannot be a gold "
                "reward."
            )

    def __call__(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> np.ndarray:
        """Raises UserError naming the prompt and response whose reward is not finite."""
        _check_lengths(prompts, responses)
        items = [
            BenchmarkItem(str(k), "gold", prompt, [response], None)
            for k, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        rewards = np.array([row.score for row in self.scorer.score(items, "gold")], dtype=np.float64)
        check_finite(rewards, prompts, responses, f"the gold reward model {self.folder}")
        return rewards

    def text_read(self, prompt: Sequence[Message], response: str) -> str:
        """The exact text that the model reads, special tokens and truncation included, for checking a chat template by
        eye or by test."""
        from rm_methods.scoring.scorer import RewardModelScorer

        if not isinstance(self.scorer, RewardModelScorer):
            raise UserError(f"{self.folder}: several models read a text, each with its tokenizer. Name one of them.")
        (encoded,) = self.scorer.tokenizer.encode([(prompt, [response])])
        return self.scorer.tokenizer.tokenizer.decode(
            encoded.sequences[0], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


def check_finite(
    values: np.ndarray, prompts: Sequence[Sequence[Message]], responses: Sequence[str], source: str
) -> None:
    """Refuse rewards that are not finite.

    Raises:
        UserError: gives the first prompt and response, and the number of such rewards.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        first = int(bad[0])
        raise UserError(
            f"{len(bad)} of {len(values)} rewards of {source} are not finite; the first is {values[first]} for "
            f"{_shown(prompts[first], responses[first])}. Try precision fp32, and look at the model's weights."
        )


def _check_lengths(prompts: Sequence, responses: Sequence) -> None:
    if len(prompts) != len(responses):
        raise UserError(
            f"Gold rewards need one prompt for each response, found {len(prompts)} prompts and {len(responses)} "
            "responses."
        )


def _shown(prompt: Sequence[Message], response: str) -> str:
    return f"prompt {prompt[-1]['content'][:120]!r}, response {response[:120]!r}"
