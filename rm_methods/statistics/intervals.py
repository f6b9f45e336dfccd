"""Confidence intervals that count both the seeds of training and the items of a benchmark.

Credits y[i, s] of item i under seed s follow the two-way random-effects model y[i, s] = mu_h + A_s + B_i + E_is: every
seed is scored on every item (crossed), items are nested in strata.  The variance of the metric averaged over S seeds
then has two parts, and two sums estimate them without bias:

    V_seed = var_s(m_s) / S                                           expects  sd(A)^2/S + sum_h W_h^2 sd(E)^2/(S n_h)
    V_item = sum_h W_h^2 (MS_item,h - MS_resid,h) / (S n_h)           expects  sum_h W_h^2 sd(B)^2/n_h
    V      = V_seed + max(V_item, 0)

With one stratum this is (MS_seed + MS_item - MS_resid) / (S n), the textbook variance of a grand mean with two crossed
random factors (Brennan, Generalizability Theory, 2001, section 5; Owen, Annals of Applied Statistics 2007,
"pigeonhole" model).  With one seed only the items can be counted: V_item = sum_h W_h^2 s_h^2 / n_h.

Items that share a `group` (a prompt) are not independent.  The group then is the unit: the metric is linearized to one
value a group and seed, u[g, s] = sum over its items of (W_h / n_h) * (y[i, s] - mean of stratum h under seed s), and
the mean squares above are taken over groups: n_h/(n_h - 1) becomes G/(G - 1) of the G groups.  This is the usual
linearized (Taylor) variance of stratified cluster samples of unequal size (Cochran, Sampling Techniques, 1977; Miller,
"Adding Error Bars to Evals", 2024, for benchmarks); with one item a group it is exactly the formula above.  Strata
that share a group are treated as one block; a stratum with a single group has no spread, so its deviation
from the metric itself is used (the "adjust" rule of R's `survey` package).

V_seed may be moderated by the other variants of a column (`moderation.py`).  The law of the error is in `error_law.py`.
Measured coverage is in docs/comparison.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_methods.statistics.designs import ItemDesign
from rm_methods.statistics.error_law import CONFIDENCE, ErrorLaw
from rm_methods.statistics.moderation import SeedPool, moderated

_ROUNDING = 1e-9  # a share this near to 0 or 1 is 0 or 1


@dataclass(frozen=True)
class Estimate:
    """A metric (or a difference of two) with its interval, in the units of the credits.

    Attributes:
        mean: averaged over seeds.
        low, high: limits of the interval; NaN where nothing can be said.
        law: variance by its parts, and the law of the error; None where nothing varies.
        basis: what the interval counts: "seeds and items", "members and items" (a combination of runs), "items" (one
            run), "seeds" (no credits), or "nothing".
        n_seeds, n_items, n_clusters: 0 items and clusters where only seeds are counted.
    """

    mean: float
    low: float
    high: float
    law: ErrorLaw | None
    basis: str
    n_seeds: int
    n_items: int
    n_clusters: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def standard_error(self) -> float:
        return self.law.standard_error if self.law is not None else math.nan


@dataclass(frozen=True)
class VarianceParts:
    """The two parts of a metric's variance, before any moderation.

    Attributes:
        seed, seed_freedom: V_seed and S - 1; 0 and 0 for one seed.
        item, item_freedom: V_item, not negative, and Satterthwaite's degrees of freedom over the strata.
        residual: the part of V_seed that more items would shrink, sum_h W_h^2 MS_resid,h / (S n_h); 0 for one seed.
    """

    seed: float
    seed_freedom: int
    item: float
    item_freedom: float
    residual: float = 0.0


def estimate(
    credits: np.ndarray,
    design: ItemDesign,
    pool: SeedPool | None = None,
    *,
    pooled_per_run: float = 1.0,
    may_be_share: bool = True,
) -> Estimate:
    """Mean and 95% interval of a metric.

    Args:
        credits: float64 [items, seeds], complete (every seed scored every item), in the item order of `design`.
        pool: of the column, to moderate the seed variance; None uses the seeds at hand alone.
        pooled_per_run: how many times the pool's variance a run has: 1 for a metric, 2 for a paired difference.
        may_be_share: limits of credits from 0 to 1 are Wilson's; False for differences and other metrics without such
            limits, whose interval is symmetric.
    """
    credits = np.asarray(credits, dtype=np.float64)
    n_seeds = credits.shape[1]
    per_seed = design.coefficient @ credits
    parts = variance_parts(credits, design)
    seed_variance, seed_freedom = parts.seed, parts.seed_freedom
    if n_seeds > 1:
        seed_variance, seed_freedom = moderated(parts.seed, parts.seed_freedom, pool, pooled_per_run / n_seeds)
    return with_interval(
        float(per_seed.mean()),
        ErrorLaw(seed_variance, max(seed_freedom, 1), parts.item, parts.item_freedom),
        basis="items" if n_seeds == 1 else "seeds and items",
        n_seeds=n_seeds,
        design=design,
        is_share=may_be_share and bool(np.all((credits >= 0) & (credits <= 1))),
    )


def estimate_from_seeds(
    values: Sequence[float], pool: SeedPool | None = None, *, pooled_per_run: float = 1.0
) -> Estimate:
    """Mean and 95% interval of a metric that has no credits: Student's t over the seeds, items are not counted."""
    n_seeds = len(values)
    seed_variance, seed_freedom = 0.0, 0
    if n_seeds > 1:
        own_variance = float(np.var(values, ddof=1)) / n_seeds
        seed_variance, seed_freedom = moderated(own_variance, n_seeds - 1, pool, pooled_per_run / n_seeds)
    return with_interval(
        float(np.mean(values)),
        ErrorLaw(seed_variance, max(seed_freedom, 1), 0.0, 1.0),
        basis="seeds" if n_seeds > 1 else "nothing",
        n_seeds=n_seeds,
        design=None,
        is_share=False,
    )


def with_interval(
    mean: float, law: ErrorLaw, *, basis: str, n_seeds: int, design: ItemDesign | None, is_share: bool
) -> Estimate:
    """The estimate with its limits.

    Args:
        is_share: every credit is from 0 to 1, so the limits are of Wilson's kind and stay there; else the limits are
            symmetric.
    """
    if is_share and design is not None and min(abs(mean), abs(1 - mean)) < _ROUNDING:
        # All right or all wrong: the number of items says how sure that is, and the parts that a jackknife leaves out.
        low, high = score_limits(round(mean), ErrorLaw(0.0, 1, 1.0, math.inf).quantile(CONFIDENCE), design.n_clusters)
        if law.defined:
            reach = law.quantile(CONFIDENCE) * law.standard_error
            low, high = max(min(low, mean - reach), 0.0), min(max(high, mean + reach), 1.0)
    elif law.defined and math.isfinite(mean):
        reach = law.quantile(CONFIDENCE)
        low, high = mean - reach * law.standard_error, mean + reach * law.standard_error
        if is_share:
            low, high = score_limits(mean, reach, mean * (1 - mean) / law.variance)
    else:
        low, high, basis = math.nan, math.nan, "nothing"
    return Estimate(
        mean=mean,
        low=low,
        high=high,
        law=law if law.defined else None,
        basis=basis,
        n_seeds=n_seeds,
        n_items=design.n_items if design is not None else 0,
        n_clusters=design.n_clusters if design is not None else 0,
    )


def score_limits(share: float, reach: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of a share, which stays between 0 and 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.  With seeds and
    groups the share has another variance than that of n independent trials; n then is the effective number of items,
    share (1 - share) / V (Kish, Survey Sampling, 1965).

    Args:
        reach: limits in standard errors, 1.96 for 95% of a normal law.
        n: number of items.

    >>> [round(limit, 3) for limit in score_limits(1.0, 1.96, 100)]
    [0.963, 1.0]
    """
    shrink = 1 + reach**2 / n
    center = (share + reach**2 / (2 * n)) / shrink
    half = reach / shrink * math.sqrt(share * (1 - share) / n + reach**2 / (4 * n**2))
    return max(center - half, 0.0), min(center + half, 1.0)


def variance_parts(credits: np.ndarray, design: ItemDesign) -> VarianceParts:
    """V_seed and V_item of the metric averaged over seeds (see the top of the file).

    Args:
        credits: float64 [items, seeds].
    """
    n_seeds = credits.shape[1]
    per_seed = design.coefficient @ credits
    u = _linearized(credits, per_seed, design)
    u_mean = u.mean(axis=1)
    size = np.bincount(design.block)
    # A block of one cluster is centered on the metric, not on its own mean, so it keeps its one degree of freedom.
    block_freedom = np.maximum(size - 1, 1)
    # Mean squares between clusters, per block, scaled by G/S: their sum over blocks is a variance of the metric.
    item = size * np.bincount(design.block, weights=u_mean**2) / block_freedom
    item_freedom = _satterthwaite(item, block_freedom)
    if n_seeds == 1:
        return VarianceParts(seed=0.0, seed_freedom=0, item=float(item.sum()), item_freedom=item_freedom)
    squares = ((u - u_mean[:, None]) ** 2).sum(axis=1)
    residual = size * np.bincount(design.block, weights=squares) / (block_freedom * (n_seeds - 1)) / n_seeds
    return VarianceParts(
        seed=float(per_seed.var(ddof=1)) / n_seeds,
        seed_freedom=n_seeds - 1,
        item=max(float(item.sum() - residual.sum()), 0.0),
        item_freedom=item_freedom,
        residual=float(residual.sum()),
    )


def _linearized(credits: np.ndarray, per_seed: np.ndarray, design: ItemDesign) -> np.ndarray:
    """u [clusters, seeds]: each cluster's weighted sum of deviations from its stratum's mean under the same seed."""
    counts = np.bincount(design.stratum)
    center = np.empty((len(counts), credits.shape[1]))
    for seed in range(credits.shape[1]):
        center[:, seed] = np.bincount(design.stratum, weights=credits[:, seed]) / counts
    expected = np.where(design.lonely[:, None], per_seed[None, :], center[design.stratum])
    deviation = design.coefficient[:, None] * (credits - expected)
    u = np.zeros((design.n_clusters, credits.shape[1]))
    for seed in range(credits.shape[1]):
        u[:, seed] = np.bincount(design.cluster, weights=deviation[:, seed], minlength=design.n_clusters)
    return u


def _satterthwaite(components: np.ndarray, freedom: np.ndarray) -> float:
    """(sum of components)^2 / sum of component^2 / its degrees of freedom; 1 without spread."""
    spread = float((components**2 / freedom).sum())
    return float(components.sum() ** 2 / spread) if spread > 0 else 1.0
