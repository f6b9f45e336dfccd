"""Confidence intervals that count both the seeds of training and the items of a benchmark.

A metric is m = sum_h W_h * mean over the items of stratum h of the credit.  Credits y[i, s] of item i under seed s
follow the two-way random-effects model y[i, s] = mu_h + A_s + B_i + E_is: every seed is scored on every item
(crossed), items are nested in strata.  The variance of the metric averaged over S seeds then has three parts, and two
sums estimate them without bias:

    V_seed = var_s(m_s) / S                                           expects  sd(A)^2/S + sum_h W_h^2 sd(E)^2/(S n_h)
    V_item = sum_h W_h^2 (MS_item,h - MS_resid,h) / (S n_h)           expects  sum_h W_h^2 sd(B)^2/n_h
    V      = V_seed + max(V_item, 0)

With one stratum this is (MS_seed + MS_item - MS_resid) / (S n), the textbook variance of a grand mean with two crossed
random factors (Brennan, Generalizability Theory, 2001, section 5; Owen, Annals of Applied Statistics 2007,
"pigeonhole" model).  With one seed only the items can be counted: V = sum_h W_h^2 s_h^2 / n_h.

Items that share a `group` (a prompt) are not independent.  The group then is the unit: the metric is linearized to one
value a group and seed, u[g, s] = sum over its items of (W_h / n_h) * (y[i, s] - mean of stratum h under seed s), and
the mean squares above are taken over groups: n_h/(n_h - 1) becomes G/(G - 1) of the G groups.  This is the usual
linearized (Taylor) variance of stratified cluster samples of unequal size (Cochran, Sampling Techniques, 1977; Miller,
"Adding Error Bars to Evals", 2024, for benchmarks); with one item a group it is exactly the formula above.  Strata
that share a group are treated as one block; a stratum with a single group has no spread of its own, so its deviation
from the metric itself is used (the "adjust" rule of R's `survey` package).

Degrees of freedom: Satterthwaite on the mean squares, at least S - 1; the interval is mean +- t * sqrt(V).  Measured
coverage is in docs/comparison.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
ALPHA = 0.05
MIN_SEEDS = 3  # fewer paired seeds than this are "not enough evidence"
_NO_SPREAD = 1e-24  # a variance at or below this is rounding, not spread


@dataclass(frozen=True)
class ItemDesign:
    """How the items of one metric are weighted and sampled.

    Attributes:
        coefficient: float64 [items], W_h / n_h: the metric is the sum of coefficient x credit.
        stratum: int64 [items], code of the item's stratum.
        cluster: int64 [items], code of the item's group.
        block: int64 [clusters], code of the sampling block (a stratum, or strata joined by a shared group).
        lonely: bool [items], whether the item's block has one cluster only.
    """

    coefficient: np.ndarray
    stratum: np.ndarray
    cluster: np.ndarray
    block: np.ndarray
    lonely: np.ndarray

    @property
    def n_items(self) -> int:
        return len(self.coefficient)

    @property
    def n_clusters(self) -> int:
        return len(self.block)


def item_design(stratum: ArrayLike, weight: ArrayLike, group: ArrayLike | None = None) -> ItemDesign:
    """The design of a metric's items.

    Args:
        stratum: the stratum of each item.
        weight: W_h of each item's stratum, repeated for its items; the weights of the strata sum to 1.
        group: items of one group are not independent; None: every item is its own group.

    Raises:
        ValueError: if a stratum has two weights or the weights of the strata do not sum to 1 (to 1e-6).
    """
    _, first, stratum_code, counts = np.unique(
        np.asarray(stratum), return_index=True, return_inverse=True, return_counts=True
    )
    weights = np.asarray(weight, dtype=np.float64)
    if not np.array_equal(weights, weights[first][stratum_code]):
        raise ValueError("a stratum has items with different weights")
    if abs(weights[first].sum() - 1.0) > 1e-6:
        raise ValueError(f"the weights of the strata sum to {weights[first].sum():.6g}, not 1")
    if group is None:
        cluster_code = np.arange(len(weights))
    else:
        cluster_code = np.unique(np.asarray(group), return_inverse=True)[1]
    block = _blocks(stratum_code, cluster_code)
    lonely = (np.bincount(block) == 1)[block][cluster_code]
    return ItemDesign(
        coefficient=weights / counts[stratum_code],
        stratum=stratum_code,
        cluster=cluster_code,
        block=block,
        lonely=lonely,
    )


def _blocks(stratum: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Code of the block of each cluster: connected components of clusters that share a stratum and strata that share a
    cluster.

    Strata count as connected only through a cluster that lies in both.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_strata = stratum.max() + 1
    n_clusters = cluster.max() + 1
    edges = coo_array((np.ones(len(stratum)), (stratum, n_strata + cluster)), shape=(n_strata + n_clusters,) * 2)
    return connected_components(edges, directed=False)[1][n_strata:]


@dataclass(frozen=True)
class Estimate:
    """A metric (or a difference of two) with its interval, in the units of the credits.

    Attributes:
        mean: averaged over seeds.
        low, high: limits of the interval; NaN where nothing can be said (no spread at all, or a single value).
        standard_error: sqrt(V); NaN as for the limits.
        degrees_of_freedom: of the t distribution.
        basis: what the interval counts: "seeds and items", "items" (one seed), "seeds" (no credits), or "nothing".
        n_seeds, n_items, n_clusters: 0 items and clusters where only seeds are counted.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    basis: str
    n_seeds: int
    n_items: int
    n_clusters: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def estimate(credits: np.ndarray, design: ItemDesign) -> Estimate:
    """Mean and 95% interval of a metric.

    Args:
        credits: float64 [items, seeds], complete (every seed scored every item), in the item order of `design`.
    """
    credits = np.asarray(credits, dtype=np.float64)
    n_seeds = credits.shape[1]
    per_seed = design.coefficient @ credits
    variance, freedom = _variance(credits, per_seed, design)
    return _with_interval(
        mean=float(per_seed.mean()),
        variance=variance,
        freedom=freedom,
        basis="items" if n_seeds == 1 else "seeds and items",
        n_seeds=n_seeds,
        n_items=design.n_items,
        n_clusters=design.n_clusters,
    )


def estimate_from_seeds(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval of a metric that has no credits: Student's t over the seeds, items are not counted."""
    n_seeds = len(values)
    return _with_interval(
        mean=float(np.mean(values)),
        variance=float(np.var(values, ddof=1)) / n_seeds if n_seeds > 1 else 0.0,
        freedom=max(n_seeds - 1, 1),
        basis="seeds" if n_seeds > 1 else "nothing",
        n_seeds=n_seeds,
        n_items=0,
        n_clusters=0,
    )


def _with_interval(
    *, mean: float, variance: float, freedom: float, basis: str, n_seeds: int, n_items: int, n_clusters: int
) -> Estimate:
    from scipy.stats import t

    if math.isfinite(variance) and variance > _NO_SPREAD:
        error = math.sqrt(variance)
        reach = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    else:
        error = math.nan
        reach = math.nan
        freedom = math.nan
        basis = "nothing"
    return Estimate(
        mean=mean,
        low=mean - reach,
        high=mean + reach,
        standard_error=error,
        degrees_of_freedom=float(freedom),
        basis=basis,
        n_seeds=n_seeds,
        n_items=n_items,
        n_clusters=n_clusters,
    )


def _variance(credits: np.ndarray, per_seed: np.ndarray, design: ItemDesign) -> tuple[float, float]:
    """Variance of the metric averaged over seeds, and its Satterthwaite degrees of freedom (see the top of the
    file)."""
    n_seeds = credits.shape[1]
    u = _linearized(credits, per_seed, design)
    u_mean = u.mean(axis=1)
    size = np.bincount(design.block)
    # A block of one cluster is centered on the metric, not on its own mean, so it keeps its one degree of freedom.
    item_freedom = np.maximum(size - 1, 1)
    # Mean squares between clusters, per block, scaled by G/S: their sum over blocks is a variance of the metric.
    item = size * np.bincount(design.block, weights=u_mean**2) / item_freedom
    if n_seeds == 1:
        return item.sum(), _satterthwaite([(item, item_freedom)])
    residual_freedom = item_freedom * (n_seeds - 1)
    squares = ((u - u_mean[:, None]) ** 2).sum(axis=1)
    residual = size * np.bincount(design.block, weights=squares) / residual_freedom / n_seeds
    seed = np.array([per_seed.var(ddof=1) / n_seeds])
    seed_freedom = np.array([n_seeds - 1])
    item_variance = item.sum() - residual.sum()
    if item_variance <= 0:
        return seed[0], float(n_seeds - 1)
    parts = [(seed, seed_freedom), (item, item_freedom), (-residual, residual_freedom)]
    # The subtracted part can drive the formula below the freedom of the seeds alone, and to absurd t quantiles; since
    # V >= V_seed, S - 1 is a safe floor.
    return seed[0] + item_variance, max(_satterthwaite(parts), float(n_seeds - 1))


def _linearized(credits: np.ndarray, per_seed: np.ndarray, design: ItemDesign) -> np.ndarray:
    """u [clusters, seeds]: each cluster's weighted sum of deviations from its stratum's mean under the same seed."""
    counts = np.bincount(design.stratum)
    center = np.empty((len(counts), credits.shape[1]))
    for seed in range(credits.shape[1]):
        center[:, seed] = np.bincount(design.stratum, weights=credits[:, seed]) / counts
    expected = np.where(design.lonely[:, None], per_seed[None, :], center[design.stratum])
    deviation = design.coefficient[:, None] * (credits - expected)
    u = np.zeros((design.n_clusters, credits.shape[1]))
    np.add.at(u, design.cluster, deviation)
    return u


def _satterthwaite(parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """(sum of components)^2 / sum of component^2 / its degrees of freedom."""
    total = sum(component.sum() for component, _ in parts)
    spread = sum((component**2 / freedom).sum() for component, freedom in parts)
    return float(total**2 / spread) if spread > 0 else math.nan


@dataclass(frozen=True)
class Difference:
    """A paired difference to the reference: candidate minus reference.

    Attributes:
        estimate: of the difference; `n_seeds` counts the pairs of runs.
        p_value: two-sided, from the same t distribution as the interval; NaN where there is no evidence at all.
        enough_evidence: at least three pairs of runs, or two scorers that no seed can change.
        pairing: "same seed", "order of seeds" (no seed in common), or "seed-free" (one side has no seed).
    """

    estimate: Estimate
    p_value: float
    enough_evidence: bool
    pairing: str


def paired_difference(
    candidate: Mapping[int, np.ndarray],
    reference: Mapping[int, np.ndarray],
    design: ItemDesign | None,
    *,
    candidate_seed_free: bool = False,
    reference_seed_free: bool = False,
) -> Difference:
    """Difference of two variants on the same items, run by run.

    Runs are paired by seed where both have it.  A scorer that no seed can change is paired with every run of the
    other.  Where the two have no seed in common the runs are paired in the order of their seeds (seeds are
    exchangeable, so any fixed pairing is valid); this is what an A/A comparison of one method with other seeds uses.

    Args:
        candidate, reference: seed -> float64 [items] credits in the order of `design`; with `design` None, seed -> the
            metric itself.
        candidate_seed_free, reference_seed_free: whether the scorer is the same under every seed.
    """
    pairs, pairing = _pairs_of_runs(candidate, reference, candidate_seed_free, reference_seed_free)
    if design is None:
        difference = estimate_from_seeds([float(a) - float(b) for a, b in pairs])
    else:
        difference = estimate(np.column_stack([np.asarray(a) - np.asarray(b) for a, b in pairs]), design)
    enough = len(pairs) >= MIN_SEEDS or (candidate_seed_free and reference_seed_free)
    return Difference(difference, _p_value(difference), enough, pairing)


def _pairs_of_runs(
    candidate: Mapping[int, np.ndarray],
    reference: Mapping[int, np.ndarray],
    candidate_seed_free: bool,
    reference_seed_free: bool,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    if candidate_seed_free or reference_seed_free:
        fixed_candidate = candidate[min(candidate)]
        fixed_reference = reference[min(reference)]
        if candidate_seed_free and reference_seed_free:
            return [(fixed_candidate, fixed_reference)], "seed-free"
        if candidate_seed_free:
            return [(fixed_candidate, reference[s]) for s in sorted(reference)], "seed-free"
        return [(candidate[s], fixed_reference) for s in sorted(candidate)], "seed-free"
    common = sorted(candidate.keys() & reference.keys())
    if common:
        return [(candidate[s], reference[s]) for s in common], "same seed"
    in_order = zip(sorted(candidate), sorted(reference), strict=False)
    return [(candidate[a], reference[b]) for a, b in in_order], "order of seeds"


def _p_value(difference: Estimate) -> float:
    from scipy.stats import t

    if math.isfinite(difference.standard_error):
        return float(2 * t.sf(abs(difference.mean) / difference.standard_error, difference.degrees_of_freedom))
    # Without spread: two equal columns of credits are no evidence of a difference; anything else cannot be judged.
    return 1.0 if abs(difference.mean) < 1e-12 else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given; NaN stays NaN and is not counted as a test.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = running
    return adjusted
