"""What a table says about one variant in one column."""

from __future__ import annotations

from dataclasses import dataclass

from rm_methods.statistics.intervals import Difference, Estimate


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
