"""What a run learns from: labels with noise, and pairs that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rm_methods.errors import DataError
from rm_methods.preferences.pair import read_pairs
from rm_methods.training.training_data import apply_truncation_policy, training_pairs
from tests.conftest import experiment_config, made_up_pairs


def test_a_level_of_noise_flips_the_same_pairs_for_every_variant_and_seed(prepared, tmp_path):
    config = experiment_config(
        tmp_path, noise_levels=[{"rate": 0.0}, {"rate": 0.25}], methods={"bradley_terry": {}, "label_smoothing": {}}
    )
    clean = read_pairs(prepared[0], splits=["train"])
    assert training_pairs(config, "bradley_terry", prepared[0])[0] == clean
    noisy, counts = training_pairs(config, "bradley_terry_noise25", prepared[0])
    assert counts["flipped"] == 12 == sum(pair.meta.get("flipped", False) for pair in noisy)
    assert [pair.pair_id for pair in noisy] == [pair.pair_id for pair in clean]
    assert training_pairs(config, "label_smoothing_noise25", prepared[0]) == (noisy, counts)


def test_truncation_policy_counts_what_it_drops(tokenizer):
    short = type(tokenizer)(tokenizer.tokenizer, 48)
    pairs = made_up_pairs(3)
    pairs[1] = replace(pairs[1], rejected="blue " * 100)
    same_start = "red " * 100
    pairs[2] = replace(pairs[2], chosen=same_start + "good", rejected=same_start + "bad")
    items = short.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    kept, _, counts = apply_truncation_policy(pairs, items, "drop")
    assert kept == pairs[:1]
    assert counts["dropped_response_cut"] == 2
    kept, _, counts = apply_truncation_policy(pairs, items, "truncate")
    assert kept == pairs[:2]
    assert counts["dropped_equal"] == 1
    with pytest.raises(DataError, match=pairs[1].pair_id):
        apply_truncation_policy(pairs, items, "error")
    with pytest.raises(DataError, match=r"training\.max_length"):
        apply_truncation_policy(pairs[1:], items[1:], "drop")
