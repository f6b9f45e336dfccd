"""Preference pairs in tokens; pairs that the chat template refuses are named, or left out where the configuration says so."""

from __future__ import annotations

from collections.abc import Sequence

from rm_methods.errors import DataError
from rm_methods.preferences.pair import PreferencePair
from rm_methods.reward_models.tokenization import RefusedConversations


def encode_pairs(pairs: Sequence[PreferencePair], reader, refused: str) -> tuple[list[PreferencePair], list]:
    """Pairs in tokens.

    Args:
        refused: `backbone.refused_conversations`: with "drop", pairs that the chat template refuses are left out.

    Returns:
        The pairs that can be read, and their items.

    Raises:
        DataError: the template refuses some pairs and they are not to be dropped, or it refuses all.
    """

    def encoded(some: Sequence[PreferencePair]) -> list:
        return reader.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in some)

    try:
        return list(pairs), encoded(pairs)
    except RefusedConversations as error:
        readable = [pair for position, pair in enumerate(pairs) if position not in error.reasons]
        if refused != "drop" or not readable:
            names = [f"pair {pair.pair_id} ({pair.source})" for pair in pairs]
            remedy = (
                f"backbone.refused_conversations is '{refused}': 'drop' leaves such pairs out, 'fold_system' puts a system turn into the "
                "first user turn. Or name another template in backbone.chat_template."
            )
            raise DataError(error.naming(names, remedy)) from None
    return readable, encoded(readable)
