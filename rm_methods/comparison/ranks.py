"""Mean rank of every method over the columns, and the critical difference between two mean ranks.

The columns of a table share their runs, so they are not independent samples, and the usual diagram over data sets
(Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006) would be too sure.  Here the seeds
are the blocks.  Each seed ranks the methods on every column; its mean over the columns is one value for each method.
With the residual mean square MS of methods x seeds, of f = (K - 1)(S - 1) degrees of freedom,

    interval             mean rank +- t(f) sqrt(MS / S)
    critical difference  q(K, f) sqrt(MS / S)

where q is the quantile of the studentized range (Tukey): with 95% confidence no two of K equal methods differ by more.
Other seeds would give these ranks; other items or benchmarks are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rm_methods.statistics.error_law import CONFIDENCE

MIN_COLUMNS = 4
MIN_SEEDS = 3


@dataclass(frozen=True)
class MeanRank:
    """Mean rank of one variant, 1 is best, with its 95% limits."""

    variant: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class RankTable:
    """Mean ranks, best first.

    Attributes:
        critical_difference: two variants whose mean ranks differ by less are not told apart.
        groups: for each longest run of variants that are not told apart, positions (first, last) in `ranks`.
    """

    ranks: tuple[MeanRank, ...]
    critical_difference: float
    groups: tuple[tuple[int, int], ...]
    n_seeds: int
    n_columns: int


def rank_table(variants: Sequence[str], columns: Sequence[Mapping[str, Mapping[int, float]]]) -> RankTable | None:
    """Mean ranks over the columns.

    Args:
        variants: to be ranked, each with several runs and a metric in every column.
        columns: of each column, variant -> seed -> metric.

    Returns:
        None with fewer than two variants, four columns or three seeds that all share.
    """
    if len(variants) < 2 or len(columns) < MIN_COLUMNS:
        return None
    seeds = set.intersection(*(set(column[variant]) for column in columns for variant in variants))
    if len(seeds) < MIN_SEEDS:
        return None
    values_CVS = np.array([[[column[v][s] for s in sorted(seeds)] for v in variants] for column in columns])
    if not np.isfinite(values_CVS).all():
        return None
    ranks_VS = mean_ranks(values_CVS)
    n_variants, n_seeds = ranks_VS.shape
    mean_V = ranks_VS.mean(axis=1)
    freedom = (n_variants - 1) * (n_seeds - 1)
    # The mean rank of all variants is the same under every seed, so a seed has no effect that would have to be removed.
    mean_square = float(((ranks_VS - mean_V[:, None]) ** 2).sum()) / freedom
    error = float(np.sqrt(mean_square / n_seeds))
    return _table([str(variant) for variant in variants], mean_V, error, freedom, n_seeds, len(columns))


def mean_ranks(values_CVS: np.ndarray) -> np.ndarray:
    """Rank of each variant under each seed, averaged over columns, [variants, seeds]; equal values share their ranks.

    Args:
        values_CVS: metric [columns, variants, seeds]; larger is better.
    """
    from scipy.stats import rankdata

    # Means over items may differ in the last bits where they are equal.
    return rankdata(-np.round(values_CVS, 12), axis=1).mean(axis=0)


def _table(
    variants: list[str], mean_V: np.ndarray, error: float, freedom: int, n_seeds: int, n_columns: int
) -> RankTable:
    from scipy.stats import studentized_range, t

    reach = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    critical = float(studentized_range.ppf(CONFIDENCE, len(variants), freedom)) * error
    order = sorted(range(len(variants)), key=lambda k: mean_V[k])
    ranks = tuple(
        MeanRank(
            variant=variants[k],
            mean=float(mean_V[k]),
            low=max(float(mean_V[k]) - reach, 1.0),
            high=min(float(mean_V[k]) + reach, float(len(variants))),
        )
        for k in order
    )
    return RankTable(ranks, critical, _groups([rank.mean for rank in ranks], critical), n_seeds, n_columns)


def _groups(means: list[float], critical: float) -> tuple[tuple[int, int], ...]:
    """The longest runs of ranks whose ends differ by less than the critical difference."""
    groups: list[tuple[int, int]] = []
    for first, mean in enumerate(means):
        last = max(k for k, other in enumerate(means) if other - mean < critical or k == first)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return tuple(groups)
