"""Wall time, CPU time and peak memory of a part of a process."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from performance.harness.benchmark import Measurement


def cpu_seconds() -> float:
    """User and system time of this process, its threads, and its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory_bytes() -> int:
    """Largest memory of this process: of its tensors on a GPU if it has used one, otherwise the resident memory.

    Resident memory is that of a child that has ended if it was larger.  Linux counts `VmHWM` from the start of the
    program.  `ru_maxrss` begins with that of the process that started it.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return max(int(line.split()[1]) * 1024, children)
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, children)


class Stopwatch:
    """Times a `with` block.

    with Stopwatch() as watch:
        trainer.train()
    return watch.measurement(amount=64)
    """

    def __enter__(self) -> Stopwatch:
        self._cpu = cpu_seconds()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu_seconds = cpu_seconds() - self._cpu

    def measurement(
        self, *, amount: float | None = None, result: tuple[float, ...] = (), details: Mapping[str, Any] | None = None
    ) -> Measurement:
        """What was measured, for the runner."""
        return Measurement(
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            peak_memory_bytes=peak_memory_bytes(),
            amount=amount,
            result=result,
            details=details or {},
        )
