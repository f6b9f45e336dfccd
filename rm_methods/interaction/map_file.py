"""The file of a teacher's maps: squares of the number of groups, fp16, one behind the other in the order of the pairs.

Each rank computes its share of the pairs into a part of its own, and rank 0 puts the parts together.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np

from rm_methods.errors import UserError
from rm_methods.files import is_intact, read_json, write_json, written_with_checksum
from rm_methods.system.ranks import from_rank_zero, gathered, rank_and_ranks, wait_for_ranks
from rm_methods.system.run_lock import run_lock

_TOKENS_AT_ONCE = 4096


def map_file(
    folder: Path,
    sizes: Sequence[int],
    lengths: Sequence[int],
    compute: Callable[[Sequence[int]], list[np.ndarray]],
    counts: Callable[[], dict],
) -> tuple[np.ndarray, dict]:
    """The maps in `folder`, computed first if they are not there, mapped into memory: fp16 [sum of squares of
    `sizes`]; and their counts.

    Every rank calls this.  Of several runs that want the same maps one computes them, and the others wait.

    Args:
        sizes: groups of each pair, 0 for a pair without a map.
        lengths: tokens of each pair's longer row.
        compute: gives the maps of the pairs at some places.
        counts: numbers that this rank has added up while it computed.

    Raises:
        UserError: the disk is too small.
    """
    path, rank = folder / "maps.npy", rank_and_ranks()[0]
    if not from_rank_zero(rank == 0 and _is_whole(path)):
        with run_lock(folder, patient=True) if rank == 0 else nullcontext():
            if not from_rank_zero(rank == 0 and _is_whole(path)):
                _compute(path, np.asarray(sizes, dtype=np.int64), np.asarray(lengths, dtype=np.int64), compute, counts)
    return np.load(path, mmap_mode="r", allow_pickle=False), read_json(folder / "counts.json")


def _is_whole(path: Path) -> bool:
    return is_intact(path.with_name("counts.json")) and is_intact(path)


def _compute(path: Path, sizes: np.ndarray, lengths: np.ndarray, compute, counts) -> None:
    rank, ranks = rank_and_ranks()
    bounds = _shares(sizes, lengths, ranks)
    folder = path.parent / "parts"
    parts = [folder / f"{r}.npy" for r in range(ranks)]
    try:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            # With several ranks parts and whole lie side by side for a moment.
            _check_disk(path.parent, 2 * _cells(sizes) * min(ranks, 2))
            folder.mkdir()
        wait_for_ranks()
        own = slice(bounds[rank], bounds[rank + 1])
        _write_part(parts[rank], bounds[rank], sizes[own], lengths[own], compute, shown=rank == 0)
        everyone = gathered(counts())
        if rank == 0:
            # Before the maps are moved into place: who finds the maps finds this too.
            with written_with_checksum(path.with_name("counts.json")) as temporary:
                write_json(temporary, {key: sum(own[key] for own in everyone) for key in everyone[0]})
            with written_with_checksum(path) as temporary:
                _join(parts, [_cells(sizes[start:end]) for start, end in pairwise(bounds)], temporary)
        wait_for_ranks()
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _shares(sizes: np.ndarray, lengths: np.ndarray, ranks: int) -> list[int]:
    """Where the share of each rank starts, and the end: neighbors go to one rank, and shares have about as many
    tokens."""
    read = np.cumsum(np.where(sizes > 0, lengths, 0))
    inner = (
        [int(np.searchsorted(read, read[-1] * rank / ranks)) for rank in range(1, ranks)]
        if len(read)
        else [0] * (ranks - 1)
    )
    return [0, *inner, len(sizes)]


def _cells(sizes: np.ndarray) -> int:
    return int(np.square(sizes).sum())


def _check_disk(folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{folder}: the teacher's maps take {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free. Make "
            "room, or set "
            "online: true, which computes them in every step."
        )


def _new_file(path: Path, cells: int) -> np.ndarray:
    # An empty file cannot be mapped into memory.
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(max(cells, 1),))
    with path.open("r+b") as stream:
        # Where the disk fills up, a file with holes would end the process with a signal; this raises OSError.
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def _write_part(path: Path, first: int, sizes: np.ndarray, lengths: np.ndarray, compute, shown: bool) -> None:
    """The maps of neighboring pairs, those from place `first` on."""
    starts = np.concatenate([[0], np.cumsum(np.square(sizes))])
    stored = _new_file(path, int(starts[-1]))
    order = sorted(np.flatnonzero(sizes), key=lambda k: -lengths[k])
    if shown:
        print(f"teacher maps: {len(order)} pairs, {2 * starts[-1] / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    started, last, done = time.monotonic(), time.monotonic(), 0
    while done < len(order):
        # Both orders are read.
        some = order[done : done + max(1, int(_TOKENS_AT_ONCE // (2 * lengths[order[done]])))]
        for k, values in zip(some, compute([first + int(k) for k in some]), strict=True):
            stored[starts[k] : starts[k + 1]] = values.ravel()
        done += len(some)
        if shown and (now := time.monotonic()) - last > 5:
            last, left = now, (now - started) / done * (len(order) - done)
            print(f"teacher maps: {done}/{len(order)} pairs  ETA {left:.0f} s", file=sys.stderr, flush=True)
    stored.flush()


def _join(parts: Sequence[Path], cells: Sequence[int], target: Path) -> None:
    """Put the parts behind one another; a single one is moved."""
    if len(parts) == 1:
        os.replace(parts[0], target)
        return
    whole, start = _new_file(target, sum(cells)), 0
    for part, count in zip(parts, cells, strict=True):
        whole[start : start + count] = np.load(part, mmap_mode="r", allow_pickle=False)[:count]
        start += count
    whole.flush()
