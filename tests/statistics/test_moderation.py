"""Pooled seed variance by hand, and against the textbook analysis of variance."""

import numpy as np
import pytest

from rm_methods.statistics.moderation import (
    PRIOR_FREEDOM,
    SeedPool,
    moderated,
    pool_paired,
    pool_shares,
    pool_within,
)


def test_pool_within_by_hand():
    """0, 2 and 1, 1, 4: squares 2 and 6, degrees of freedom 1 and 2."""
    pool = pool_within([{0: 0.0, 1: 2.0}, {0: 1.0, 1: 1.0, 2: 4.0}])
    assert pool == SeedPool(pytest.approx(8 / 3), 3)
    assert pool_within([{0: 1.0}]) is None
    assert pool_within([]) is None


def test_pool_paired_is_the_residual_mean_square_of_variants_by_seeds():
    values = np.random.default_rng(0).normal(size=(4, 3))
    residual = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    pool = pool_paired([dict(enumerate(row)) for row in values])
    assert pool == SeedPool(pytest.approx((residual**2).sum() / 6), 6)


def test_a_seed_that_all_variants_share_drops_out():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 5))
    moved = values + rng.normal(size=5) * 100
    before, after = (pool_paired([dict(enumerate(row)) for row in table]) for table in (values, moved))
    assert after.variance == pytest.approx(before.variance, rel=1e-6)


def test_of_two_variants_the_pool_is_the_variance_of_their_difference():
    """So moderation adds nothing: the pool knows no more than the difference itself."""
    a, b = {0: 0.3, 1: 0.5, 2: 0.1}, {0: 0.2, 1: 0.1, 2: 0.4}
    difference = np.array([a[seed] - b[seed] for seed in range(3)])
    pool = pool_paired([a, b])
    assert 2 * pool.variance == pytest.approx(difference.var(ddof=1))
    assert pool.freedom == 2
    assert moderated(0.7, 2, pool, scale=2 / 3) == (0.7, 2)


def test_missing_runs_and_other_seeds_are_allowed():
    pool = pool_paired([{0: 1.0, 1: 2.0, 2: 4.0}, {0: 1.5, 1: 2.0}, {7: 3.0, 8: 1.0}])
    # Seven runs, three variants and five seeds in two separate blocks: rank (2 + 3 - 1) + (1 + 2 - 1) = 6.
    assert pool.freedom == 1
    assert pool_paired([{0: 1.0}, {0: 2.0}]) is None


def test_moderated_by_hand():
    """Own 1.0 of 2 degrees of freedom, pool 6.0 of 30 at scale 1/3: (2 x 1 + 4 x 2) / 6 of 6."""
    assert PRIOR_FREEDOM == 4
    assert moderated(1.0, 2, SeedPool(6.0, 30), scale=1 / 3) == (pytest.approx(10 / 6), 6)
    # A pool of 4 adds 2.
    assert moderated(1.0, 2, SeedPool(6.0, 4), scale=1 / 3) == (pytest.approx((2 + 2 * 2) / 4), 4)
    assert moderated(1.0, 2, None, scale=1) == (1.0, 2)


def test_pool_of_shares_by_hand():
    """Squares .02 at mean .5 and .0002 at mean .9, in units of .25 and .09; a perfect variant has no say."""
    pool = pool_shares([{0: 0.4, 1: 0.6}, {0: 0.89, 1: 0.91}, {0: 1.0, 1: 1.0}])
    assert pool.variance == pytest.approx((0.02 / 0.25 + 0.0002 / 0.09) / 2)
    assert pool.freedom == 2
    assert pool_shares([{0: 1.0, 1: 1.0}]) is None
