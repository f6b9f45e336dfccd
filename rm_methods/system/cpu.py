"""How a training or scoring process uses the CPU."""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST_INT = 2**31 - 1
_GROWTH = 256 * 2**20  # bytes the heap grows by


def return_freed_memory() -> None:
    """Give freed memory back to the system, which `prepare_cpu` keeps: after the process ran out of it."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


def prepare_cpu(threads: int) -> None:
    """Set torch's threads (0 leaves them) and keep freed memory in the process.

    Every forward allocates and frees the same hundreds of megabytes.  By default glibc returns large blocks to the
    system at once and gets them back as fresh pages, which must be zeroed.  In a virtual machine that takes up to a
    third of a training step (docs/speed.md).
    """
    if threads:
        import torch

        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_TOP_PAD, _GROWTH)
