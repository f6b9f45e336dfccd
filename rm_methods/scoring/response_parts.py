"""Items with more responses than fit into one forward, in parts that do."""

from __future__ import annotations

from dataclasses import replace

from rm_methods.reward_models.tokenization import TokenizedItem


def split_responses(item: TokenizedItem, layout: str, limit: int) -> list[TokenizedItem]:
    """Consecutive responses of an item as items of their own, none above `limit` launched tokens (unless a single response is).

    Each has the whole item's shared prompt, so the split changes nothing but how often the prompt is computed.

    Args:
        layout: "packed" (the prompt once, no padding) or "plain" (rows as long as the longest).
    """
    starts, tokens, longest = [0], item.shared, 0
    for k, length in enumerate(item.lengths):
        tokens, longest = tokens + length - item.shared, max(longest, length)
        launched = tokens if layout == "packed" else (k + 1 - starts[-1]) * longest
        if launched > limit and k > starts[-1]:
            starts.append(k)
            tokens = longest = length
    if len(starts) == 1:
        return [item]
    ends = [*starts[1:], len(item.sequences)]
    of_responses = ("sequences", "prompt_cut", "response_cut", "conversations")
    return [
        replace(item, **{name: getattr(item, name)[a:b] for name in of_responses})
        for a, b in zip(starts, ends, strict=True)
    ]
