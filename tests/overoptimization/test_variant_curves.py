from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rm_methods.errors import DataError, UserError
from rm_methods.overoptimization.variant_curves import (
    VariantCurves,
    combine_seeds,
    half_of_group,
    held_out_credits,
    left_out_columns,
    peak_interval,
    summarize_peaks,
)

from .made_up import curves_of_run, pool_runs


def curves_of(gold_SPK, variant="v", groups=None, seeds=None):
    gold = np.asarray(gold_SPK, dtype=np.float64)
    places = gold.shape[2]
    return VariantCurves(
        variant=variant,
        method=variant,
        pool="made up",
        seeds=seeds or tuple(range(gold.shape[0])),
        seed_free=False,
        axis=2 ** np.arange(places),
        kl=np.arange(places, dtype=float),
        kl_bound=np.arange(places, dtype=float),
        gold=gold,
        proxy=gold,
        groups=tuple(groups or (f"g{p}" for p in range(gold.shape[1]))),
    )


def noisy(shape_K, seeds=3, prompts=40, noise=0.1, seed=0):
    generator = np.random.default_rng(seed)
    return np.asarray(shape_K) + noise * generator.standard_normal((seeds, prompts, len(shape_K)))


def test_peak_end_and_gap_by_hand():
    """One seed, two prompts, one in each half: each is read at the other's peak (n = 2 and n = 4)."""
    groups = ["a", "b"]
    first, second = [0.0, 4.0, 1.0, 2.0], [0.0, 1.0, 5.0, 3.0]
    credits = held_out_credits(curves_of([[first, second]], groups=groups))
    assert sorted(half_of_group(groups).tolist()) == [0, 1]
    assert credits["gold_end"].tolist() == [[2.0], [3.0]]
    assert credits["gold_peak"].tolist() == [[1.0], [1.0]]
    assert credits["gap"].tolist() == [[-1.0], [-2.0]]
    (summary,) = summarize_peaks([curves_of([[first, second]], groups=groups)], None)
    assert (summary.axis_peak, summary.gold_peak_in_sample, summary.gap_in_sample) == (4, 3.0, 0.5)


def test_a_prompt_that_moves_the_peak_counts_more_by_hand():
    """Without x1 the first half peaks at the third place, where the second half has 0: the mean read falls from 2 to 1.
    So x1 has the pseudo-value -(4 - 1) (1 - 2) = 3 beside its gold, less the mean of 3 / 4."""
    half = half_of_group(["a", "b", "c", "d"])
    gold = np.empty((1, 4, 3))
    gold[0, half == 0] = [[0, 4, 0], [0, 0, 2]]
    gold[0, half == 1] = [[0, 1, 0], [0, 3, 0]]
    credits = held_out_credits(curves_of(gold, groups=["a", "b", "c", "d"]))
    assert credits["gold_peak"][half == 0, 0].tolist() == [4 + 2.25, 0 - 0.75]
    assert credits["gold_peak"][half == 1, 0].tolist() == [1 - 0.75, 3 - 0.75]
    assert credits["gap"].mean() == credits["gold_peak"].mean() - credits["gold_end"].mean()


def test_curves_that_never_turn_down_have_a_gap_of_zero_without_an_interval():
    rising = np.tile([0.0, 0.2, 0.4], (1, 10, 1))
    gap = summarize_peaks([curves_of(rising)], None)[0].cells["gap"].estimate
    assert gap.mean == 0
    assert np.isnan(gap.low)


def test_columns_without_each_member_by_hand():
    """Without the first member the curves are those of the test above; without the second nothing is over-optimized."""
    falling = [[0.0, 4.0, 1.0, 2.0], [0.0, 1.0, 5.0, 3.0]]
    rising = [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 5.0]]
    curves = replace(curves_of([falling], groups=["a", "b"]), left_out=np.array([falling, rising]))
    columns = left_out_columns(replace(curves, left_out_seeds=(3, 5)))
    assert columns == {"gold_end": {3: 2.5, 5: 4.0}, "gold_peak": {3: 1.0, 5: 4.0}, "gap": {3: -1.5, 5: 0.0}}
    assert left_out_columns(curves_of([falling])) == {}


def test_the_halves_are_even_and_never_cut_a_group():
    groups = [f"g{k // 2}" for k in range(40)]
    half = half_of_group(groups)
    assert half.sum() == 20
    assert (half[::2] == half[1::2]).all()
    assert (half_of_group(groups[::-1])[::-1] == half).all()


def test_without_over_optimization_the_held_out_gap_is_zero_where_the_plain_one_is_not():
    """A flat curve: the plain gap is always above 0, the held-out gap is 0 on average."""
    summaries = [summarize_peaks([curves_of(noisy(np.zeros(6), noise=1.0, seed=seed))], None)[0] for seed in range(60)]
    held_out = np.array([summary.cells["gap"].estimate.mean for summary in summaries])
    plain = np.array([summary.gap_in_sample for summary in summaries])
    assert plain.mean() > 0.05
    assert abs(held_out.mean()) < 3 * held_out.std() / np.sqrt(60)


def test_a_real_fall_is_found_and_differs_from_a_reference_that_keeps_its_gold():
    falls, keeps = noisy([0.0, 0.5, 1.0, 0.2]), noisy([0.0, 0.5, 1.0, 1.0], seed=1)
    fallen, kept = summarize_peaks([curves_of(falls, "falls"), curves_of(keeps, "keeps")], "keeps")
    gap = fallen.cells["gap"]
    assert gap.estimate.mean == pytest.approx(0.8, abs=0.1)
    assert gap.estimate.low > 0.6
    assert (gap.verdict, kept.cells["gap"].verdict) == ("significant", "reference")
    assert gap.difference.pairing == "same seed"
    assert gap.difference.estimate.mean == pytest.approx(gap.estimate.mean - kept.cells["gap"].estimate.mean)
    assert (fallen.axis_peak, fallen.axis_peak_low, fallen.axis_peak_high) == (4, 4, 4)


def test_two_seeds_are_not_enough_evidence():
    two = [curves_of(noisy([0, 1, 0.5], seeds=2, seed=seed), name) for seed, name in enumerate("ab")]
    assert summarize_peaks(two, "a")[1].cells["gap"].verdict == "not enough evidence"


def test_a_peak_that_prompts_or_seeds_disagree_about_has_a_wide_interval():
    prompts = np.zeros((1, 40, 3))
    prompts[0, :21, 1] = prompts[0, 21:, 2] = 1.0
    assert peak_interval(curves_of(prompts)) == (2, 4)
    seeds = np.zeros((3, 40, 3))
    seeds[:2, :, 1] = seeds[2, :, 2] = 1.0
    low, high = peak_interval(curves_of(seeds))
    assert (low, high) == (2, 4)
    assert peak_interval(curves_of(noisy([0, 1, 0]))) == (2, 2)


def test_seeds_are_put_together_only_on_the_same_pool(tmp_path):
    runs = pool_runs(tmp_path, {"bt": 0.5}, seeds=(2, 0), prompts=4, responses=8)
    by_seed = {run.seed: curves_of_run(run) for run in runs}
    curves = combine_seeds("bt", "bt", "policy", by_seed)
    assert curves.seeds == (0, 2)
    assert curves.gold.shape == (2, 4, 4)
    assert curves.gold[0].tolist() == by_seed[0].gold.tolist()
    other = pool_runs(tmp_path / "other", {"bt": 0.5}, seeds=(1,), prompts=5, responses=8)[0]
    by_seed[1] = curves_of_run(other)
    with pytest.raises(DataError, match="seed 1 was scored on another pool than seed 0"):
        combine_seeds("bt", "bt", "policy", by_seed)


def test_unknown_references_and_other_prompts_are_errors():
    with pytest.raises(UserError, match="'bradly' is not among"):
        summarize_peaks([curves_of(noisy([0, 1]))], "bradly")
    with pytest.raises(DataError, match="have other prompts"):
        summarize_peaks([curves_of(noisy([0, 1])), curves_of(noisy([0, 1], prompts=9), "w")], None)
