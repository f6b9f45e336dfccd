"""Seed variance of one variant, moderated by that of all variants of a column.

Three runs say little about the variance between runs: their sample variance is small by luck often enough to make
false stars.  All variants of a column together say much more, if their variances are alike.  So each variance is
averaged with the pooled one, weighted by degrees of freedom:

    V' = (f V + f0 V_pool) / (f + f0),    with f + f0 degrees of freedom,    f0 = min(PRIOR_FREEDOM, f_pool - f)

f are the degrees of freedom of the variant's runs, and f_pool those of the pool, which contains them.  So a pool of two
variants, whose difference is the one in question, adds nothing, and a pool of three adds what the third knows.  This is
the moderated t statistic of Smyth ("Linear models and empirical Bayes methods", 2004, equation 3.4; the R package
limma) with a fixed prior weight; limma estimates the weight, which needs hundreds of rows where a table has ten.  The
weight was chosen by simulation, also with unequal variances (docs/comparison.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PRIOR_FREEDOM = 4  # how many degrees of freedom the pooled variance counts for


@dataclass(frozen=True)
class SeedPool:
    """Variance of a single run, pooled over variants.

    Attributes:
        variance: of the metric of one run.
        freedom: its degrees of freedom.
    """

    variance: float
    freedom: int


def moderated(variance: float, freedom: int, pool: SeedPool | None, scale: float) -> tuple[float, int]:
    """The moderated variance and its degrees of freedom.

    Args:
        variance: V of a mean over runs.
        freedom: of `variance`.
        pool: None leaves the variance unchanged.
        scale: what the pool's variance is multiplied by to be comparable: 1 / S for a mean over S runs, 2 / S for a
            paired difference.
    """
    added = min(PRIOR_FREEDOM, pool.freedom - freedom) if pool is not None else 0
    if pool is None or added <= 0:
        return variance, freedom
    total = freedom + added
    return (freedom * variance + added * scale * pool.variance) / total, total


def pool_within(runs: Sequence[Mapping[int, float]]) -> SeedPool | None:
    """Variance of runs around the mean of their variant; None without a variant of two runs.

    Args:
        runs: of each variant, seed -> metric.
    """
    squares = 0.0
    freedom = 0
    for by_seed in runs:
        values = np.array(list(by_seed.values()), dtype=np.float64)
        squares += float(((values - values.mean()) ** 2).sum())
        freedom += len(values) - 1
    return SeedPool(squares / freedom, freedom) if freedom > 0 else None


def pool_shares(runs: Sequence[Mapping[int, float]]) -> SeedPool | None:
    """Variance of runs around the mean m of their variant, in units of m (1 - m).

    A share near 0 or 1 has little room to vary.  In these units, a variant near chance does not lend its variance to
    one near 1.

    Args:
        runs: of each variant, seed -> metric from 0 to 1.

    Returns:
        None without a variant of two runs whose mean is not 0 or 1.
    """
    in_units = []
    for by_seed in runs:
        mean = sum(by_seed.values()) / len(by_seed)
        if 0 < mean < 1:
            unit = math.sqrt(mean * (1 - mean))
            in_units.append({seed: metric / unit for seed, metric in by_seed.items()})
    return pool_within(in_units)


def pool_paired(runs: Sequence[Mapping[int, float]]) -> SeedPool | None:
    """Residual variance of the table variants x seeds: what is left of a run once its variant and its seed are known.

    A seed that two variants share (the same order of data, the same start) drops out of their paired difference, and so
    it does here.  Missing runs are allowed: the additive model is fitted by least squares.

    Args:
        runs: of each variant, seed -> metric.

    Returns:
        None without degrees of freedom.
    """
    cells = [(variant, seed, value) for variant, by_seed in enumerate(runs) for seed, value in by_seed.items()]
    if not cells:
        return None
    variants, seeds, values = zip(*cells, strict=True)
    seed_codes = np.unique(np.array(seeds), return_inverse=True)[1]
    effects = np.zeros((len(cells), len(runs) + seed_codes.max() + 1))
    position = np.arange(len(cells))
    effects[position, np.array(variants)] = 1.0
    effects[position, len(runs) + seed_codes] = 1.0
    measured = np.array(values, dtype=np.float64)
    solution, _, rank, _ = np.linalg.lstsq(effects, measured, rcond=None)
    freedom = len(cells) - int(rank)
    if freedom <= 0:
        return None
    return SeedPool(float(((measured - effects @ solution) ** 2).sum()) / freedom, freedom)
