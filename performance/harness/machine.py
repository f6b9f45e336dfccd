"""The machine and the versions that a record names."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from rm_methods.system.provenance import package_versions

ROOT = Path(__file__).parents[2]
# What decides how fast bf16 and fp32 matrix products are.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
PACKAGES = ("torch", "transformers", "trl")
QUIET = 0.25  # share of the cores' time


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_share() -> float:
    """Share of the time of our cores that other programs use during the next second, 0 to 1.

    Unlike the load average, it contains nothing of a benchmark that ended just before.
    """
    import psutil  # a side's Python (`--python`) may lack it

    percents = psutil.cpu_percent(interval=1.0, percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(percents)))
    # A container may list fewer cores than the system, under other numbers: then all that it lists.
    ours = [percent for core, percent in enumerate(percents) if core in allowed] or percents
    return sum(ours) / len(ours) / 100


def describe_machine() -> dict[str, Any]:
    """Processor, memory, versions, commit, date and load."""
    fields = _processor_fields()
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_bytes": _memory_bytes(),
        "gpu": _gpu(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": package_versions(*PACKAGES),
        **revision(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    commit = (machine["git_commit"] or "no commit")[:12] + (" with changes" if machine["git_dirty"] else "")
    gpu = f"{machine['gpu']}; " if machine["gpu"] else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['flags']) or 'no vector flags read'}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {gpu}Python {machine['python']}, {versions}; commit {commit}; "
        f"{_others(machine)} at the start; {machine['date'][:10]}"
    )


def _others(machine: dict[str, Any]) -> str:
    # Submissions from before it was measured have only the load average.
    if "busy_share" in machine:
        return f"cores {machine['busy_share']:.0%} busy"
    return f"load {machine['load_average'][0]:.2f}"


def revision() -> dict[str, Any]:
    """The commit, and whether files other than records and documents differ from it."""
    try:
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!performance/results", ":!docs")
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": bool(changes)}


def git(*words: str) -> str:
    """Output of a git command in the repository."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor_fields() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    lines = file.read_text().split("\n\n")[0].splitlines()
    pairs = [line.partition(":") for line in lines]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    names = done.stdout.strip().splitlines()
    return f"{len(names)} x {names[0]}" if not done.returncode and names else None
