"""Which pairs go into which optimizer step, micro-batch and rank: decided before training, the same on every rank.

Every method gets the same pairs in the same steps for the same seed.  Within a step, pairs of similar length share a micro-batch
and its size is limited in launched tokens, so little is padding; and every rank runs the same number of forwards, because under
ZeRO-3 a rank that runs one more forward than the others waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_methods.reward_models.layouts import cheaper_layout, row_lengths
from rm_methods.reward_models.tokenization import TokenizedItem


@dataclass(frozen=True)
class MicroBatch:
    """Pairs computed in one forward.

    Attributes:
        indices: positions in the list of training pairs.
        layout: "packed" or "plain".
        filler: the pairs count nothing; they only keep the ranks in step.
    """

    indices: tuple[int, ...]
    layout: str
    filler: bool = False


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: for each rank, its micro-batches (the same number on every rank)."""

    ranks: tuple[tuple[MicroBatch, ...], ...]

    @property
    def indices(self) -> list[int]:
        """Every pair of the step once."""
        return [i for rank in self.ranks for batch in rank if not batch.filler for i in batch.indices]

    @property
    def micro_batches(self) -> int:
        """Micro-batches that count, over all ranks."""
        return sum(not batch.filler for rank in self.ranks for batch in rank)


def plan_steps(
    items: Sequence[TokenizedItem],
    *,
    epochs: int,
    pairs_per_step: int,
    tokens_per_microbatch: int,
    seed: int,
    ranks: int,
    layout: str,
    hidden_size: int,
) -> list[StepPlan]:
    """Plan the whole run.

    Args:
        items: tokenised pairs.
        pairs_per_step: pairs in an optimizer step, over all ranks; the last step of an epoch may have fewer.
        tokens_per_microbatch: limit of launched tokens (rows x longest row); a single longer pair makes a micro-batch of its own.
        seed: order of the pairs; epoch e uses its own stream of the same seed.
        layout: "packed", "plain", or "auto" (per pair, whichever is less work).
        hidden_size: of the backbone, for "auto".
    """
    layouts = [cheaper_layout(item, hidden_size) if layout == "auto" else layout for item in items]
    lengths = [row_lengths(item, kind) for item, kind in zip(items, layouts, strict=True)]
    steps = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(items))
        for start in range(0, len(order), pairs_per_step):
            chunk = [int(i) for i in order[start : start + pairs_per_step]]
            steps.append(_plan_step(chunk, layouts, lengths, tokens_per_microbatch, ranks))
    return steps


def plan_cost(plan: Sequence[StepPlan], items: Sequence[TokenizedItem]) -> dict[str, int]:
    """What a plan computes, over all ranks.

    Returns:
        pairs_seen; tokens (all sequences of the pairs, as if each were computed alone, so that methods and layouts compare);
        launched_tokens (what the rows hold, with padding and fillers); optimizer_steps; forwards.
    """
    cost = {"pairs_seen": 0, "tokens": 0, "launched_tokens": 0, "optimizer_steps": len(plan), "forwards": 0}
    for step in plan:
        for batch in (batch for rank in step.ranks for batch in rank):
            rows = [length for i in batch.indices for length in row_lengths(items[i], batch.layout)]
            cost["launched_tokens"] += len(rows) * max(rows)
            cost["forwards"] += 1
            if not batch.filler:
                cost["pairs_seen"] += len(batch.indices)
                cost["tokens"] += sum(sum(items[i].lengths) for i in batch.indices)
    return cost


def _plan_step(chunk: list[int], layouts: list[str], lengths: list[list[int]], budget: int, ranks: int) -> StepPlan:
    batches: list[MicroBatch] = []
    for kind in ("packed", "plain"):
        batches += _fill_microbatches([i for i in chunk if layouts[i] == kind], kind, lengths, budget)
    while len(batches) % ranks:
        largest = max(range(len(batches)), key=lambda b: (len(batches[b].indices), _launched(batches[b], lengths)))
        whole = batches[largest]
        half = len(whole.indices) // 2
        if half == 0:
            shortest = min(batches, key=lambda b: _launched(b, lengths))
            batches.append(MicroBatch(shortest.indices, shortest.layout, filler=True))
        else:
            batches[largest] = MicroBatch(whole.indices[:half], whole.layout)
            batches.append(MicroBatch(whole.indices[half:], whole.layout))
    # Longest first, dealt back and forth: ranks get like amounts of work, and too little memory shows in the first forward.
    batches.sort(key=lambda b: _launched(b, lengths), reverse=True)
    dealt: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    for turn, start in enumerate(range(0, len(batches), ranks)):
        row = batches[start : start + ranks]
        for rank, batch in enumerate(row if turn % 2 == 0 else reversed(row)):
            dealt[rank].append(batch)
    return StepPlan(tuple(tuple(rank) for rank in dealt))


def _fill_microbatches(indices: list[int], kind: str, lengths: list[list[int]], budget: int) -> list[MicroBatch]:
    """Group pairs, longest first, as long as rows x longest row stays within the budget."""
    indices = sorted(indices, key=lambda i: (-max(lengths[i]), i))
    batches, current, rows = [], [], 0
    for i in indices:
        longest = max(lengths[current[0]]) if current else max(lengths[i])
        if current and (rows + len(lengths[i])) * longest > budget:
            batches.append(MicroBatch(tuple(current), kind))
            current, rows = [], 0
        current.append(i)
        rows += len(lengths[i])
    if current:
        batches.append(MicroBatch(tuple(current), kind))
    return batches


def _launched(batch: MicroBatch, lengths: list[list[int]]) -> int:
    rows = [length for i in batch.indices for length in lengths[i]]
    return len(rows) * max(rows)
