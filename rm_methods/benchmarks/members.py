"""The runs that a combined run (an ensemble, WARM) is made of, for its metrics without each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rm_methods.errors import DataError
from rm_methods.run_card import RunSummary
from rm_methods.stored import read_record, score_report


@dataclass(frozen=True)
class Members:
    """Members of a combined run.

    Attributes:
        seeds: of the members.
        tables: by benchmark, their score tables in the order of the seeds.
        left_out_scores: from the scores of members [M, R] and combination [R], those without each member [M, R]
            (`CombinedMethod.left_out_scores`); None if the method does not define them.
    """

    seeds: tuple[int, ...]
    tables: Mapping[str, Sequence[Path]]
    left_out_scores: Callable[[np.ndarray, np.ndarray], np.ndarray | None]


def member_table(seed: int) -> str:
    """Name of a member's score table in `made_from` of metrics.json."""
    return f"scores of member {seed}"


def read_members(
    summary: RunSummary,
    tables: Mapping[str, Sequence[Path]],
    left_out_scores: Callable[[np.ndarray, np.ndarray], np.ndarray | None],
) -> Members:
    """Members by their score tables; the reports beside the tables say which runs they are.

    Args:
        summary: of the combined run.
        tables: by benchmark.
        left_out_scores: as in `Members`.

    Raises:
        UserError: a report is missing.
        DataError: the tables are not those of the runs that the combination was made of, in its order.
    """
    seeds: tuple[int, ...] = ()
    for benchmark, paths in tables.items():
        runs = [_scored_run(path) for path in paths]
        _check_members(summary, [run_key for _, run_key in runs], benchmark)
        seeds = tuple(seed for seed, _ in runs)
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"--member-scores: members have equal seeds ({', '.join(map(str, seeds))}), so none can be named."
        )
    return Members(seeds, tables, left_out_scores)


def _scored_run(table: Path) -> tuple[int, str]:
    """Seed and run key of the run that a score table belongs to."""
    model = read_record(score_report(table), "a report of a run's scores", "score")["model"]
    return model["seed"], model["run_key"]


def _check_members(summary: RunSummary, run_keys: Sequence[str], benchmark: str) -> None:
    required = summary.get("depends_on", {}).get("required", {})
    if list(run_keys) in required.values() and len(run_keys) > 1:
        return
    made_of = "; ".join(f"{setting}: {', '.join(keys)}" for setting, keys in required.items()) or "no other runs"
    raise DataError(
        f"--member-scores: the tables of {benchmark} are of the runs {', '.join(run_keys)}, but "
        f"{summary['variant']} seed {summary['seed']} is made of {made_of}. Give the table of each of its members, in "
        "that order; score them again if they were trained again."
    )
