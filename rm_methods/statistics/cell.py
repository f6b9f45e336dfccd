"""What a table says about one variant in one column."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rm_methods.statistics.intervals import ALPHA, Difference, Estimate, holm


@dataclass(frozen=True)
class Cell:
    """One variant on one column.

    Attributes:
        estimate: mean and interval, in the units of the credits (usually 0 to 1).
        difference: paired difference to the reference; None for the reference itself, without a reference, or where it
            lacks the column.
        p_holm: p value of the difference after Holm's correction over the column; NaN where there is not enough
            evidence.
        verdict: "reference", "significant", "not significant", "not enough evidence", or "" (no reference to compare
            with).
        tie_rate: mean over seeds, None if not recorded.
        n_scored, n_total: items scored and items of the benchmark, summed over seeds.
        n_truncated: of the benchmark, largest over seeds, None if not recorded.
    """

    estimate: Estimate
    difference: Difference | None = None
    p_holm: float = float("nan")
    verdict: str = ""
    tie_rate: float | None = None
    n_scored: int = 0
    n_total: int = 0
    n_truncated: int | None = None


def with_verdicts(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """The cells of one column that have a difference to the reference, with Holm's p values and their verdicts."""
    p_values = {}
    for variant, cell in cells.items():
        if cell.difference is not None:
            p_values[variant] = cell.difference.p_value if cell.difference.enough_evidence else math.nan
    adjusted = zip(p_values, holm(list(p_values.values())), strict=True)
    return {variant: replace(cells[variant], p_holm=p, verdict=_verdict(p)) for variant, p in adjusted}


def _verdict(p_holm: float) -> str:
    if math.isnan(p_holm):
        return "not enough evidence"
    return "significant" if p_holm < ALPHA else "not significant"
