"""Controls: gold's labels, shuffled labels, and the same labels under other seeds."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError, DataError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.world import generate
from rm_methods.preferences.world.gold import gold
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config, made_up_pairs


def control(**settings):
    return load_method("label_control", load_method_card("label_control").defaults() | settings)


def test_gold_labels_are_golds_whatever_the_noise():
    pairs = generate(annotator={}, train_pairs=200, validation_pairs=0, test_pairs=0)
    wrong = sum(not pair.meta["as_gold"] for pair in pairs)
    assert 20 < wrong < 100
    noisy, counts = flip_labels(pairs, 0.3, "symmetric", 0)
    for given in (pairs, noisy):
        method = control(labels="gold")
        made = method.transform_pairs(given, Inputs(0, None))
        assert all(gold(pair.prompt, pair.chosen) > gold(pair.prompt, pair.rejected) for pair in made)
        assert [pair.pair_id for pair in made] == [pair.pair_id for pair in pairs]
        different = sum(a.chosen != b.chosen for a, b in zip(made, given, strict=True))
        assert method.report() == {"labels_swapped": different}
        assert different == wrong or given is noisy
    assert counts["flipped"] == 60


def test_half_of_the_labels_are_swapped_and_the_seed_decides_which():
    pairs = made_up_pairs(101)
    made = {}
    for seed in (0, 0, 1):
        method = control(labels="shuffled")
        made.setdefault(seed, []).append(method.transform_pairs(pairs, Inputs(seed, None)))
        assert method.report() == {"labels_swapped": 50}
    assert made[0][0] == made[0][1] != made[1][0]
    swapped = np.array(
        [[new.chosen == old.rejected for new, old in zip(of_seed[0], pairs, strict=True)] for of_seed in made.values()]
    )
    assert swapped.sum(axis=1).tolist() == [50, 50]
    # Two independent halves share half of their pairs: 25 of 50, with a standard deviation of 2.5.
    assert 15 <= (swapped[0] & swapped[1]).sum() <= 35


def weights(prepared, folder, name, seed, **settings):
    config = experiment_config(folder, methods={name: settings}, seeds=[seed])
    files = RunFiles(*prepared[:2], *(folder / part for part in ("model", "metrics.jsonl", "summary.json", "work")))
    summary = train(config, name, seed, files, threads=1)
    assert summary["seed"] == seed
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.process
def test_an_offset_is_bradley_terry_under_another_seed_to_the_bit(prepared, tmp_path):
    offset = weights(prepared, tmp_path / "offset", "label_control", 1, seed_offset=4)
    other = weights(prepared, tmp_path / "other", "bradley_terry", 5)
    without = weights(prepared, tmp_path / "without", "label_control", 1)
    same = weights(prepared, tmp_path / "same", "bradley_terry", 1)
    assert all(torch.equal(offset[key], other[key]) for key in other)
    assert all(torch.equal(without[key], same[key]) for key in same)
    assert any(not torch.equal(offset[key], same[key]) for key in same)


def test_gold_labels_need_the_world_and_the_others_do_not():
    rows = {
        "upper": {"method": "label_control", "labels": "gold"},
        "chance": {"method": "label_control", "labels": "shuffled"},
        "again": {"method": "label_control", "seed_offset": 100},
    }
    resolve({"experiment": "x", "data": {"dataset": "world"}, "methods": rows})
    with pytest.raises(ConfigError) as error:
        resolve({"experiment": "x", "data": {"dataset": "hh_rlhf"}, "methods": rows})
    assert [str(problem).partition(":")[0] for problem in error.value.problems] == ["methods.upper"]
    assert "with these settings needs the controlled world, but data.dataset is 'hh_rlhf'" in str(error.value)
    with pytest.raises(DataError, match=r"controlled world .* but the training pairs are of made up"):
        control(labels="gold").transform_pairs(made_up_pairs(3), Inputs(0, None))
