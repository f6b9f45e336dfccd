"""Bootstrap over items, and means of two groups of sequences at a common mix of seeds and lengths.

Items are resampled with everything that hangs on them: both sequences of a pair, all seeds of a variant, and items of
one prompt together (a *cluster*).  Intervals are percentiles of the replicates.  They count items, not seeds.

Shapes: n rows, G clusters, B replicates, K values of a row.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95
REPLICATES = 1000
LENGTH_BINS = 5
MIN_CLUSTERS = 10  # an interval from fewer items says nothing


@lru_cache(maxsize=4)
def resampled_counts(n_clusters: int, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """How often each cluster is drawn, float64 [1 + replicates, G]; row 0 is the sample itself, every cluster once."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=replicates)
    return np.concatenate([np.ones((1, n_clusters)), drawn])


def length_bins(lengths: np.ndarray, bins: int = LENGTH_BINS) -> np.ndarray:
    """Quantile bin of each length, int64; fewer bins than asked for where lengths repeat."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, lengths, side="left")


def means(values_nK: np.ndarray, cluster: np.ndarray, counts_BG: np.ndarray) -> np.ndarray:
    """Mean over rows in each replicate, [B, K]."""
    zeros = np.zeros(len(cluster), dtype=np.int64)
    return standardized_means(values_nK, zeros, cluster, zeros, counts_BG)[:, 0]


def standardized_means(
    values_nK: np.ndarray, group: np.ndarray, cluster: np.ndarray, stratum: np.ndarray, counts_BG: np.ndarray
) -> np.ndarray:
    """Means of two groups of rows at a common mix of strata: sum over strata of share x (mean of the group in the
    stratum).

    This is direct standardization.  The standard is the overlap of the groups: a stratum has the share n0 n1 /
    (n0 + n1) of its rows in each group (the weights of Mantel and Haenszel).  So a stratum that one group lacks has no
    share, one with a single misclassified pair a small one, and the difference of the two means is the stratified mean
    difference.

    Args:
        values_nK: float64 [n, K].
        group: int64 [n], 0 or 1.
        cluster, stratum: int64 [n], codes; with one stratum the means are the plain ones.
        counts_BG: from `resampled_counts`.

    Returns:
        float64 [B, 2, K]; NaN for a group without rows (the other then keeps its own mix), and for both without a
        common stratum.
    """
    n_strata, n_clusters = stratum.max() + 1, counts_BG.shape[1]
    sums = np.zeros((n_clusters, 2, n_strata, values_nK.shape[1]))
    rows = np.zeros((n_clusters, 2, n_strata))
    np.add.at(sums, (cluster, group, stratum), values_nK)
    np.add.at(rows, (cluster, group, stratum), 1.0)
    sums = np.tensordot(counts_BG, sums, axes=1)  # [B, 2, strata, K]
    rows = np.tensordot(counts_BG, rows, axes=1)  # [B, 2, strata]
    both = rows.sum(axis=1)
    alone = (rows.sum(axis=2) == 0).any(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where(alone, both, np.nan_to_num(rows.prod(axis=1) / both))  # [B, strata]
        own = np.where(weight[:, None, :, None] > 0, sums / rows[..., None], 0.0)
        return np.einsum("bs,bgsk->bgk", weight / weight.sum(axis=1, keepdims=True), own)


def interval(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% limits over axis 0 without row 0, which is the sample itself; replicates in which the value is not defined
    are left out."""
    tail = (1 - CONFIDENCE) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a value that no replicate has: NaN is the answer
        low, high = np.nanquantile(replicates[1:], [tail, 1 - tail], axis=0)
    return low, high
