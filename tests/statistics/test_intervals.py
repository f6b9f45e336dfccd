"""Intervals against hand-derived values, against a bootstrap, and by simulation of their coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from rm_methods.statistics.column import SeedPools, VariantValues, difference_to
from rm_methods.statistics.corrections import holm
from rm_methods.statistics.designs import item_design
from rm_methods.statistics.intervals import estimate, estimate_from_seeds, score_limits

NO_POOLS = SeedPools(None, None)


def one_stratum(n, group=None):
    return item_design(["all"] * n, [1.0] * n, group)


def paired_difference(candidate, reference, design, **roles):
    """The difference of two variants without a pool: their runs alone."""
    candidate_role = roles.get("candidate_role", "trained")
    reference_role = roles.get("reference_role", "trained")
    return difference_to(
        VariantValues(candidate, role=candidate_role, seed_free=candidate_role == "content_blind"),
        VariantValues(reference, role=reference_role, seed_free=reference_role == "content_blind"),
        design,
        NO_POOLS,
    )


def binomial_bounds(p, n):
    """Where a share of n trials lies in all but one of 1,000 repetitions."""
    return stats.binom.ppf(0.0005, n, p) / n, stats.binom.ppf(0.9995, n, p) / n


# --- by hand
# ----------------------------------------------------------------------------------------------------------------------


def test_two_way_variance_of_a_small_example():
    """Items x seeds [[1,0],[1,1],[0,0]]: MS_seed 1/6, MS_item 1/2, MS_resid 1/6, so V = (1/6 + 1/2 - 1/6) / 6 = 1/12.

    As sums: V_seed = (1/18)/2 = 1/36 of 1 degree of freedom, V_item = (1/2 - 1/6)/6 = 1/18 of 2.
    """
    result = estimate(np.array([[1, 0], [1, 1], [0, 0]]) - 1, one_stratum(3))
    assert result.mean == pytest.approx(-0.5, abs=1e-12)
    assert result.standard_error**2 == pytest.approx(1 / 12, abs=1e-12)
    assert result.law.seed_variance == pytest.approx(1 / 36, abs=1e-12)
    assert (result.law.seed_freedom, result.law.item_freedom) == (1, pytest.approx(2))
    # One third of the tails are those of t(1), two thirds those of t(2); credits below 0 are no share.
    reach = (result.high - result.mean) * math.sqrt(12)
    assert 2 * (stats.t.sf(reach, 1) / 3 + stats.t.sf(reach, 2) * 2 / 3) == pytest.approx(0.05, abs=1e-9)
    assert result.low == pytest.approx(result.mean - result.half_width, abs=1e-12)
    assert (result.basis, result.n_seeds, result.n_items) == ("seeds and items", 2, 3)


def test_unstratified_variance_equals_the_textbook_formula():
    credits = np.random.default_rng(0).normal(size=(7, 4)) + np.arange(7)[:, None]
    grand = credits.mean()
    ms_seed = 7 * ((credits.mean(0) - grand) ** 2).sum() / 3
    ms_item = 4 * ((credits.mean(1) - grand) ** 2).sum() / 6
    ms_resid = ((credits - credits.mean(0) - credits.mean(1)[:, None] + grand) ** 2).sum() / 18
    assert estimate(credits, one_stratum(7)).standard_error ** 2 == pytest.approx(
        (ms_seed + ms_item - ms_resid) / 28, abs=1e-12
    )


def test_without_seed_variance_the_items_alone_make_the_tails():
    """Items x seeds [[2,0,1],[-2,0,-1]]: item effects +-1, interaction +-(1,-1,0): MS_item 6, MS_resid 2, MS_seed 0.

    V = (6 - 2)/6 = 2/3, all of it of the items, with 1 degree of freedom.
    """
    result = estimate(np.array([[2.0, 0.0, 1.0], [-2.0, 0.0, -1.0]]), one_stratum(2))
    assert result.standard_error**2 == pytest.approx(2 / 3, abs=1e-12)
    assert (result.law.seed_share, result.law.item_freedom) == (0.0, pytest.approx(1))
    assert result.half_width == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(2 / 3), rel=1e-9)


def test_negative_item_variance_is_clipped_to_the_seeds_alone():
    """[[1,0],[0,1]]: both seeds 1/2, both items 1/2, all spread is residual, so V_seed = 0 and V_item < 0; add a seed
    shift of 1."""
    result = estimate(np.array([[2.0, 0.0], [1.0, 1.0]]), one_stratum(2))
    assert result.standard_error**2 == pytest.approx(0.5 / 2, abs=1e-12)  # var_s(1.5, 0.5) / 2
    assert (result.law.seed_share, result.law.seed_freedom) == (1.0, 1)


def test_one_seed_with_strata():
    """Strata [1,0] with W 1/4 and [1,1,0] with W 3/4: V = (1/16)(1/2)/2 + (9/16)(1/3)/3 = 5/64."""
    design = item_design(["a", "a", "b", "b", "b"], [0.25] * 2 + [0.75] * 3)
    result = estimate(np.array([[1.0], [0], [1], [1], [0]]), design)
    assert result.mean == pytest.approx(0.25 / 2 + 0.75 * 2 / 3, abs=1e-12)
    assert result.standard_error**2 == pytest.approx(5 / 64, abs=1e-12)
    # Components 1/64 (df 1) and 4/64 (df 2): df = 25 / (1/1 + 16/2) = 25/9.
    assert result.law.item_freedom == pytest.approx(25 / 9, abs=1e-12)
    assert result.basis == "items"


def test_strata_and_seeds_together():
    """Two copies of the example of 1/12 as strata of weight 1/2: V_seed = 1/36, V_item = 2 * (1/4)(1/18) = 1/36."""
    credits = np.array([[1, 0], [1, 1], [0, 0]] * 2)
    result = estimate(credits, item_design(["a"] * 3 + ["b"] * 3, [0.5] * 6))
    assert result.standard_error**2 == pytest.approx(2 / 36, abs=1e-12)


def test_groups_of_unequal_size_are_linearized():
    """Groups {1,1}, {0}, {1}; mean 3/4; u = (1/8, -3/16, 1/16); V = 3/2 * (4 + 9 + 1)/256 = 21/256."""
    result = estimate(np.array([[1.0], [1], [0], [1]]), one_stratum(4, ["g1", "g1", "g2", "g3"]))
    assert result.standard_error**2 == pytest.approx(21 / 256, abs=1e-12)
    assert (result.n_items, result.n_clusters) == (4, 3)


def test_repeating_an_item_inside_its_group_adds_no_information():
    rng = np.random.default_rng(1)
    credits = rng.random((20, 1)) + rng.normal(0, 0.1, (20, 3))
    once = estimate(credits, one_stratum(20))
    twice = estimate(np.repeat(credits, 2, axis=0), one_stratum(40, np.repeat(np.arange(20), 2)))
    assert twice.standard_error == pytest.approx(once.standard_error, abs=1e-12)
    assert estimate(np.repeat(credits, 2, axis=0), one_stratum(40)).standard_error < 0.8 * once.standard_error


def test_a_group_across_two_strata_joins_them():
    """Stratum a = [1,0], b = [1,0], W 1/2; item i of a and b share a group: u = (1/4, -1/4), V = 2/1 * 2/16 = 1/4, not
    1/8."""
    strata, weights, credits = ["a", "a", "b", "b"], [0.5] * 4, np.array([[1.0], [0], [1], [0]])
    assert estimate(credits, item_design(strata, weights, ["p", "q", "p", "q"])).standard_error ** 2 == pytest.approx(
        1 / 4, abs=1e-12
    )
    assert estimate(credits, item_design(strata, weights)).standard_error ** 2 == pytest.approx(1 / 8, abs=1e-12)


def test_a_stratum_of_one_item_is_not_taken_as_certain():
    """a = [1,0] and b = [1], W 1/2: metric 3/4; V = (1/4)(1/2)/2 + (1/2 * (1 - 3/4))^2 = 1/16 + 1/64."""
    result = estimate(np.array([[1.0], [0], [1]]), item_design(["a", "a", "b"], [0.5] * 3))
    assert result.standard_error**2 == pytest.approx(5 / 64, abs=1e-12)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_perfect_score_is_as_sure_as_its_items(n_seeds):
    """Wilson's limit of n right of n is n / (n + z^2), whatever the seeds; of none right it is z^2 / (n + z^2)."""
    z2 = stats.norm.ppf(0.975) ** 2
    right = estimate(np.ones((100, n_seeds)), one_stratum(100))
    assert (right.mean, right.high) == (pytest.approx(1), pytest.approx(1))
    assert right.low == pytest.approx(100 / (100 + z2), abs=1e-9)
    wrong = estimate(np.zeros((100, n_seeds)), one_stratum(100))
    assert (wrong.low, wrong.high) == (pytest.approx(0), pytest.approx(z2 / (100 + z2), abs=1e-9))
    # Ten items of one prompt are one observation.
    grouped = estimate(np.ones((100, n_seeds)), one_stratum(100, np.arange(100) // 10))
    assert grouped.low == pytest.approx(10 / (10 + z2), abs=1e-9)


def test_limits_of_a_share_are_wilsons():
    """98 of 100 independent items: scipy's Wilson interval but for G/(G - 1) in the variance and t for z."""
    credits = np.array([1.0] * 98 + [0.0] * 2)[:, None]
    result = estimate(credits, one_stratum(100))
    reference = stats.binomtest(98, 100).proportion_ci(method="wilson")
    assert result.low == pytest.approx(reference.low, abs=0.002)
    assert result.high == pytest.approx(reference.high, abs=0.002)
    assert result.high < 1
    assert score_limits(0.98, stats.norm.ppf(0.975), 100) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilsons_limits_cover_a_share_near_one():
    """98% on 100 items: the symmetric interval covers 87%."""
    rng = np.random.default_rng(0)
    covered = {"score": 0, "symmetric": 0}
    for _ in range(2000):
        credits = (rng.random((100, 1)) < 0.98).astype(float)
        result = estimate(credits, one_stratum(100))
        covered["score"] += result.low <= 0.98 <= result.high
        reach = 1.984 * (result.standard_error if result.law else 0)
        covered["symmetric"] += result.mean - reach <= 0.98 <= result.mean + reach
    assert covered["score"] / 2000 > 0.94
    assert covered["symmetric"] / 2000 < 0.90


def test_no_spread_gives_no_interval_instead_of_certainty():
    result = estimate(np.full((30, 3), 0.5), one_stratum(30))
    assert result.mean == pytest.approx(0.5, abs=1e-12)
    assert (result.basis, result.law) == ("nothing", None)
    assert math.isnan(result.low)
    assert math.isnan(result.half_width)


def test_undefined_credits_give_an_undefined_mean():
    result = estimate(np.array([[1.0, np.nan], [0, 0]]), one_stratum(2))
    assert math.isnan(result.mean)
    assert math.isnan(result.low)


def test_metrics_without_credits_use_students_t_over_seeds():
    """Values 0.5, 0.6, 0.7: sd 0.1, standard error 0.1/sqrt(3), t(2)."""
    result = estimate_from_seeds([0.5, 0.6, 0.7])
    assert result.half_width == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3), abs=1e-12)
    assert result.basis == "seeds"
    assert math.isnan(estimate_from_seeds([0.5]).low)


@pytest.mark.parametrize(("weights", "says"), [([0.5, 0.5, 0.6], "sum to 1.1"), ([0.4, 0.6, 0.4], "different weights")])
def test_wrong_weights_are_refused(weights, says):
    with pytest.raises(ValueError, match=says):
        item_design(["a", "a", "b"], weights)


def test_holm_by_hand_and_with_undefined_p_values():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = holm([math.nan, 0.02, 0.6, 0.7])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.06, 1.0, 1.0])
    assert holm([]) == []


# --- pairing
# ----------------------------------------------------------------------------------------------------------------------


def test_pairs_by_common_seed_only():
    design = one_stratum(3)
    a = {0: np.array([1.0, 1, 0]), 1: np.array([1.0, 0, 0]), 2: np.array([1.0, 1, 1])}
    b = {1: np.array([0.0, 0, 0]), 2: np.array([1.0, 0, 0]), 7: np.array([1.0, 1, 1])}
    result = paired_difference(a, b, design)
    assert result.estimate == estimate(
        np.column_stack([a[1] - b[1], a[2] - b[2]]), design, pooled_per_run=2, may_be_share=False
    )
    assert result.estimate.mean == pytest.approx((1 / 3 + 2 / 3) / 2, abs=1e-12)
    assert (result.pairing, result.tested) == ("same seed", False)
    assert math.isnan(result.p_value)


def test_three_pairs_are_tested_by_the_law_of_the_interval():
    rng = np.random.default_rng(0)
    a, b = ({seed: rng.random(40) for seed in range(3)} for _ in range(2))
    result = paired_difference(a, b, one_stratum(40))
    law = result.estimate.law
    x = abs(result.estimate.mean) / result.estimate.standard_error
    by_hand = 2 * (law.seed_share * stats.t.sf(x, 2) + (1 - law.seed_share) * stats.t.sf(x, 39))
    assert (result.tested, result.p_value) == (True, pytest.approx(by_hand))


def test_a_scorer_without_a_seed_is_compared_with_every_run():
    rng = np.random.default_rng(0)
    ruler, trained = {0: rng.random(9)}, {s: rng.random(9) for s in range(3, 7)}
    forward = paired_difference(ruler, trained, one_stratum(9), candidate_role="content_blind")
    backward = paired_difference(trained, ruler, one_stratum(9), reference_role="content_blind")
    assert (forward.estimate.n_seeds, forward.tested, forward.pairing) == (4, False, "mean of runs")
    assert forward.estimate.mean == pytest.approx(-backward.estimate.mean, abs=1e-12)
    assert forward.estimate.low == pytest.approx(-backward.estimate.high, abs=1e-12)


def test_two_scorers_without_seeds_differ_by_their_items():
    roles = {"candidate_role": "content_blind", "reference_role": "content_blind"}
    both = paired_difference({0: np.arange(9.0)}, {0: np.ones(9)}, one_stratum(9), **roles)
    assert (both.tested, both.estimate.basis) == (False, "items")


def test_without_a_common_seed_runs_are_paired_in_order():
    a, b = {0: np.zeros(3), 1: np.ones(3)}, {5: np.ones(3), 6: np.arange(3.0), 9: np.ones(3)}
    result = paired_difference(a, b, one_stratum(3))
    assert result.estimate == estimate(
        np.column_stack([a[0] - b[5], a[1] - b[6]]), one_stratum(3), pooled_per_run=2, may_be_share=False
    )
    assert result.pairing == "order of seeds"


def test_a_difference_is_never_taken_for_a_share():
    """Better on some items and worse on none: the limits are symmetric, and reach below 0."""
    better = {s: np.array([0.0, 0, 0, 1]) for s in range(3)}
    same = {s: np.zeros(4) for s in range(3)}
    difference = paired_difference(better, same, one_stratum(4)).estimate
    assert difference.low == pytest.approx(2 * difference.mean - difference.high)
    assert difference.low < 0
    nothing = paired_difference(same, same, one_stratum(4)).estimate
    assert (nothing.mean, nothing.basis) == (0.0, "nothing")
    assert math.isnan(nothing.low)


def test_equal_credits_differ_with_p_value_one_and_constant_shift_has_none():
    same = {s: np.arange(4.0) for s in range(3)}
    assert paired_difference(same, same, one_stratum(4)).p_value == 1.0
    shifted = {s: np.arange(4.0) + 1 for s in range(3)}
    assert math.isnan(paired_difference(shifted, same, one_stratum(4)).p_value)


# --- by simulation
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_seeds", [1, 3, 5])
@pytest.mark.parametrize(("seed_sd", "strata", "group_size"), [(0.03, 1, 1), (0.1, 1, 1), (0.03, 3, 4)])
def test_interval_covers_the_truth_about_95_percent_of_the_time(n_seeds, seed_sd, strata, group_size):
    """Truth 0; crossed random seeds, items (shared inside a group) and noise.  With one seed there must be no seed
    effect."""
    rng = np.random.default_rng(n_seeds * 100 + strata)
    n, trials = 96, 600
    design = item_design(np.repeat(np.arange(strata), n // strata), np.full(n, 1 / strata), np.arange(n) // group_size)
    covered = 0
    for _ in range(trials):
        item = np.repeat(rng.normal(0, 0.4, n // group_size), group_size)[:, None]
        seed = rng.normal(0, seed_sd if n_seeds > 1 else 0.0, n_seeds)
        result = estimate(seed + item + rng.normal(0, 0.3, (n, n_seeds)) - 5, design)
        covered += result.low <= -5 <= result.high
    # From 93% to 97% with few seeds, widened by what 600 trials leave to chance.
    assert binomial_bounds(0.93, trials)[0] <= covered / trials <= binomial_bounds(0.97, trials)[1]


def test_ignoring_seeds_would_not_cover():
    """The same data with the seeds' spread left out (items only, averaged over seeds): the test above can fail."""
    rng = np.random.default_rng(3)
    n, trials, covered = 96, 300, 0
    for _ in range(trials):
        credits = rng.normal(0, 0.1, 3) + rng.normal(0, 0.4, (n, 1)) + rng.normal(0, 0.3, (n, 3))
        result = estimate(credits.mean(axis=1, keepdims=True), one_stratum(n))
        covered += result.low <= 0 <= result.high
    assert covered / trials < 0.85


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_same_method_with_other_seeds_is_called_different_at_most_at_alpha(n_seeds):
    """A/A: binary credits of one method, ten seeds split in two; difficulty is shared, seeds and noise are not."""
    rng = np.random.default_rng(n_seeds)
    n, trials, called = 120, 800, 0
    design = one_stratum(n)
    for _ in range(trials):
        difficulty = rng.normal(0, 1.2, (n, 1))
        chance = 1 / (1 + np.exp(difficulty - 0.6 - rng.normal(0, 0.15, 2 * n_seeds)))
        credits = (rng.random((n, 2 * n_seeds)) < chance).astype(float)
        a = {s: credits[:, s] for s in range(n_seeds)}
        b = {s: credits[:, s] for s in range(n_seeds, 2 * n_seeds)}
        called += paired_difference(a, b, design).p_value < 0.05
    assert called / trials <= binomial_bounds(0.05, trials)[1]


def test_a_real_difference_is_found():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        difficulty = rng.normal(0, 1.0, 200)
        a = {s: (rng.random(200) < 1 / (1 + np.exp(difficulty - 1.2))).astype(float) for s in range(3)}
        b = {s: (rng.random(200) < 1 / (1 + np.exp(difficulty - 0.2))).astype(float) for s in range(3)}
        found += paired_difference(a, b, one_stratum(200)).p_value < 0.05
    assert found >= 90


def test_item_interval_agrees_with_a_bootstrap():
    credits = (np.random.default_rng(5).random(300) < 0.7).astype(float)
    boot = stats.bootstrap((credits,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0))
    result = estimate(credits[:, None], one_stratum(300))
    assert result.standard_error == pytest.approx(boot.standard_error, rel=0.05)
    assert result.low == pytest.approx(boot.confidence_interval.low, abs=0.01)
    assert result.high == pytest.approx(boot.confidence_interval.high, abs=0.01)


def test_group_interval_agrees_with_a_bootstrap_of_groups():
    rng = np.random.default_rng(6)
    group = np.repeat(np.arange(120), rng.integers(1, 6, 120))
    credits = (rng.random(len(group)) < np.repeat(rng.random(120), np.bincount(group))).astype(float)
    totals, sizes = np.bincount(group, weights=credits), np.bincount(group)
    boot = stats.bootstrap(
        (totals, sizes),
        lambda t, k, axis: t.sum(axis) / k.sum(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=rng,
    )
    assert estimate(credits[:, None], one_stratum(len(group), group)).standard_error == pytest.approx(
        boot.standard_error, rel=0.06
    )
