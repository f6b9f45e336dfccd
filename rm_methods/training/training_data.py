"""The data of one training run: prepared pairs, with their level of noise, as a method changes them, in tokens that fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.pair import PreferencePair, read_pairs
from rm_methods.reward_models.pair_encoding import encode_pairs


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        pairs, items: what is left after truncation, as pairs and as tokens.
        reader: what tokenised them.
        budget: number of pairs that the number of optimizer steps is counted from.
        truncation, noise: what was cut, dropped, changed by the chat template and flipped, for the summary.
    """

    pairs: list[PreferencePair]
    items: list
    reader: Any
    budget: int
    truncation: dict[str, int]
    noise: dict[str, int]


def training_data(config: dict[str, Any], variant: str, file: Path, method, inputs) -> TrainingData:
    """The pairs that a variant learns from, changed as its method says, tokenised, and cut or dropped where they are too long.

    Args:
        file: the prepared pairs.
        inputs: what the method is given (`rm_methods.methods.contract.Inputs`); its `training` section is the run's.

    Raises:
        DataError: no pair is left, or one is too long or refused by the chat template and that is not allowed.
    """
    given, noise = training_pairs(config, variant, file)
    pairs = list(method.transform_pairs(given, inputs))
    reader = method.reader(pairs, inputs)
    readable, items = encode_pairs(pairs, reader, inputs.config["backbone"]["refused_conversations"])
    template = {"dropped_refused": len(pairs) - len(readable), **template_changes(items)}
    kept, items, truncation = apply_truncation_policy(readable, items, inputs.config["training"]["overlong_pairs"])
    if any(template.values()) and os.environ.get("RANK", "0") == "0":
        print(f"{inputs.label}: {_template_note(template, len(pairs))}", file=sys.stderr, flush=True)
    budget = round(
        len(kept) * len(given) / len(pairs)
    )  # steps are counted before the method changes how many pairs there are
    return TrainingData(kept, items, reader, budget, truncation | template, noise)


def template_changes(items: Sequence) -> dict[str, int]:
    """Pairs in which the chat template left out or changed text, white space aside: prompts_changed, responses_changed."""
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
    return f"the chat template, pairs of {pairs}: " + ", ".join(
        f"{count} {words[name]}" for name, count in template.items() if count
    )


def training_pairs(config: dict[str, Any], variant: str, file: Path) -> tuple[list[PreferencePair], dict[str, int]]:
    """The training pairs of a variant, with its level of label noise, and counts of what was flipped.

    The flips depend on the data's seed alone, so all variants of a level learn from the same labels.
    """
    pairs = read_pairs(file, splits=["train"])
    level = config["methods"][variant]["label_noise"]
    return flip_labels(pairs, level["rate"], level["kind"], config["data"]["seed"]) if level else (pairs, {})


def apply_truncation_policy(
    pairs: Sequence[PreferencePair], items: Sequence, policy: str
) -> tuple[list, list, dict[str, int]]:
    """Decide what happens to pairs that did not fit, and count it.

    A cut prompt stays (the oldest turns went first).  A pair with a cut response is dropped or kept by `policy`; a pair
    whose two sequences are equal is always dropped, because it could only teach log 2.

    Args:
        policy: `training.overlong_pairs`: "drop", "truncate" or "error".

    Returns:
        Kept pairs, their items, and counts: prompts_cut, responses_cut, dropped_response_cut, dropped_equal (by
            truncation),
        dropped_same_tokens (the chat template or the tokenizer makes no difference between the responses).

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
    kept_pairs, kept_items = [], []
    for pair, item in zip(pairs, items, strict=True):
        counts["prompts_cut"] += any(item.prompt_cut)
        if any(item.response_cut):
            if policy == "error":
                raise DataError(
                    f"Pair {pair.pair_id} ({pair.source}): a response does not fit into training.max_length. Raise it, or set "
                    "training.overlong_pairs to 'drop' or 'truncate'."
                )
            counts["responses_cut"] += 1
            if policy == "drop":
                counts["dropped_response_cut"] += 1
                continue
        if _equal(item):
            counts["dropped_equal" if any(item.prompt_cut + item.response_cut) else "dropped_same_tokens"] += 1
            continue
        kept_pairs.append(pair)
        kept_items.append(item)
    if not kept_pairs:
        raise DataError(_nothing_left(counts, len(pairs)))
    return kept_pairs, kept_items, counts


def _nothing_left(counts: dict[str, int], pairs: int) -> str:
    """Why no training pair is left, and what to do."""
    same, too_long = counts["dropped_same_tokens"], counts["dropped_response_cut"] + counts["dropped_equal"]
    sentences = ["No training pair is left."]
    if same:
        sentences += [
            f"The chat template gives chosen and rejected the same tokens in {same} of {pairs} pairs.",
            "Name a template in backbone.chat_template that prints responses whole.",
        ]
    if too_long:
        sentences += [
            f"In {too_long} of {pairs} pairs a response does not fit into training.max_length (null takes backbone.max_length).",
            "Raise it.",
        ]
    return " ".join(sentences)


def _equal(item) -> bool:
    import numpy as np

    return np.array_equal(item.sequences[0], item.sequences[1])
