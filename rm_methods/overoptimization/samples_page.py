"""A page of samples for readers: the response that each reward model picks for a prompt, and the best one by gold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.pool_grading import candidate_gold
from rm_methods.preferences.tool_calls import readable
from rm_methods.reporting.tables import markdown_escape

RANDOM_PROMPTS = 3
WORST_PROMPTS = 2
SHOWN_CHARACTERS = 1500


def samples_page(pool: str, picks: Sequence[tuple[str, int, Sequence[BenchmarkItem], Sequence[np.ndarray]]]) -> str:
    """Markdown text: for each variant a few prompts, drawn by a hash (the same for all), and those where it loses most
    gold.

    Args:
        picks: (label, seed, items, scores) of one run a variant, as in `best_of_n.pool_curves`.
    """
    parts = [
        f"# Samples of pool {pool}",
        f"For each reward model (its first seed) {RANDOM_PROMPTS} prompts drawn at random, the same for all, and the "
        f"{WORST_PROMPTS} prompts on which it loses most gold: the response that it ranks first and the one with the "
        "highest gold.",
    ]
    for label, seed, items, scores in picks:
        parts.append(f"## {markdown_escape(label)}, seed {seed}")
        drawn = sorted(range(len(items)), key=lambda k: hashlib.sha256(items[k].item_id.encode("utf-8")).hexdigest())[
            :RANDOM_PROMPTS
        ]
        losses = [_loss(item, item_scores) for item, item_scores in zip(items, scores, strict=True)]
        worst = [k for k in np.argsort(losses, kind="stable")[::-1].tolist() if k not in drawn and losses[k] > 0][
            :WORST_PROMPTS
        ]
        for title, positions in (("drawn at random", drawn), ("largest loss of gold", worst)):
            parts += [_prompt_part(items[k], scores[k], title) for k in positions]
    return "\n\n".join(parts) + "\n"


def _loss(item: BenchmarkItem, scores: np.ndarray) -> float:
    gold = candidate_gold(item.label, len(item.responses))
    return float(gold.max() - gold[int(np.argmax(scores))])


def _prompt_part(item: BenchmarkItem, scores: np.ndarray, title: str) -> str:
    gold = candidate_gold(item.label, len(item.responses))
    by_proxy = int(np.argmax(scores))
    by_gold = int(np.argmax(gold))
    conversation = "\n\n".join(f"[{message['role']}] {readable(message['content'])}" for message in item.prompt)
    parts = [
        f"### {markdown_escape(item.item_id)} ({title})",
        f"Prompt, {len(item.responses)} responses:",
        fenced(conversation),
    ]
    if by_proxy == by_gold or gold[by_proxy] == gold[by_gold]:
        return "\n\n".join(
            [
                *parts,
                f"First by proxy, and as good as the best by gold ({gold[by_proxy]:.3f}):",
                fenced(item.responses[by_proxy]),
            ]
        )
    rank = int((scores > scores[by_gold]).sum()) + 1
    return "\n\n".join(
        [
            *parts,
            f"First by proxy: gold {gold[by_proxy]:.3f}, proxy {scores[by_proxy]:.3f}",
            fenced(item.responses[by_proxy]),
            f"First by gold: gold {gold[by_gold]:.3f}, proxy {scores[by_gold]:.3f} (rank {rank} by proxy)",
            fenced(item.responses[by_gold]),
        ]
    )


def fenced(text: str) -> str:
    """Text as a Markdown code block that nothing in the text can end or change; long texts are cut, and say so."""
    left = len(text) - SHOWN_CHARACTERS
    shown = text[:SHOWN_CHARACTERS] + (f" [... {left} characters more]" if left > 0 else "")
    if not shown.strip():
        shown = "[empty]"
    # A fence must be longer than any run of backticks inside; carriage returns and the like would start new lines.
    shown = "\n".join(re.split(r"\r\n|[\r\n\v\f\x85\u2028\u2029]", shown))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"
