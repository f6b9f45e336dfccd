"""The batch plan: assigns pairs to optimizer steps, micro-batches and ranks before training, equally on every rank.

Every method gets the same pairs in the same steps for the same seed.  Within a step, pairs of similar length share a
micro-batch, whose size is limited in launched tokens.  Every rank runs the same number of forwards, because under
ZeRO-3 a rank with one more forward than the others waits forever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rm_methods.reward_models.layouts import launched_tokens
from rm_methods.reward_models.tokenization import TokenizedItem


@dataclass(frozen=True)
class MicroBatch:
    """Pairs computed in one forward.

    Attributes:
        indices: positions in the list of training pairs.
        filler: the pairs count nothing; they only keep the ranks in step.
    """

    indices: tuple[int, ...]
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


def batches_within(order: Sequence[int], limit: int, launched: Callable[[list[int]], int]) -> list[list[int]]:
    """Consecutive items in batches of at most `limit` launched tokens; an item above the limit is a batch by itself.

    Args:
        order: positions of the items.  Items of similar length should be neighbors, and the longest come first: too
            little memory then shows in the first forward.
        launched: launched tokens of a batch with the items at these positions.
    """
    batches: list[list[int]] = []
    for position in order:
        if batches and launched([*batches[-1], position]) <= limit:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def plan_steps(
    items: Sequence[TokenizedItem],
    *,
    steps: int,
    pairs_per_step: int,
    tokens_per_microbatch: int,
    seed: int,
    ranks: int,
    layout: str,
) -> list[StepPlan]:
    """Plan the whole run.

    Args:
        items: tokenized pairs.
        steps: optimizer steps; the epochs repeat until this number is reached.
        pairs_per_step: pairs in an optimizer step, over all ranks; the last step of an epoch may have fewer.
        tokens_per_microbatch: limit of launched tokens; a single longer pair makes a separate micro-batch.
        seed: order of the pairs; each epoch uses a separate stream of the seed.
        layout: "packed" or "plain".
    """
    plan: list[StepPlan] = []
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(items))
        for start in range(0, len(order), pairs_per_step):
            if len(plan) == steps:
                return plan
            chunk = [int(i) for i in order[start : start + pairs_per_step]]
            plan.append(_plan_step(chunk, items, layout=layout, budget=tokens_per_microbatch, ranks=ranks))
        epoch += 1


def divided(
    plan: Sequence[StepPlan], items: Sequence[TokenizedItem], *, first: int, tokens_per_microbatch: int, layout: str
) -> list[StepPlan]:
    """A plan whose steps from `first` on have smaller micro-batches: those that `plan_steps` makes with this limit.

    The pairs of a step stay the same.
    """
    later = [
        _plan_step(step.indices, items, layout=layout, budget=tokens_per_microbatch, ranks=len(step.ranks))
        for step in plan[first:]
    ]
    return [*plan[:first], *later]


def padded_batches(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Positions of texts, longest first, in batches of at most `limit` tokens after padding, or of one longer text."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return batches_within(order, limit, lambda members: len(members) * lengths[members[0]])


def plan_cost(plan: Sequence[StepPlan], items: Sequence[TokenizedItem], layout: str) -> dict[str, int]:
    """The computation of a plan, over all ranks.

    Returns:
        pairs_seen; tokens (all sequences of the pairs, as if each were computed alone, so that methods and layouts
        compare); launched_tokens (tokens of the rows, with padding and fillers); optimizer_steps; forwards.
    """
    cost = {"pairs_seen": 0, "tokens": 0, "launched_tokens": 0, "optimizer_steps": len(plan), "forwards": 0}
    for step in plan:
        for batch in (batch for rank in step.ranks for batch in rank):
            cost["launched_tokens"] += launched_tokens([items[i] for i in batch.indices], layout)
            cost["forwards"] += 1
            if not batch.filler:
                cost["pairs_seen"] += len(batch.indices)
                cost["tokens"] += sum(sum(items[i].lengths) for i in batch.indices)
    return cost


def _plan_step(chunk: list[int], items: Sequence[TokenizedItem], *, layout: str, budget: int, ranks: int) -> StepPlan:
    def launched(batch: MicroBatch) -> int:
        return launched_tokens([items[i] for i in batch.indices], layout)

    batches = _fill_microbatches(chunk, items, layout, budget)
    while len(batches) % ranks:
        largest = max(range(len(batches)), key=lambda b: (len(batches[b].indices), launched(batches[b])))
        whole = batches[largest]
        half = len(whole.indices) // 2
        if half == 0:
            batches.append(MicroBatch(min(batches, key=launched).indices, filler=True))
        else:
            batches[largest] = MicroBatch(whole.indices[:half])
            batches.append(MicroBatch(whole.indices[half:]))
    # Longest first, dealt back and forth: ranks get similar amounts of work, and too little memory shows in the first
    # forward.
    batches.sort(key=launched, reverse=True)
    dealt: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    for turn, start in enumerate(range(0, len(batches), ranks)):
        row = batches[start : start + ranks]
        for rank, batch in enumerate(row if turn % 2 == 0 else reversed(row)):
            dealt[rank].append(batch)
    return StepPlan(tuple(tuple(rank) for rank in dealt))


def _fill_microbatches(chunk: list[int], items: Sequence[TokenizedItem], layout: str, budget: int) -> list[MicroBatch]:
    """Micro-batches within the budget, longest pairs first, because attention pads to the longest sequence."""
    order = sorted(chunk, key=lambda i: (-max(items[i].lengths), i))
    batches = batches_within(order, budget, lambda members: launched_tokens([items[i] for i in members], layout))
    return [MicroBatch(tuple(members)) for members in batches]
