"""The processes of one run ("ranks") in torch.distributed; a single process is rank 0 of 1."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch.distributed as dist


def rank_and_ranks() -> tuple[int, int]:
    """The number of this rank, and the number of ranks."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def gathered(value: Any) -> list:
    """The values of all ranks in order, on every rank."""
    _, ranks = rank_and_ranks()
    values = [value] * ranks
    if ranks > 1:
        dist.all_gather_object(values, value)
    return values


def from_rank_zero(value: Any) -> Any:
    """The value of rank 0, on every rank."""
    if rank_and_ranks()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def print_once(text: str) -> None:
    """Print a line on stderr, on rank 0 alone; works before the ranks are connected, too."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def wait_for_ranks() -> None:
    """Wait for all ranks."""
    if rank_and_ranks()[1] > 1:
        dist.barrier()
