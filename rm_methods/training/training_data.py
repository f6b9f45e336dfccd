"""The data of one training run: prepared pairs with their label noise, changed by the method, in tokens that fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.errors import DataError
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.pair import PreferencePair, read_pairs
from rm_methods.reward_models.pair_encoding import PairReader, encode_pairs
from rm_methods.reward_models.tokenization import TokenizedItem

if TYPE_CHECKING:
    from rm_methods.methods.contract import Inputs, TrainedMethod


@dataclass(frozen=True)
class TrainingData:
    """The training data of a run.

    Attributes:
        pairs, items: the pairs after truncation, and their tokens.
        reader: the tokenizer that made the tokens.
        budget: number of pairs that sets the number of optimizer steps.
        truncation, noise: counts for the summary: pairs cut, dropped, changed by the chat template, and flipped.
    """

    pairs: list[PreferencePair]
    items: list[TokenizedItem]
    reader: PairReader
    budget: int
    truncation: dict[str, int]
    noise: dict[str, int]


def training_data(
    config: dict[str, Any], variant: str, file: Path, method: TrainedMethod, inputs: Inputs
) -> TrainingData:
    """The pairs that a variant learns from, changed by its method, in tokens.

    Pairs that are too long are cut or dropped, as the configuration says.

    Args:
        file: the prepared pairs.
        inputs: of the method, with the run's `training` section.

    Raises:
        DataError: no pair is left, or one is too long or refused by the chat template and that is not allowed.
    """
    prepared, noise = training_pairs(config, variant, file)
    pairs = list(method.transform_pairs(prepared, inputs))
    reader = method.reader(pairs, inputs)
    readable, items = encode_pairs(pairs, reader, inputs.config["backbone"]["refused_conversations"])
    template = {"dropped_refused": len(pairs) - len(readable), **template_changes(items)}
    kept, kept_items, truncation = apply_truncation_policy(readable, items, inputs.config["training"]["overlong_pairs"])
    if any(template.values()) and os.environ.get("RANK", "0") == "0":
        print(f"{inputs.label}: {_template_note(template, len(pairs))}", file=sys.stderr, flush=True)
    # Steps are counted before the method changes the number of pairs.
    budget = round(len(kept) * len(prepared) / len(pairs))
    return TrainingData(kept, kept_items, reader, budget, truncation=truncation | template, noise=noise)


def template_changes(items: Sequence[TokenizedItem]) -> dict[str, int]:
    """Counts of pairs in which the chat template left out or changed text, white space aside.

    Returns:
        prompts_changed and responses_changed.
    """
    return {
        "prompts_changed": sum(any(item.prompt_changed) for item in items),
        "responses_changed": sum(any(item.response_changed) for item in items),
    }


def _template_note(template: dict[str, int], pairs: int) -> str:
    words = {
        "dropped_refused": "refused and dropped",
        "prompts_changed": "with text of the prompt left out or changed",
        "responses_changed": "with text of a response left out or changed",
    }
    counts = [f"{count} {words[name]}" for name, count in template.items() if count]
    return f"the chat template, pairs of {pairs}: {', '.join(counts)}"


def training_pairs(config: dict[str, Any], variant: str, file: Path) -> tuple[list[PreferencePair], dict[str, int]]:
    """The training pairs of a variant, with its level of label noise, and counts of flipped labels.

    The flips depend on the data's seed alone, so all variants of a level learn from the same labels.
    """
    pairs = read_pairs(file, splits=["train"])
    level = config["methods"][variant]["label_noise"]
    if not level:
        return pairs, {}
    return flip_labels(pairs, level["rate"], level["kind"], config["data"]["seed"])


def apply_truncation_policy(
    pairs: Sequence[PreferencePair], items: Sequence[TokenizedItem], policy: str
) -> tuple[list[PreferencePair], list[TokenizedItem], dict[str, int]]:
    """Keep or drop pairs that did not fit, and count them.

    A cut prompt stays (the oldest turns went first).  A pair with a cut response is dropped or kept by `policy`; a pair
    whose two sequences are equal is always dropped, because it could only teach log 2.

    Args:
        policy: `training.overlong_pairs`: "drop", "truncate" or "error".

    Returns:
        Kept pairs, their items, and counts: prompts_cut, responses_cut, dropped_response_cut, dropped_equal (by
            truncation), dropped_same_tokens (chat template or tokenizer give both responses the same tokens).

    Raises:
        DataError: no pair is left, or a response was cut and `policy` is "error".
    """
    counts = {
        "prompts_cut": 0,
        "responses_cut": 0,
        "dropped_response_cut": 0,
        "dropped_equal": 0,
        "dropped_same_tokens": 0,
    }
    kept_pairs = []
    kept_items = []
    for pair, item in zip(pairs, items, strict=True):
        counts["prompts_cut"] += any(item.prompt_cut)
        if any(item.response_cut):
            if policy == "error":
                raise DataError(
                    f"Pair {pair.pair_id} ({pair.source}): a response does not fit into training.max_length. Raise it, "
                    "or set training.overlong_pairs to 'drop' or 'truncate'."
                )
            counts["responses_cut"] += 1
            if policy == "drop":
                counts["dropped_response_cut"] += 1
                continue
        if _equal(item):
            was_cut = any(item.prompt_cut + item.response_cut)
            counts["dropped_equal" if was_cut else "dropped_same_tokens"] += 1
            continue
        kept_pairs.append(pair)
        kept_items.append(item)
    if not kept_pairs:
        raise DataError(_nothing_left(counts, len(pairs)))
    return kept_pairs, kept_items, counts


def _nothing_left(counts: dict[str, int], pairs: int) -> str:
    """Why no training pair is left, and what to do."""
    same = counts["dropped_same_tokens"]
    too_long = counts["dropped_response_cut"] + counts["dropped_equal"]
    sentences = ["No training pair is left."]
    if same:
        sentences += [
            f"The chat template gives chosen and rejected the same tokens in {same} of {pairs} pairs.",
            "Name a template in backbone.chat_template that prints responses whole.",
        ]
    if too_long:
        sentences += [
            f"In {too_long} of {pairs} pairs a response does not fit into training.max_length (null takes "
            "backbone.max_length).",
            "Raise it.",
        ]
    return " ".join(sentences)


def _equal(item: TokenizedItem) -> bool:
    return np.array_equal(item.sequences[0], item.sequences[1])
