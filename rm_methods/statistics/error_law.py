"""The law of the error of a mean over seeds and items.

The variance of a mean has a seed part, known from few runs, and an item part, known from many items:

    V = V_seed + V_item

The error divided by sqrt(V) then has tails between those of Student's t with the few degrees of freedom of V_seed and
those of the items, nearly normal.  The two-sided tail probability is their average, weighted by the parts:

    P(|error| > x sqrt(V)) = w P(|t_seed| > x) + (1 - w) P(|t_item| > x),    w = V_seed / V

It is exact where one part is zero.  Between, it is ours: Cochran and Cox (Experimental Designs, 1950, section 4.14)
average the two critical values in the same way.  Satterthwaite's degrees of freedom, the usual choice, come from the
same few runs as V_seed.  They jump from 2 to hundreds when V_seed is small by luck, in the very tail that corrections
for many tests read.  `performance/inference.py` measures both (docs/comparison.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
NO_SPREAD = 1e-24  # a variance at or below this is rounding, not spread


def two_sided_tail(x: ArrayLike, seed_share: ArrayLike, seed_freedom: ArrayLike, item_freedom: ArrayLike) -> np.ndarray:
    """P(|error| > x standard errors), elementwise.

    Args:
        x: not negative.
        seed_share: V_seed / V, from 0 to 1.
        seed_freedom, item_freedom: degrees of freedom of the two parts.
    """
    from scipy.special import stdtr

    share = np.asarray(seed_share)
    below = -np.asarray(x, dtype=np.float64)
    return 2 * (share * stdtr(seed_freedom, below) + (1 - share) * stdtr(item_freedom, below))


@dataclass(frozen=True)
class ErrorLaw:
    """Variance of a mean by its parts, and the law of its error (see the top of the file).

    Attributes:
        seed_variance: V_seed; 0 where seeds are not counted.
        seed_freedom: degrees of freedom of V_seed; at least 1, and without effect where it is 0.
        item_variance: V_item, not negative; 0 where items are not counted.
        item_freedom: degrees of freedom of V_item.
    """

    seed_variance: float
    seed_freedom: float
    item_variance: float
    item_freedom: float

    @property
    def variance(self) -> float:
        return self.seed_variance + self.item_variance

    @property
    def defined(self) -> bool:
        """Whether anything varies: without spread no interval can be computed."""
        return math.isfinite(self.variance) and self.variance > NO_SPREAD

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.variance) if self.defined else math.nan

    @property
    def seed_share(self) -> float:
        return self.seed_variance / self.variance if self.defined else math.nan

    def p_value(self, difference: float) -> float:
        """Two-sided p value of a difference from 0; NaN without spread."""
        if not self.defined:
            return math.nan
        x = abs(difference) / self.standard_error
        return float(two_sided_tail(x, self.seed_share, self.seed_freedom, self.item_freedom))

    def quantile(self, probability: float) -> float:
        """x with P(|error| <= x standard errors) = probability; NaN without spread."""
        from scipy.optimize import brentq

        if not self.defined:
            return math.nan

        def excess(x: float) -> float:
            tail = two_sided_tail(x, self.seed_share, self.seed_freedom, self.item_freedom)
            return float(tail) - (1 - probability)

        upper = 2.0
        while excess(upper) > 0:
            upper *= 2
        return float(brentq(excess, 0.0, upper, xtol=1e-10))
