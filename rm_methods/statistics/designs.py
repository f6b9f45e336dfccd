"""How the items of a metric are weighted, and which of them are independent.

A metric is m = sum_h W_h * mean over the items of stratum h of the credit.  Items that share a `group` (a prompt) are
not independent: the group then is the unit of sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


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
    coefficient, stratum_code = item_coefficients(stratum, weight)
    if group is None:
        cluster_code = np.arange(len(coefficient))
    else:
        cluster_code = np.unique(np.asarray(group), return_inverse=True)[1]
    block = _blocks(stratum_code, cluster_code)
    lonely = (np.bincount(block) == 1)[block][cluster_code]
    return ItemDesign(
        coefficient=coefficient,
        stratum=stratum_code,
        cluster=cluster_code,
        block=block,
        lonely=lonely,
    )


def item_coefficients(stratum: ArrayLike, weight: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """W_h / n_h of each item, and the code of its stratum.

    Args:
        stratum, weight: as in `item_design`.

    Raises:
        ValueError: as `item_design`.
    """
    _, first, stratum_code, counts = np.unique(
        np.asarray(stratum), return_index=True, return_inverse=True, return_counts=True
    )
    weights = np.asarray(weight, dtype=np.float64)
    if not np.array_equal(weights, weights[first][stratum_code]):
        raise ValueError("a stratum has items with different weights")
    if abs(weights[first].sum() - 1.0) > 1e-6:
        raise ValueError(f"the weights of the strata sum to {weights[first].sum():.6g}, not 1")
    return weights / counts[stratum_code], stratum_code


def _blocks(stratum: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Code of the block of each cluster: connected components of clusters that share a stratum and strata that share a
    cluster.

    Strata count as connected only through a cluster of both.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_strata = stratum.max() + 1
    n_clusters = cluster.max() + 1
    edges = coo_array((np.ones(len(stratum)), (stratum, n_strata + cluster)), shape=(n_strata + n_clusters,) * 2)
    return connected_components(edges, directed=False)[1][n_strata:]
