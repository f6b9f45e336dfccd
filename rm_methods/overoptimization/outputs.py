"""Names of the files that the over-optimization summary writes: light, because the Snakefile asks for them in every job."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rm_methods.errors import UserError

_TABLES = ("txt", "md", "tex", "csv")


def pool_stem(pool: str) -> str:
    """Beginning of the names of a pool's own files.

    Raises:
        UserError: the name of the pool is not made for files.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", pool):
        raise UserError(
            f"Pool name {pool!r} is not allowed; use letters, digits, '_', '-' and '.', and begin with a letter or digit."
        )
    return f"best_of_n_{pool}"


def best_of_n_files(pools: Sequence[str]) -> list[str]:
    """Names of everything that `summarise_best_of_n` writes for these pools."""
    per_pool = [f"{pool_stem(pool)}{suffix}" for pool in pools for suffix in (".png", ".svg", "_samples.md")]
    return ["best_of_n.csv", "best_of_n_runs.csv", *(f"best_of_n_table.{suffix}" for suffix in _TABLES), *per_pool]


def ppo_files() -> list[str]:
    """Names of everything that `summarise_ppo` writes."""
    return ["ppo.csv", *(f"ppo_table.{suffix}" for suffix in _TABLES), "ppo.png", "ppo.svg"]


def run_metrics(variant: str, seed: int) -> str:
    """Name of the file with what Best-of-N says of one run, for the tracking store."""
    return f"runs/{variant}/seed{seed}.json"
