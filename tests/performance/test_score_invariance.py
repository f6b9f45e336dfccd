"""performance/score_invariance.py: what it counts, and that its ways of scoring give one score in fp32 (tiny random
model)."""

from __future__ import annotations

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from tests.performance.test_gpu_script import script


def test_flips_are_counted_in_pairs_and_in_all_comparisons():
    theirs = np.array([[1.0, 0.0], [3.0, 2.0]])
    assert script("score_invariance").flips(theirs, theirs) == (0, 0)
    # Only the first pair turns round.
    assert script("score_invariance").flips(np.array([[0.0, 1.0], [3.0, 2.0]]), theirs) == (1, 1)
    # The smallest becomes the largest: it beats three others now.
    assert script("score_invariance").flips(np.array([[1.0, 9.0], [3.0, 2.0]]), theirs) == (1, 3)


def test_every_fp32_way_gives_the_same_scores_and_every_way_runs(reward_model, tokenizer, pairs):
    module = script("score_invariance")
    items = [BenchmarkItem(pair.pair_id, "s", pair.prompt, [pair.chosen, pair.rejected], 0) for pair in pairs[:5]]
    tables = {name: module.scores(reward_model, tokenizer, items, way)[0] for name, way in module.ways().items()}
    reference = tables["fp32, each text alone"]
    for name, table in tables.items():
        close = np.abs(table - reference).max() / reference.std()
        assert close <= (1e-4 if name.startswith("fp32") else 0.5), name
    alone = [table for name, table in tables.items() if "alone" in name and name.startswith("bf16")]
    assert (alone[0] == alone[1]).all()
