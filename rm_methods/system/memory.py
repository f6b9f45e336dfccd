"""Memory: how much main memory this node has for a run, whether an offloaded optimizer fits, and which errors say that
memory was exhausted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError

# Bytes of a trained parameter in fp32 under ZeRO: weight, gradient, the optimizer's copy of the weight, Adam's two
# moments.
WEIGHT = 4
GRADIENT = 4
MASTER = 4
MOMENTS = 8

# What torch, CUDA's libraries and the C++ library say; MemoryError is Python's own.
_EXHAUSTED = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "could not create a memory",  # these are of oneDNN
    "could not create a primitive",
    "could not execute a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was exhausted, on a GPU or on a CPU.

    The kernel's OOM killer ends a process without an error, so on a CPU this sees only limits of the process
    (`ulimit -v`) and a kernel that refuses more than it has.
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower().replace("primitive descriptor", "")  # oneDNN on something that it cannot compute at all
    return isinstance(error, RuntimeError) and any(words in text for words in _EXHAUSTED)


def offloaded_bytes(trainable: int, nodes: int = 1) -> int:
    """Main memory of a node for the optimizer's copy of the weights, its moments and the gradients."""
    return (GRADIENT + MASTER + MOMENTS) * trainable // nodes


def check_offload(parameters: int, zero: Mapping[str, Any], nodes: int = 1) -> None:
    """Refuse to offload the optimizer to too little main memory: the system would kill a rank in the first step.

    Raises:
        UserError: gives the memory needed, the memory available, and what to change.
    """
    if (zero.get("offload_optimizer") or {}).get("device") != "cpu":
        return
    needed = offloaded_bytes(parameters, nodes)
    source, free = main_memory()
    if needed > free:
        raise UserError(
            f"training.deepspeed: offloading the optimizer of {parameters:,} parameters takes {needed / 2**30:.1f} GiB "
            f"of main memory on each of {nodes} nodes, but only {free / 2**30:.1f} GiB are free ({source}). Ask for "
            "more memory (resources.memory_mb) or more nodes, or use zero3 on more GPUs, which offloads nothing."
        )


def main_memory(root: Path = Path("/")) -> tuple[str, int]:
    """The main memory of this node that a run may use: the source of the number, and bytes.  The smallest of

    * the free memory of the machine;
    * the limits of the control groups that this process is in, version 1 and 2 (a container or a cluster job);
    * the memory of the Slurm job (SLURM_MEM_PER_NODE, in MiB), which not every cluster enforces by control groups.

    Args:
        root: folder of /proc and /sys.
    """
    import psutil

    amounts = {"free on the machine": psutil.virtual_memory().available}
    limits = [limit for file in _limit_files(root) if (limit := _limit(file)) is not None]
    if limits:
        amounts["limit of the control group"] = min(limits)
    if slurm := _slurm_limit():
        amounts["SLURM_MEM_PER_NODE"] = slurm
    source = min(amounts, key=amounts.__getitem__)
    return source, amounts[source]


def unused_memory(root: Path = Path("/")) -> tuple[str, int]:
    """The main memory that this process can still get: the source of the number, and bytes.

    The limits of `main_memory` count without what is used already: by the control group (without files that the kernel
    would drop first), and by this process alone of a Slurm job.  So does the limit of this process's address space
    (`ulimit -v`).

    Args:
        root: folder of /proc and /sys.
    """
    import resource

    import psutil

    process = psutil.Process().memory_info()
    amounts = {"free on the machine": psutil.virtual_memory().available}
    groups = [limit - _used(file) for file in _limit_files(root) if (limit := _limit(file)) is not None]
    if groups:
        amounts["left of the control group's limit"] = min(groups)
    if slurm := _slurm_limit():
        amounts["left of SLURM_MEM_PER_NODE"] = slurm - process.rss
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        amounts["left of the address space (ulimit -v)"] = address_space - process.vms
    source = min(amounts, key=amounts.__getitem__)
    return source, max(0, amounts[source])


def _slurm_limit() -> int:
    """Memory of the Slurm job on this node, bytes; 0 outside of a job, and with --mem=0, which asks for the node."""
    slurm = os.environ.get("SLURM_MEM_PER_NODE", "")
    return int(slurm) * 2**20 if slurm.isdecimal() else 0


def _used(limit_file: Path) -> int:
    """Bytes that a control group uses, without those of files that are not in active use; 0 if it does not say."""
    name = "memory.current" if limit_file.name == "memory.max" else "memory.usage_in_bytes"
    used = _limit(limit_file.with_name(name)) or 0
    try:
        lines = limit_file.with_name("memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return used
    counts = dict(line.split(" ", 1) for line in lines if " " in line)
    inactive = counts.get("total_inactive_file") or counts.get("inactive_file", "0")
    return max(0, used - int(inactive))


def _limit_files(root: Path) -> list[Path]:
    """Files with the memory limits of this process's control groups and of those around them, present or not.

    Lines of /proc/self/cgroup are `number:controllers:path`, without controllers in version 2.  In a container the
    path may be that of the host, which does not exist in it.  Its group is then the topmost one, so that one is read,
    too.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    files = []
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":
            top = root / "sys/fs/cgroup"
            name = "memory.max"
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            name = "memory.limit_in_bytes"
        else:
            continue
        path = Path(group.lstrip("/"))
        files += [top / folder / name for folder in (path, *path.parents)]
    return files


def _limit(file: Path) -> int | None:
    """The limit in a file; None if the file is missing or says "max".  (Version 1 writes a number beyond any machine's
    memory if it has no limit.)"""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
