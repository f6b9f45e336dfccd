from dataclasses import replace

import pytest

from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.cross_fitted import Method, fold_of
from rm_methods.preferences.pair import make_pair
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config, made_up_pairs


def kept(pairs, seed, folds, tmp_path):
    method = Method({"folds": folds, "epochs": None})
    return method.transform_pairs(list(pairs), Inputs(seed, tmp_path)), method.report()


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_pair_is_left_out_by_exactly_one_of_consecutive_seeds(folds, tmp_path):
    pairs = made_up_pairs(60)
    seen = [{pair.pair_id for pair in kept(pairs, seed, folds, tmp_path)[0]} for seed in range(7, 7 + folds)]
    for pair in pairs:
        assert sum(pair.pair_id in ids for ids in seen) == folds - 1


def test_seeds_of_equal_remainder_leave_out_the_same_fold(tmp_path):
    pairs = made_up_pairs(30)
    assert kept(pairs, 1, 3, tmp_path) == kept(pairs, 4, 3, tmp_path)
    assert kept(pairs, 1, 3, tmp_path)[1]["fold_left_out"] == 1


def test_pairs_of_one_prompt_stay_together(tmp_path):
    # White space and case do not make another prompt.
    prompts = [f"Question {k % 20}" if k < 20 else f" question  {k % 20}" for k in range(40)]
    pairs = [
        make_pair([{"role": "user", "content": p}], f"good {k}", f"bad {k}", split="train", source="s")
        for k, p in enumerate(prompts)
    ]
    left = {pair.group for pair in kept(pairs, 0, 2, tmp_path)[0]}
    assert {pair.group for pair in pairs if pair.group not in left}.isdisjoint(left)
    groups = [pair.group for pair in kept(pairs, 0, 2, tmp_path)[0]]
    assert all(groups.count(group) == 2 for group in groups)


def test_a_pairs_fold_does_not_depend_on_the_other_pairs_or_its_label(tmp_path):
    pairs = made_up_pairs(40)
    swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs[::-1][:25]]
    every = {pair.pair_id for pair in kept(pairs, 0, 2, tmp_path)[0]}
    few = {pair.pair_id for pair in kept(swapped, 0, 2, tmp_path)[0]}
    assert few == every & {pair.pair_id for pair in swapped}


def test_folds_are_of_about_equal_size():
    counts = [0] * 4
    for k in range(4000):
        counts[fold_of(f"group {k}", 4)] += 1
    # Standard deviation of each count is 27.
    assert all(abs(count - 1000) < 120 for count in counts)


def test_counts_are_reported_and_the_budget_is_that_of_all_pairs(prepared, tmp_path):
    config = experiment_config(tmp_path, methods={"cross_fitted": {"folds": 3}})
    outputs = [tmp_path / name for name in ("model", "metrics.jsonl", "summary.json", "work")]
    summary = train(config, "cross_fitted", 2, RunFiles(prepared[0], prepared[1], *outputs))
    report = summary["report"]
    assert (report["folds"], report["fold_left_out"]) == (3, 2)
    assert report["pairs_left_out"] > 0
    assert report["pairs_left_out"] + report["pairs_kept"] == summary["data"]["pairs"] == 48
    assert summary["cost"]["optimizer_steps"] == 48 // 8


def test_epochs_replace_those_of_the_experiment_only_if_given():
    given = {"epochs": 4, "learning_rate": 1e-3}
    assert Method({"folds": 2, "epochs": None}).training(given, 0) == given
    assert Method({"folds": 2, "epochs": 1}).training(given, 0) == {"epochs": 1, "learning_rate": 1e-3}


def test_nothing_left_to_train_on_is_refused(tmp_path):
    pair = made_up_pairs(1)[0]
    seed = fold_of(pair.group, 2)
    with pytest.raises(UserError, match=f"fold {seed} of 2 holds all 1 training pairs"):
        kept([pair], seed, 2, tmp_path)


def test_fewer_than_two_folds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"methods\.cross_fitted\.folds"):
        experiment_config(tmp_path, methods={"cross_fitted": {"folds": 1}})
