"""Hides the start of the text from a reward model.

No token attends to a hidden one. So hidden tokens are left out of the forward, which is cheaper and gives the same
result, and the other tokens keep their position ids. The template's tokens stay visible: BOS, role markers, and the
closing token whose state gives the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rm_methods.diagnostics.pairs import TextTokens
from rm_methods.reward_models.layouts import SequenceBatch, lay_out, token_positions
from rm_methods.reward_models.tokenization import TokenizedItem


def visible_positions(text: TextTokens, mode: str, percent: int) -> np.ndarray:
    """Positions that stay visible when the first `percent` of the text tokens (rounded down) are hidden, int64.

    Args:
        mode: "sequence" (of all text, the prompt first) or "response" (of the response's text; the prompt stays).
    """
    maskable = np.flatnonzero(text.is_text if mode == "sequence" else text.is_response)
    return np.delete(np.arange(len(text.is_text)), maskable[: len(maskable) * percent // 100])


def visible_item(item: TokenizedItem, visible: Sequence[np.ndarray]) -> TokenizedItem:
    """An item with only its visible tokens; its sequences share the tokens that are at the start of all of them.

    Args:
        visible: positions for each sequence, ascending.
    """
    length = min(map(len, visible))
    same = (visible[0][:length] < item.shared) & np.logical_and.reduce(
        [v[:length] == visible[0][:length] for v in visible]
    )
    sequences = tuple(sequence[v] for sequence, v in zip(item.sequences, visible, strict=True))
    # Some position always differs: the last token of a sequence stays visible and is not shared.
    return TokenizedItem(sequences, int(same.argmin()), item.prompt_cut, item.response_cut)


def lay_out_visible(
    items: Sequence[TokenizedItem], visible: Sequence[Sequence[np.ndarray]], pad_id: int
) -> SequenceBatch:
    """The packed batch of `visible_item`s, each token with its position in the whole sequence.

    Args:
        visible: for each item the positions of its sequences' tokens.
    """
    batch = lay_out(items, "packed", pad_id)
    visible_of_sequences = [positions for positions_of_item in visible for positions in positions_of_item]
    position_ids = torch.empty_like(batch.position_ids)
    for tokens, positions in zip(token_positions(items, "packed"), visible_of_sequences, strict=True):
        position_ids[0, tokens] = torch.from_numpy(positions)
    return replace(batch, position_ids=position_ids)
