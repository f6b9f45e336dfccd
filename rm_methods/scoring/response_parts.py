"""Splits items with too many responses for one forward into parts that fit."""

from __future__ import annotations

from dataclasses import replace

from rm_methods.reward_models.tokenization import TokenizedItem


def split_responses(item: TokenizedItem, layout: str, limit: int) -> list[TokenizedItem]:
    """An item split into items with consecutive responses.

    No part launches more than `limit` tokens, unless a single response does.  Each part has the item's shared prompt,
    so the split only changes how often the prompt is computed.

    Args:
        layout: "packed" (the prompt once, no padding) or "plain" (rows as long as the longest).
    """
    starts = [0]
    tokens = item.shared
    longest = 0
    for k, length in enumerate(item.lengths):
        tokens += length - item.shared
        longest = max(longest, length)
        launched = tokens if layout == "packed" else (k + 1 - starts[-1]) * longest
        if launched > limit and k > starts[-1]:
            starts.append(k)
            tokens = length
            longest = length
    if len(starts) == 1:
        return [item]
    ends = [*starts[1:], len(item.sequences)]
    return [
        replace(
            item,
            sequences=item.sequences[start:end],
            prompt_cut=item.prompt_cut[start:end],
            response_cut=item.response_cut[start:end],
            conversations=item.conversations[start:end],
        )
        for start, end in zip(starts, ends, strict=True)
    ]
