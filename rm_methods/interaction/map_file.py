"""The file of a teacher's maps: fp16 squares of the number of groups, one after another in the order of the pairs.

Each rank writes its share of the pairs into a separate part, and rank 0 joins the parts.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np

from rm_methods.errors import UserError
from rm_methods.files import is_intact, read_json, write_json, written_with_checksum
from rm_methods.reward_models.batching import padded_batches
from rm_methods.system.progress import Progress
from rm_methods.system.ranks import from_rank_zero, gathered, rank_and_ranks, wait_for_ranks
from rm_methods.system.run_lock import run_lock

_TOKENS_AT_ONCE = 4096


def map_file(
    folder: Path,
    sizes: Sequence[int],
    lengths: Sequence[int],
    *,
    compute: Callable[[Sequence[int]], list[np.ndarray]],
    counts: Callable[[], dict],
) -> tuple[np.ndarray, dict]:
    """The maps in `folder` and their counts; computed first if the file is missing.

    Every rank calls this.  If several runs need the same maps, one computes them and the others wait.

    Args:
        sizes: groups of each pair, 0 for a pair without a map.
        lengths: tokens of each pair's longer row.
        compute: gives the maps of the pairs at some positions.
        counts: the numbers that this rank added up while it computed.

    Returns:
        fp16 [sum of squares of `sizes`], mapped into memory; the counts, summed over ranks.

    Raises:
        UserError: the disk is too small.
    """
    path = folder / "maps.npy"
    rank = rank_and_ranks()[0]
    if not from_rank_zero(rank == 0 and _is_whole(path)):
        with run_lock(folder, patient=True) if rank == 0 else nullcontext():
            if not from_rank_zero(rank == 0 and _is_whole(path)):
                size_of_pair = np.asarray(sizes, dtype=np.int64)
                length_of_pair = np.asarray(lengths, dtype=np.int64)
                _compute(path, size_of_pair, length_of_pair, compute, counts)
    return np.load(path, mmap_mode="r", allow_pickle=False), read_json(folder / "counts.json")


def _is_whole(path: Path) -> bool:
    return is_intact(path.with_name("counts.json")) and is_intact(path)


def _compute(
    path: Path,
    sizes: np.ndarray,
    lengths: np.ndarray,
    compute: Callable[[Sequence[int]], list[np.ndarray]],
    counts: Callable[[], dict],
) -> None:
    rank, ranks = rank_and_ranks()
    bounds = _shares(sizes, lengths, ranks)
    folder = path.parent / "parts"
    parts = [folder / f"{r}.npy" for r in range(ranks)]
    try:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # parts of a run that was killed
            # With several ranks, the parts and the joined file exist at the same time.
            _check_disk(path.parent, 2 * _cells(sizes) * min(ranks, 2))
            folder.mkdir()
        wait_for_ranks()
        share = slice(bounds[rank], bounds[rank + 1])
        _write_part(parts[rank], bounds[rank], sizes[share], lengths[share], compute, print_progress=rank == 0)
        counts_of_ranks = gathered(counts())
        if rank == 0:
            # Written before the maps are moved into place, so that a process that sees the maps also sees the counts.
            total = {key: sum(counts_of_rank[key] for counts_of_rank in counts_of_ranks) for key in counts_of_ranks[0]}
            with written_with_checksum(path.with_name("counts.json")) as temporary:
                write_json(temporary, total)
            with written_with_checksum(path) as temporary:
                _join(parts, [_cells(sizes[start:end]) for start, end in pairwise(bounds)], temporary)
        wait_for_ranks()
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _shares(sizes: np.ndarray, lengths: np.ndarray, ranks: int) -> list[int]:
    """First position of each rank's share, and the end.

    Shares are consecutive and have about the same number of tokens.
    """
    tokens_read = np.cumsum(np.where(sizes > 0, lengths, 0))
    if not len(tokens_read):
        return [0] * (ranks + 1)
    goals = [tokens_read[-1] * rank / ranks for rank in range(1, ranks)]
    return [0, *(int(np.searchsorted(tokens_read, goal)) for goal in goals), len(sizes)]


def _cells(sizes: np.ndarray) -> int:
    return int(np.square(sizes).sum())


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: the teacher's maps take {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free. Make "
            "room, or set online: true, which computes them in every step."
        )


def _new_file(path: Path, cells: int) -> np.memmap:
    # An empty file cannot be mapped into memory.
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(max(cells, 1),))
    with path.open("r+b") as stream:
        # On a full disk, writing to a file with holes would end the process with a signal; this raises OSError.
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def _write_part(
    path: Path,
    first: int,
    sizes: np.ndarray,
    lengths: np.ndarray,
    compute: Callable[[Sequence[int]], list[np.ndarray]],
    *,
    print_progress: bool,
) -> None:
    """Write the maps of consecutive pairs.

    Args:
        first: position of the first of them.
        sizes, lengths: of these pairs.
    """
    starts = np.concatenate([[0], np.cumsum(np.square(sizes))])
    stored = _new_file(path, int(starts[-1]))
    aligned = np.flatnonzero(sizes)
    progress = Progress("teacher maps", len(aligned), unit="pairs") if print_progress else None
    if print_progress:
        print(f"teacher maps: {len(aligned)} pairs, {2 * starts[-1] / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    # Twice the length, because the teacher reads both orders.
    for members in padded_batches((2 * lengths[aligned]).tolist(), _TOKENS_AT_ONCE):
        pairs = aligned[members]
        for k, values in zip(pairs, compute([first + int(k) for k in pairs]), strict=True):
            stored[starts[k] : starts[k + 1]] = values.ravel()
        if progress:
            progress.advance(len(pairs))
    stored.flush()


def _join(parts: Sequence[Path], cells: Sequence[int], target: Path) -> None:
    """Join the parts into one file; a single part is moved."""
    if len(parts) == 1:
        os.replace(parts[0], target)
        return
    whole = _new_file(target, sum(cells))
    start = 0
    for part, count in zip(parts, cells, strict=True):
        whole[start : start + count] = np.load(part, mmap_mode="r", allow_pickle=False)[:count]
        start += count
    whole.flush()
