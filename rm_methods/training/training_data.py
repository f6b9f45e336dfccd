"""The data of one training run: prepared pairs with their label noise, changed by the method, in tokens that fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.errors import DataError
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.pair import PreferencePair, read_pairs
from rm_methods.reward_models.pair_encoding import PairReader, encode_pairs, reason_to_drop
from rm_methods.reward_models.tokenization import TokenizedItem
from rm_methods.run_card import MANY_LEFT_OUT

if TYPE_CHECKING:
    from rm_methods.methods.contract import Inputs, TrainedMethod

_MOST_LEFT_OUT = 0.5


@dataclass(frozen=True)
class TrainingData:
    """The training data of a run.

    Attributes:
        pairs, items: the pairs after truncation, and their tokens.
        reader: the tokenizer that made the tokens.
        offered: number of pairs of the method before any was left out.
        budget: number of pairs that sets the number of optimizer steps.
        truncation, noise: counts for the summary: pairs cut, dropped, changed by the chat template, and flipped.
    """

    pairs: list[PreferencePair]
    items: list[TokenizedItem]
    reader: PairReader
    offered: int
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
        DataError: fewer than half of the pairs fit, none is left, or one is too long or refused by the chat template
            and that is not allowed.
    """
    prepared, noise = training_pairs(config, variant, file)
    pairs = list(method.transform_pairs(prepared, inputs))
    reader = method.reader(pairs, inputs)
    readable, items = encode_pairs(pairs, reader, inputs.config["backbone"]["refused_conversations"])
    template = {"dropped_refused": len(pairs) - len(readable), **template_changes(items)}
    kept, kept_items, truncation = apply_truncation_policy(readable, items, inputs.config["training"]["overlong_pairs"])
    _check_length_losses(inputs, truncation, len(pairs))
    if any(template.values()) and os.environ.get("RANK", "0") == "0":
        print(f"{inputs.label}: {_template_note(template, len(pairs))}", file=sys.stderr, flush=True)
    # Steps are counted before the method changes the number of pairs.
    budget = round(len(kept) * len(prepared) / len(pairs))
    return TrainingData(
        kept, kept_items, reader, offered=len(pairs), budget=budget, truncation=truncation | template, noise=noise
    )


def _check_length_losses(inputs: Inputs, counts: dict[str, int], pairs: int) -> None:
    """Warn if many pairs were left out because of their length.

    Raises:
        DataError: most were: the result would be called that of all pairs, and be that of the short ones.
    """
    left_out = counts["dropped_response_cut"] + counts["dropped_equal"]
    if left_out <= MANY_LEFT_OUT * pairs:
        return
    training = inputs.config["training"]
    setting = "training.max_length" if training["max_length"] else "backbone.max_length"
    limit = training["max_length"] or inputs.config["backbone"]["max_length"]
    problem = (
        f"{inputs.label}: {left_out:,} of {pairs:,} training pairs are left out, because a response does not fit into "
        f"{setting}: {limit} (training.overlong_pairs: {training['overlong_pairs']})."
    )
    cut = "cut such responses at their end (training.overlong_pairs: truncate), "
    remedy = (
        f"Raise {setting}, {cut if training['overlong_pairs'] == 'drop' else ''}or leave out long texts when the data "
        "are prepared (data.max_characters: {train: N})."
    )
    if left_out > _MOST_LEFT_OUT * pairs:
        raise DataError(f"{problem} Fewer than half would be trained on, so the training does not start. {remedy}")
    if os.environ.get("RANK", "0") == "0":
        print(f"WARNING: {problem} {remedy}", file=sys.stderr, flush=True)


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
    """Keep or drop pairs that did not fit (`reason_to_drop`), and count them.

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
        if reason := reason_to_drop(item, policy):
            counts[reason] += 1
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
