"""Data-parallel PPO: each rank samples and learns from its share, and all ranks hold the same batch in between.

Rollouts are small (token ids and a few numbers each), so every rank gathers all of them.  Advantages, whitening and
every decision are then the same on all ranks.  So are the weights, because gradients are summed before each step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist

from rm_methods.system.ranks import gathered, wait_for_ranks


def use_own_gpu() -> None:
    """Make "cuda" mean the GPU of this rank.  Models that are loaded before this call go to the first GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


class Ranks:
    """The ranks of a run: one process, or those that torchrun started."""

    def __init__(self):
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        use_own_gpu()
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    @property
    def first(self) -> bool:
        """Whether this rank writes."""
        return self.rank == 0

    def gathered(self, values: list) -> list:
        """The values of all ranks, those of rank 0 first."""
        return [value for rank_values in gathered(values) for value in rank_values]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add the gradients of all ranks; a parameter that this rank did not use counts zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.size > 1:
                dist.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Wait for all ranks."""
        wait_for_ranks()
