import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import rm_methods.methods.preference_strength as module
from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs
from rm_methods.methods.cross_fitted import fold_of
from rm_methods.methods.label_smoothing import label_smoothing_loss
from rm_methods.methods.preference_strength import Method, detection, lowest, preference_strength_loss, relabeled
from rm_methods.methods.registry import load_method_card
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.pair import make_pair, write_pairs
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config, made_up_pairs

STRENGTHS = np.array([2.0, -1.0, 0.0, -3.0, 7.0])  # mean 1, population std sqrt(63/5 - 1) = sqrt(11.6)
SPREAD = 11.6**0.5


def pairs_of(count):
    return [
        make_pair([{"role": "user", "content": f"q{k}"}], f"c{k}", f"r{k}", split="train", source="s", strength=1.0)
        for k in range(count)
    ]


def arms(flip=0.0, margin=0.0, smoothing=0.0):
    pairs = pairs_of(5)
    return pairs, relabeled(pairs, STRENGTHS, lowest(STRENGTHS, pairs, flip), margin=margin, smoothing=smoothing)


def test_flip_swaps_the_texts_of_the_lowest_pairs_only():
    pairs, result = arms(flip=0.4)
    swapped = [(new.chosen, new.rejected) == (old.rejected, old.chosen) for old, new in zip(pairs, result, strict=True)]
    assert swapped == [False, True, False, True, False]
    assert [new.pair_id for new in result] == [old.pair_id for old in pairs]
    assert all(new.margin == 0 and new.target == 1 for new in result)


@pytest.mark.parametrize(("flip", "count"), [(0.0, 0), (0.05, 0), (0.2, 1), (0.4, 2), (0.49, 2)])
def test_the_number_of_flips_is_the_rounded_share(flip, count):
    assert lowest(STRENGTHS, pairs_of(5), flip).sum() == count


def test_equal_strengths_are_flipped_by_pair_id_whatever_their_order():
    pairs = pairs_of(6)
    first = {p.pair_id for p, chosen in zip(pairs, lowest(np.zeros(6), pairs, 0.3), strict=True) if chosen}
    second = {p.pair_id for p, chosen in zip(pairs[::-1], lowest(np.zeros(6), pairs[::-1], 0.3), strict=True) if chosen}
    assert first == second
    assert len(first) == 2


def test_margin_by_hand():
    # Divided by the standard deviation, clipped to [0, 3] (7 / 3.41 is 2.06).
    result = arms(margin=0.5)[1]
    assert [pair.margin for pair in result] == pytest.approx([0.5 * 2 / SPREAD, 0, 0, 0, 0.5 * 7 / SPREAD])
    far = np.array([0.0] * 99 + [50.0])
    assert relabeled(pairs_of(100), far, np.zeros(100, dtype=bool), margin=2.0, smoothing=0.0)[-1].margin == 6.0


def test_flip_with_margin_takes_the_absolute_strength_of_flipped_pairs():
    result = arms(flip=0.2, margin=1.0)[1]
    # The pair of strength -3 is flipped and gets 3; that of -1 is not and gets none.
    assert [pair.margin for pair in result] == pytest.approx([2 / SPREAD, 0, 0, 3 / SPREAD, 7 / SPREAD])
    # A flipped pair of positive strength keeps it.
    flipped = np.array([True, False, False, False, False])
    assert relabeled(pairs_of(5), STRENGTHS, flipped, margin=1.0, smoothing=0.0)[0].margin == pytest.approx(2 / SPREAD)


def test_smoothing_is_for_negative_strength_after_the_flips():
    assert [pair.target for pair in arms(smoothing=0.25)[1]] == [1, 0.75, 1, 0.75, 1]
    result = arms(flip=0.2, margin=1.0, smoothing=0.25)[1]
    assert [pair.target for pair in result] == [1, 0.75, 1, 1, 1]
    assert result[1].margin == 0


def test_loss_by_hand():
    rewards = torch.tensor([[1.2, 0.1], [1.2, 0.1], [1.2, 0.1], [1.2, 0.1]], dtype=torch.float64)
    margin = torch.tensor([0.0, 0.4, 0.0, 0.4], dtype=torch.float64)
    target = torch.tensor([1.0, 1.0, 0.8, 0.8], dtype=torch.float64)
    right, wrong = (lambda z: np.log1p(np.exp(-z))), (lambda z: np.log1p(np.exp(z)))
    expected = [right(1.1), right(0.7), 0.8 * right(1.1) + 0.2 * wrong(1.1), 0.8 * right(0.7) + 0.2 * wrong(0.7)]
    assert preference_strength_loss(rewards, margin, target).tolist() == pytest.approx(expected, abs=1e-12)


def test_without_margin_it_is_bradley_terry_or_label_smoothing():
    rewards = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    zero, one = torch.zeros(20), torch.ones(20)
    assert torch.equal(preference_strength_loss(rewards, zero, one), bradley_terry_loss(rewards))
    torch.testing.assert_close(preference_strength_loss(rewards, zero, 0.9 * one), label_smoothing_loss(rewards, 0.1))


def test_equal_strengths_with_a_margin_are_refused():
    with pytest.raises(UserError, match="margin = 1 is in standard deviations"):
        relabeled(pairs_of(3), np.full(3, 0.5), np.zeros(3, dtype=bool), margin=1.0, smoothing=0.0)


def test_detection_by_hand():
    # Wrong labels have -mu of 3 and -2, right ones 1, 0 and -7.  Of the six comparisons (3 > all, -2 > -7) four are
    # won.
    strengths, wrong = np.array([2.0, -1.0, 0.0, -3.0, 7.0]), np.array([True, False, False, True, False])
    actual = detection(strengths, np.array([False, True, False, True, False]), wrong)
    assert actual == {"auroc": pytest.approx(4 / 6), "precision": 0.5, "recall": 0.5}
    assert detection(np.zeros(4), np.zeros(4, dtype=bool), np.array([True, False, False, False])) == {
        "auroc": 0.5,
        "recall": 0.0,
    }
    assert detection(strengths, wrong, np.zeros(5, dtype=bool)) == {}


def method(**settings):
    return Method(load_method_card("preference_strength").defaults() | settings)


class Judge:
    """Stands for a loaded model: the margin of a pair is the model's own number, plus the number in its prompt."""

    def __init__(self, folder):
        self.own = float((folder / "margin.txt").read_text())


@pytest.fixture
def judges(tmp_path, monkeypatch, prepared):
    """judges(pairs, (left out, own number), ...) gives the inputs of a run whose models of strength are `Judge`s."""
    judged = []

    def pair_rewards(judge, pairs, label):
        judged.append((judge.own, {pair.pair_id for pair in pairs}))
        return np.array([[judge.own + float(pair.prompt[0]["content"][1:]), 0.0] for pair in pairs])

    monkeypatch.setattr(module, "load_scorer", lambda folder, settings: Judge(folder))
    monkeypatch.setattr(module, "pair_rewards", pair_rewards)

    def of(*models, folds=2):
        for k, (left_out, own) in enumerate(models):
            (tmp_path / f"seed{k}" / "model").mkdir(parents=True)
            report = {"folds": folds, "fold_left_out": left_out}
            (tmp_path / f"seed{k}" / "summary.json").write_text(json.dumps({"report": report}))
            (tmp_path / f"seed{k}" / "model" / "margin.txt").write_text(str(own))
        folders = [tmp_path / f"seed{k}" / "model" for k in range(len(models))]
        return Inputs(0, tmp_path, "run", prepared[2], prepared[1], {"strengths": folders}), judged

    return of


def test_strength_is_the_mean_margin_of_the_models_that_did_not_see_the_pair(judges):
    inputs, judged = judges((0, 10.0), (1, 100.0), (0, 30.0))
    pairs = pairs_of(12)
    strengths, deviations, folds = module.cross_fitted_strengths(pairs, inputs)
    assert folds == 2
    for k, pair in enumerate(pairs):
        of_first_fold = fold_of(pair.group, 2) == 0
        assert strengths[k] == pytest.approx(k + (20.0 if of_first_fold else 100.0))
        assert deviations[k] == pytest.approx(10.0 if of_first_fold else 0.0)
    by_fold = [{pair.pair_id for pair in pairs if fold_of(pair.group, 2) == fold} for fold in (0, 1)]
    assert judged == [(10.0, by_fold[0]), (100.0, by_fold[1]), (30.0, by_fold[0])]


def test_folds_that_no_model_left_out_are_refused(judges):
    inputs, _ = judges((1, 0.0), (1, 0.0), folds=3)
    with pytest.raises(UserError, match=r"no model was trained without fold 0, 2, .*leave out \[1, 1\]"):
        method().transform_pairs(pairs_of(4), inputs)


def test_rewards_that_are_not_finite_are_refused(judges):
    inputs, _ = judges((0, float("nan")), (1, 0.0))
    with pytest.raises(UserError, match="not finite"):
        method().transform_pairs(pairs_of(8), inputs)


def test_released_strengths_are_taken_from_the_data(tmp_path):
    pairs = [replace(pair, strength=float(k - 2)) for k, pair in enumerate(pairs_of(10))]
    run = method(strengths="data", flip=0.2, smoothing=0.1)
    result = run.transform_pairs(pairs, Inputs(0, tmp_path))
    assert [new.chosen == old.rejected for old, new in zip(pairs, result, strict=True)] == [True, True] + [False] * 8
    report = run.report()
    assert (report["flipped"], report["flipped_share"], report["smoothed"]) == (2, 0.2, 0)
    assert report["strength_quantiles"]["0.5"] == 2.5
    assert report["share_negative"] == 0.2
    assert report["noise_detection"] == {}
    json.dumps(report, allow_nan=False)


def test_released_strengths_are_refused_for_noisy_labels_and_where_there_are_none(tmp_path):
    noisy, _ = flip_labels(made_up_pairs(10), 0.2, "symmetric", 0)
    with pytest.raises(UserError, match="2 of 10 training labels were flipped after"):
        method(strengths="data").transform_pairs(noisy, Inputs(0, tmp_path))
    without = [replace(pair, strength=None) for pair in made_up_pairs(3)]
    with pytest.raises(UserError, match="3 of 3 training pairs have none"):
        method(strengths="data").transform_pairs(without, Inputs(0, tmp_path))


def test_impossible_settings_are_refused_by_the_configuration(tmp_path):
    wrong = {"flip": 0.5, "margin": -1, "smoothing": 0.5}
    with pytest.raises(ConfigError) as caught:
        experiment_config(tmp_path, methods={"cross_fitted": {}, "preference_strength": wrong}, seeds=[0, 1])
    assert all(f"methods.preference_strength.{name}" in str(caught.value) for name in wrong)
    with pytest.raises(ConfigError, match="needs at least 2 seeds"):
        experiment_config(tmp_path, methods={"cross_fitted": {}, "preference_strength": {}}, seeds=[0])
    experiment_config(tmp_path, methods={"preference_strength": {"strengths": "data"}}, seeds=[0, 1])


def test_injected_flips_are_found_and_swapped_back(prepared, tmp_path):
    noisy, _ = flip_labels(made_up_pairs(80, seed=5), 0.25, "symmetric", 0)
    write_pairs([*noisy, *made_up_pairs(12, seed=6, split="validation")], tmp_path / "noisy.parquet")
    methods = {"cross_fitted": {}, "preference_strength": {"flip": 0.2, "margin": 0.5, "smoothing": 0.1}}
    config = experiment_config(tmp_path, methods=methods, seeds=[0, 1], training={"epochs": 3})

    def run(variant, seed, required):
        folder = tmp_path / variant / f"seed{seed}"
        outputs = (folder / "model", folder / "metrics.jsonl", folder / "summary.json", folder / "work")
        return train(
            config, variant, seed, RunFiles(tmp_path / "noisy.parquet", prepared[1], *outputs, required)
        ), folder / "model"

    models = [run("cross_fitted", seed, {})[1] for seed in (0, 1)]
    report = run("preference_strength", 0, {"strengths": models})[0]["report"]
    assert report["flipped"] == 16
    assert sum(report["flipped_by_fold"]) == 16
    actual = report["noise_detection"]
    # 20 of 80 labels are wrong; a random order has an AUROC of 0.5 +- 0.075 and a precision of 0.25.
    assert actual["auroc"] > 0.65
    assert actual["precision"] > 0.4
