"""Where a result comes from: code, commit, packages, machine.  Imports nothing heavy: the Snakefile uses it too."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

from rm_methods.files import content_hash, file_hash

PACKAGE = Path(__file__).parents[1]
REPOSITORY = PACKAGE.parent


def git_state() -> dict[str, Any]:
    """Commit of the working tree and whether it has uncommitted changes; None outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"git_commit": commit, "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}


def package_versions(*names: str) -> dict[str, str | None]:
    """Installed versions of packages."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def provenance(code: str) -> dict[str, Any]:
    """The provenance block of a run's summary.

    Args:
        code: the code hash of the run.
    """
    lock = REPOSITORY / "constraints.txt"
    return {
        **git_state(),
        "package_lock_hash": file_hash(lock) if lock.exists() else None,
        "code_hash": code,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": package_versions(
            "torch", "transformers", "accelerate", "deepspeed", "peft", "datasets", "rm-methods"
        ),
    }


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far (Linux reports kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def key_of(*parts: Any) -> str:
    """One key for everything a result depends on."""
    return content_hash(list(parts))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
