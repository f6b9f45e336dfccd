"""Where a result comes from: code, commit, packages, machine.  Imports nothing heavy: the Snakefile uses it too."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from rm_methods.files import content_hash, file_hash

PACKAGE = Path(__file__).parents[1]
REPOSITORY = PACKAGE.parent

# What a stage's result depends on, besides configuration and data.  Paths below the package; a folder stands for its Python files.
_POLICIES = (
    "policies/policy.py",
    "policies/log_probabilities.py",
    "reward_models/backbones.py",
    "reward_models/tokenization.py",
)
_GOLD = ("overoptimization/gold.py", "preferences/world/gold.py", "preferences/world/vocabulary.py")
_STAGE_CODE = {
    "prepare": ("preferences",),
    "backbone": ("reward_models/backbones.py", "reward_models/tokenization.py"),
    "items": (
        "benchmarks",
        "preferences/pair.py",
        "preferences/conversation_text.py",
        "preferences/file_formats.py",
        "preferences/file_rows.py",
        "preferences/read_report.py",
        "preferences/readers/hh_rlhf.py",
    ),
    "train": ("training", "reward_models", "methods/contract.py", "preferences/noise.py"),
    "score": ("scoring", "reward_models"),
    "evaluate": ("benchmarks",),
    "diagnose": (
        *("diagnostics/attention.py", "diagnostics/diagnose.py", "diagnostics/masking.py", "diagnostics/pairs.py"),
        *("diagnostics/records.py", "diagnostics/runs.py", "diagnostics/position_bins.py"),
        *("scoring", "reward_models"),
    ),
    "diagnose_teacher": (
        *("diagnostics/teacher_distance.py", "diagnostics/pairs.py", "diagnostics/records.py"),
        *("interaction", "methods/interaction_distillation.py", "scoring", "reward_models"),
    ),
    "sft": (
        *_POLICIES,
        "policies/sft.py",
        "training/trainer.py",
        "overoptimization/draw.py",
        "policies/make_policy.py",
        "ppo/run.py",
    ),
    "sample": (
        *_POLICIES,
        "policies/sampling.py",
        *_GOLD,
        "overoptimization/pools.py",
        "overoptimization/draw.py",
        "policies/make_policy.py",
        "ppo/run.py",
        "scoring",
    ),
    "ppo": (
        *("ppo", "overoptimization/draw.py", "policies/make_policy.py", "ppo/run.py"),
        *("policies", "scoring", "reward_models", "system/deepspeed", *_GOLD),
    ),
    "overoptimization": (
        *(
            "overoptimization",
            "overoptimization/ppo_evaluations.py",
            "ppo/records.py",
            "comparison",
            "statistics/bootstrap.py",
            "diagnostics/tables.py",
        ),
        *("benchmarks/pool_grading.py", "benchmarks/evaluation.py"),
    ),
    "diagnose_summary": ("diagnostics", "comparison/figures.py", "comparison/tables.py"),
    "compare": ("comparison", "statistics", "config/variants.py"),
    "tune": ("comparison/tuning.py", "comparison/tables.py"),
    "track": ("tracking",),
}


@cache
def code_hash(stage: str, *extra: str) -> str:
    """Hash of the code that a stage runs; Snakemake reruns a job when it changes.

    Args:
        stage: name of a stage.
        extra: more files (absolute paths), such as those of the method that is trained.
    """
    files: list[Path] = []
    for part in _STAGE_CODE[stage]:
        path = PACKAGE / part
        files += sorted(p for p in path.rglob("*") if p.suffix in (".py", ".json")) if path.is_dir() else [path]
    files += [Path(name) for name in extra]
    return file_hash(*files)


def git_state() -> dict[str, Any]:
    """Commit of the working tree and whether it has uncommitted changes; None outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"git_commit": commit, "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}


def package_versions(*names: str) -> dict[str, str | None]:
    """Installed versions of packages."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


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
