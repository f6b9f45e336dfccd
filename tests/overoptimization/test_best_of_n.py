from __future__ import annotations

import itertools
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.members import Members
from rm_methods.benchmarks.score_table import ScoredResponse, response_hash, write_scores
from rm_methods.errors import DataError, UserError
from rm_methods.methods.registry import load_method
from rm_methods.overoptimization.best_of_n import (
    best_of_n_weights,
    expected_best,
    left_out_gold,
    numbers_of_samples,
    pool_counts,
    pool_curves,
    read_pool_scores,
)
from rm_methods.overoptimization.summary import summarize_best_of_n
from tests.benchmarks.made_up import write_score_table

from .made_up import pool_runs

PROMPT = [{"role": "user", "content": "?"}]


def pool_item(gold, name="p", responses=None, **meta):
    return BenchmarkItem(
        name, "policy", PROMPT, responses or [f"{name} {k}" for k in range(len(gold))], list(gold), meta=meta
    )


def brute_force(scores, gold, n):
    """Mean over all draws of n, and over all responses that share the draw's highest score."""
    picks = []
    for draw in itertools.combinations(range(len(scores)), n):
        best = max(scores[k] for k in draw)
        picks.append(np.mean([gold[k] for k in draw if scores[k] == best]))
    return np.mean(picks)


class TestEstimator:
    @pytest.mark.parametrize("ties", [False, True])
    def test_it_equals_brute_force_over_all_draws_of_eight(self, ties):
        generator = np.random.default_rng(3)
        for _ in range(5):
            scores = (generator.integers(0, 4, 8) if ties else generator.standard_normal(8)).astype(np.float32)
            gold = generator.standard_normal(8)
            found = expected_best(scores, gold, best_of_n_weights(8, range(1, 9)))
            assert found == pytest.approx([brute_force(scores, gold, n) for n in range(1, 9)], abs=1e-12)

    def test_three_responses_by_hand(self):
        """Gold 1, 5, 3 by rising score; n = 2: the draws {1,5}, {1,3}, {5,3} pick 5, 3, 3."""
        found = expected_best(np.array([0.1, 0.2, 0.3]), np.array([1.0, 5.0, 3.0]), best_of_n_weights(3, [1, 2, 3]))
        assert found == pytest.approx([3.0, 11 / 3, 3.0])

    def test_a_tie_at_the_top_by_hand(self):
        """Scores 0, 1, 1 with gold 6, 0, 3: n = 2 draws {6,0}, {6,3}, {0,3} pick 0, 3 and 1.5 on average."""
        found = expected_best(np.array([0, 1, 1]), np.array([6.0, 0.0, 3.0]), best_of_n_weights(3, [1, 2, 3]))
        assert found == pytest.approx([3.0, 1.5, 1.5])

    def test_ties_are_the_mean_over_random_tie_orders(self):
        generator = np.random.default_rng(0)
        scores, gold = generator.integers(0, 3, 12).astype(np.float64), generator.standard_normal(12)
        weights = best_of_n_weights(12, [1, 4, 12])
        drawn = [expected_best(scores + 1e-6 * generator.random(12), gold, weights) for _ in range(20_000)]
        assert expected_best(scores, gold, weights) == pytest.approx(np.mean(drawn, axis=0), abs=0.02)

    def test_weights_are_a_distribution_also_for_very_large_pools(self):
        weights = best_of_n_weights(12_600, numbers_of_samples(12_600))
        assert weights.sum(axis=0) == pytest.approx(np.ones(15), abs=1e-8)
        assert (weights >= 0).all()
        assert weights[-1] == pytest.approx(numbers_of_samples(12_600) / 12_600, rel=1e-8)

    @pytest.mark.slow
    def test_a_thousand_prompts_of_12600_responses_take_less_than_two_seconds_of_cpu(self):
        generator = np.random.default_rng(0)
        scores, gold = (
            generator.standard_normal((1000, 12_600)).astype(np.float32),
            generator.standard_normal((1000, 12_600)),
        )
        started = time.process_time()
        weights = best_of_n_weights(12_600, numbers_of_samples(12_500))
        for prompt_scores, prompt_gold in zip(scores, gold, strict=True):
            expected_best(prompt_scores, prompt_gold, weights)
        assert time.process_time() - started < 2

    def test_n_outside_the_pool_is_refused(self):
        for n in ([0], [9], []):
            with pytest.raises(UserError, match="1 <= n <= 8"):
                best_of_n_weights(8, n)


class TestPoolCurves:
    def test_n_is_one_gives_the_mean_and_n_is_all_the_gold_of_the_top(self):
        generator = np.random.default_rng(1)
        gold, scores = generator.standard_normal(20), generator.standard_normal(20).astype(np.float32)
        curves = pool_curves([pool_item(gold)], [scores])
        assert curves.n.tolist() == [1, 2, 4, 8, 16, 20]
        assert curves.gold[0, 0] == pytest.approx(gold.mean())
        assert curves.gold[0, -1] == pytest.approx(gold[np.argmax(scores)])
        assert curves.proxy[0, -1] == pytest.approx(scores.max())
        assert curves.proxy_standardized[0, 0] == pytest.approx(0, abs=1e-7)

    def test_a_proxy_that_is_the_gold_reward_never_falls_and_is_the_oracle(self):
        gold = np.random.default_rng(2).standard_normal(33)
        curves = pool_curves([pool_item(gold)], [gold.astype(np.float32)])
        assert (np.diff(curves.gold[0]) > 0).all()
        assert curves.gold == pytest.approx(curves.oracle, abs=1e-6)

    def test_monotone_transforms_within_a_prompt_change_nothing(self):
        generator = np.random.default_rng(4)
        items = [pool_item(generator.standard_normal(16), f"p{k}") for k in range(3)]
        scores = [generator.standard_normal(16).astype(np.float32) for _ in items]
        changed = [np.float32(k) + 1 / (1 + np.exp(-s.astype(np.float64))) for k, s in enumerate(scores)]
        assert pool_curves(items, changed).gold == pytest.approx(pool_curves(items, scores).gold)

    def test_the_standardized_proxy_ignores_offsets_of_prompts_and_the_scale(self):
        generator = np.random.default_rng(5)
        items = [pool_item(generator.standard_normal(64), f"p{k}") for k in range(4)]
        scores = [generator.standard_normal(64) for _ in items]
        moved = [7 * s + 100 * k for k, s in enumerate(scores)]
        first, second = (pool_curves(items, s).proxy_standardized for s in (scores, moved))
        assert second == pytest.approx(first, abs=1e-9)
        # The expected highest of two draws from a standard normal is 1 / sqrt(pi).
        assert first[:, 1].mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.05)

    def test_pools_of_different_sizes_end_at_the_smallest_and_say_so(self):
        curves = pool_curves([pool_item(range(6), "a"), pool_item(range(9), "b")], [np.arange(6.0), np.arange(9.0)])
        assert curves.n.tolist() == [1, 2, 4, 6]
        assert "6 to 9 responses" in curves.notes[0]
        with pytest.raises(UserError, match="1 <= n <= 6, the smallest"):
            pool_curves(
                [pool_item(range(6), "a"), pool_item(range(9), "b")], [np.arange(6.0), np.arange(9.0)], n=[1, 8]
            )

    def test_duplicates_and_empty_responses_are_kept_and_counted(self):
        item = pool_item([1.0, 1.0, 0.0, 0.5], responses=["a", "a", "", "b"])
        counts = pool_counts([item], [np.array([2.0, 2.0, 0.0, 1.0])])
        assert counts == {"prompts": 1, "responses": 4, "duplicates": 1, "empty": 1, "tied": 1}
        assert pool_curves([item], [np.array([2.0, 2.0, 0.0, 1.0])]).gold[0, 0] == pytest.approx(0.625)

    def test_a_constant_scorer_stays_at_the_mean_and_says_so(self):
        curves = pool_curves([pool_item([0.0, 1.0, 2.0])], [np.zeros(3)])
        assert curves.gold[0] == pytest.approx([1, 1, 1])
        assert (curves.proxy_standardized == 0).all()
        assert curves.kl_estimate[0] == pytest.approx([0, 0, 0], abs=1e-12)
        assert "every pick is random" in curves.notes[0]

    def test_log_probabilities_count_only_where_they_are_those_of_the_sampling(self):
        scores, known = np.arange(4.0), [float(np.log(0.25))] * 4
        plain = pool_item(range(4), plain_sampling=True, log_probabilities=known)
        sharpened = replace(plain, meta={"plain_sampling": False, "log_probabilities": known})
        assert pool_curves([plain], [scores]).kl_estimate[0, -1] < pool_curves([plain], [scores]).kl_bound[-1] - 0.04
        assert pool_curves([sharpened], [scores]).kl_estimate[0] == pytest.approx(
            pool_curves([plain], [scores]).kl_bound
        )

    @pytest.mark.parametrize("label", [[1.0, None], [1.0], [1.0, float("nan")], "A>B", None])
    def test_a_label_without_gold_is_an_error(self, label):
        with pytest.raises(DataError, match=r"label .* is not allowed"):
            pool_curves([BenchmarkItem("p", "s", PROMPT, ["a", "b"], label)], [np.zeros(2)])

    def test_scores_that_are_missing_or_too_few_are_an_error(self):
        for scores in (np.array([1.0, np.nan]), np.zeros(3)):
            with pytest.raises(DataError, match="item 'p': 2 finite scores are needed"):
                pool_curves([pool_item([0.0, 1.0])], [scores])
        with pytest.raises(DataError, match="empty"):
            pool_curves([], [])


def test_a_score_table_with_nan_names_item_and_response(tmp_path):
    item = pool_item([0.0, 1.0])
    rows = [
        ScoredResponse("p", k, response_hash(text), score, 3, False)
        for k, (text, score) in enumerate(zip(item.responses, (1.0, np.nan), strict=True))
    ]
    write_scores(rows, tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="item 'p', response 1, is not finite"):
        read_pool_scores([item], tmp_path / "scores.parquet")


def test_gold_without_a_member_is_that_of_the_mean_of_the_others(tmp_path):
    runs = pool_runs(tmp_path, {"member": 1.0}, prompts=6, responses=8)
    items = read_items(runs[0].items)
    scores_MPN = np.array([read_pool_scores(items, run.scores) for run in runs])
    combined = write_score_table(items, list(scores_MPN.mean(axis=0)), tmp_path / "combined.parquet")
    ensemble = load_method("ensemble", {"members": "member", "aggregate": "mean", "weight": 0.5})
    left_out_scores = partial(ensemble.left_out_scores, report={"centers": [0.0] * 3})
    members = Members((0, 1, 2), {"policy": [run.scores for run in runs]}, left_out_scores)
    gold = left_out_gold(items, combined, members, "policy")
    for j in range(3):
        others = np.delete(scores_MPN, j, axis=0).mean(axis=0)
        np.testing.assert_allclose(gold[j], pool_curves(items, list(others)).gold, atol=1e-12)
    assert np.abs(gold[0] - gold[1]).max() > 0.01
    undefined = replace(members, left_out_scores=lambda *_: None)
    assert left_out_gold(items, combined, undefined, "policy") is None
    summary = summarize_best_of_n([replace(runs[0], members=members)], None, tmp_path / "out")
    assert "Best-of-N on policy" in summary.text
