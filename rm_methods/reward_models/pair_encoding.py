"""Preference pairs in tokens.

Pairs that the chat template refuses are named, or left out if the configuration says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from rm_methods.errors import DataError
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.reward_models.tokenization import RefusedConversations, TokenizedItem


class PairReader(Protocol):
    """Turns prompts and responses into tokens: a `ChatTokenizer`, or the reader of a joint model.

    Attributes:
        tokenizer: of Hugging Face, saved with the model.
    """

    tokenizer: Any

    @property
    def pad_id(self) -> int:
        """Id used for padding."""

    def encode(self, items: Iterable[tuple[Sequence[Message], Sequence[str]]]) -> list[TokenizedItem]:
        """(prompt, responses) in tokens."""


def encode_pairs(
    pairs: Sequence[PreferencePair], reader: PairReader, refused: str
) -> tuple[list[PreferencePair], list[TokenizedItem]]:
    """Pairs in tokens.

    Args:
        refused: `backbone.refused_conversations`: with "drop", pairs that the chat template refuses are left out.

    Returns:
        The pairs that can be read, and their items.

    Raises:
        DataError: the template refuses some pairs and they are not to be dropped, or it refuses all.
    """

    readable = list(pairs)
    # The next round may refuse more: what truncation leaves of a conversation is rendered only then.
    while True:
        try:
            return readable, reader.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in readable)
        except RefusedConversations as error:
            names = [f"pair {pair.pair_id} ({pair.source})" for pair in readable]
            readable = [pair for position, pair in enumerate(readable) if position not in error.reasons]
            if refused != "drop" or not readable:
                remedy = (
                    f"backbone.refused_conversations is '{refused}': 'drop' leaves such pairs out, 'fold_system' puts "
                    "a system turn into the first user turn. Or name another template in backbone.chat_template."
                )
                raise DataError(error.naming(names, remedy)) from None


def reason_to_drop(item: TokenizedItem, policy: str) -> str | None:
    """Why a training pair is left out; None if it stays.

    A cut prompt stays (the oldest turns went first).  A pair whose two sequences are equal could only teach log 2.

    Args:
        policy: `training.overlong_pairs`; "drop" leaves out pairs with a cut response.

    Returns:
        A key of the summary's `truncation`: dropped_response_cut, dropped_equal (by truncation), dropped_same_tokens
        (chat template or tokenizer give both responses the same tokens).
    """
    if policy == "drop" and any(item.response_cut):
        return "dropped_response_cut"
    if np.array_equal(item.sequences[0], item.sequences[1]):
        return "dropped_equal" if any(item.truncated) else "dropped_same_tokens"
    return None
