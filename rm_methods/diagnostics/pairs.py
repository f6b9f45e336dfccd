"""The pairs of the diagnostics, and which of their tokens are text.

A pair is a benchmark item whose label names the better of two responses. The text of a sequence is that of its
messages. The other tokens are the chat template's: BOS, role markers, closing tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import benchmark_module, load_benchmark_card
from rm_methods.benchmarks.evaluation import usable_scores
from rm_methods.benchmarks.grading import sample_items
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.sources import ItemReport
from rm_methods.errors import UserError
from rm_methods.preferences.tool_calls import uses_tools
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem


@dataclass(frozen=True)
class DiagnosedPair:
    """A benchmark item with two responses, and the index of the better one."""

    benchmark: str
    item: BenchmarkItem
    better: int


@dataclass(frozen=True)
class TextTokens:
    """Which tokens of a sequence are text.

    Attributes:
        is_text: bool [L], tokens of any message.
        is_response: bool [L], tokens of the response.
    """

    is_text: np.ndarray
    is_response: np.ndarray


def select_pairs(
    benchmark: str, items: Sequence[BenchmarkItem], limit: int | None
) -> tuple[list[DiagnosedPair], dict[str, int]]:
    """The pairs of a benchmark: at most `limit` of each subset, drawn at random but always the same ones.

    Conversations with tools are left out: which tokens of a call are text depends on the chat template.

    Returns:
        The pairs, and counts: n_items, not_a_pair (or with tools), not_drawn, n_pairs.

    Raises:
        UserError: the benchmark has no such item.
    """
    comparisons = benchmark_module(load_benchmark_card(benchmark)).comparisons
    better = {}
    for item in items:
        compared = comparisons(item.label, len(item.responses))
        if len(item.responses) == 2 and len(compared) == 1 and not uses_tools(item.prompt, item.responses):
            better[item.item_id] = compared[0][0]
    if not better:
        raise UserError(
            f"diagnostics.benchmarks: no item of '{benchmark}' has two responses of which one is the best, and no "
            f"tools; all {len(items)} are of another kind. Name another benchmark."
        )
    pairs = [item for item in items if item.item_id in better]
    drawn = sample_items(pairs, {"limit": limit, "sample_seed": 0}, ItemReport())
    selected = [DiagnosedPair(benchmark, item, better[item.item_id]) for item in drawn]
    counts = {
        "n_items": len(items),
        "not_a_pair": len(items) - len(pairs),
        "not_drawn": len(pairs) - len(selected),
        "n_pairs": len(selected),
    }
    return selected, counts


def text_tokens(tokenizer: ChatTokenizer, encoded: TokenizedItem) -> list[TextTokens]:
    """Which tokens are text, for each sequence of an item.

    Raises:
        UserError: the chat template changes a message's characters.
    """
    masks = []
    for conversation in encoded.conversations:
        contents = [message["content"] for message in conversation]
        spans = tokenizer.text_spans(conversation)
        is_text = spans[:, 0] < spans[:, 1]
        response_start = sum(len(content) + 1 for content in contents[:-1])
        masks.append(TextTokens(is_text, is_text & (spans[:, 1] > response_start)))
    return masks


def pair_credit(better: Any, worse: Any) -> np.ndarray:
    """Credit of pairs, float64: 1 if the better response scores higher in float32, 0.5 for a tie, otherwise 0.

    A score that is not finite earns 0. Benchmarks count a tie as wrong. Here it counts as a coin flip, so that a pair
    with equal visible parts earns 0.5 and not 0.
    """
    better_scores = usable_scores(better)
    worse_scores = usable_scores(worse)
    return (better_scores > worse_scores) + 0.5 * (better_scores == worse_scores)
