"""What a table says about one variant in one column, and the corrections over many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rm_methods.statistics.corrections import ALPHA, holm
from rm_methods.statistics.error_law import ErrorLaw
from rm_methods.statistics.intervals import Estimate

POWER = 0.8  # of the least detectable difference


@dataclass(frozen=True)
class Difference:
    """A difference from the reference: candidate minus reference.

    Attributes:
        estimate: of the difference; `n_seeds` counts the pairs of runs.
        p_value: two-sided, from the law of the error; NaN where none is defined.
        tested: the candidate is a hypothesis of its column: trained, with enough pairs of runs, as is the reference.
        pairing: "same seed", "order of seeds" (no seed in common), or "mean of runs" (one side is a single scorer).
    """

    estimate: Estimate
    p_value: float
    tested: bool
    pairing: str


@dataclass(frozen=True)
class Cell:
    """One variant on one column.

    Attributes:
        estimate: mean and interval, in the units of the credits (usually 0 to 1).
        difference: from the reference; None for the reference itself, without one, or where it lacks the column.
        p_holm: p value of the difference after Holm's correction; NaN where it is not tested.
        verdict: "reference", "significant", "not significant", "not enough evidence" (trained, with too few runs or no
            spread), "not tested" (content-blind rows and combinations of runs), or "" (no reference to compare with).
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

    @property
    def tested(self) -> bool:
        """Whether the difference has a p value that counts as a test."""
        return self.difference is not None and self.difference.tested and not math.isnan(self.difference.p_value)


def with_verdicts(cells: Mapping[Any, Cell]) -> dict[Any, Cell]:
    """Cells with Holm's p values and verdicts.

    Args:
        cells: of one family of tests: a column, or a whole table.  Cells without a test keep their verdict.
    """
    tested = [key for key, cell in cells.items() if cell.tested]
    differences = [cells[key].difference for key in tested]
    adjusted = holm([difference.p_value for difference in differences if difference is not None])
    judged = dict(cells)
    for key, p_holm in zip(tested, adjusted, strict=True):
        verdict = "significant" if p_holm < ALPHA else "not significant"
        judged[key] = replace(cells[key], p_holm=p_holm, verdict=verdict)
    return judged


def least_detectable(difference: Difference, n_tests: int) -> float:
    """The true difference that a study like this one would call significant with a probability of 80%.

    NaN where the difference has no spread.

    Args:
        n_tests: in the family.
    """
    law = difference.estimate.law
    return math.nan if law is None else detectable_under(law, n_tests)


def detectable_under(law: ErrorLaw, n_tests: int) -> float:
    """The least detectable difference, if the error of a difference has this law.

    It is the standard error times the critical value of Holm's first step, plus the quantile of the error that is
    exceeded with 80% probability (Lehr's rule with the law of the error in place of the normal one).  NaN without
    spread.

    Args:
        n_tests: in the family.
    """
    critical = law.quantile(1 - ALPHA / n_tests)
    # Two-sided probability 2 * POWER - 1 leaves 1 - POWER in one tail.
    return law.standard_error * (critical + law.quantile(2 * POWER - 1))
