"""How a training or scoring process uses the CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST_INT = 2**31 - 1
_GROWTH = 256 * 2**20  # bytes the heap grows by


def return_freed_memory() -> None:
    """Give freed memory back to the system, which `prepare_cpu` keeps: after the process ran out of it."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


def prepare_cpu(threads: int, precision: str = "fp32") -> None:
    """Set torch's threads (0 leaves them), keep freed memory in the process, and say if bf16 is slow here.

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
    if precision == "bf16":
        import torch

        from rm_methods.system.ranks import print_once

        note = None if torch.cuda.is_available() else bf16_note(torch.cpu.get_capabilities())
        if note is not None:
            print_once(note)


def bf16_note(capabilities: Mapping[str, object]) -> str | None:
    """What to say about bf16 on this processor; None if it computes bf16, or is of another kind than x86.

    Args:
        capabilities: from `torch.cpu.get_capabilities()`.
    """
    if capabilities.get("architecture") != "x86_64":
        return None
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        return None
    return (
        "This processor has no bf16 instructions, so precision: bf16 gives the same results but is slower than "
        "precision: fp32 (docs/speed.md)."
    )
