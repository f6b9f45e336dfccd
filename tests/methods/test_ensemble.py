import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rm_methods.methods.ensemble as ensemble
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.score_table import ScoredResponse, response_hash
from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.ensemble import Method, aggregate_rewards
from rm_methods.preferences.pair import write_pairs
from rm_methods.reward_models.backbones import load_classifier, prepare_backbone
from rm_methods.reward_models.model import RewardModel
from rm_methods.scoring import published
from rm_methods.scoring import scorer as scoring
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config, made_up_pairs

SETTINGS = ScoringSettings(max_length=256, threads=1)
AGGREGATES = ["mean", "worst_case", "uncertainty"]


def test_values_by_hand():
    rewards = np.array([[1.0, 4.0, -2.0], [3.0, 4.0, 1.0]])
    assert aggregate_rewards(rewards, "mean", 0.5).tolist() == [2.0, 4.0, -0.5]
    assert aggregate_rewards(rewards, "worst_case", 0.5).tolist() == [1.0, 4.0, -2.0]
    # k = 2: (a + b) / 2 - weight (a - b)^2 / 4.
    assert aggregate_rewards(rewards, "uncertainty", 0.5).tolist() == [2.0 - 0.5 * 4 / 4, 4.0, -0.5 - 0.5 * 9 / 4]


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_identical_members_give_their_own_reward(aggregate):
    reward = np.random.default_rng(0).normal(size=50)
    np.testing.assert_allclose(aggregate_rewards(np.stack([reward] * 4), aggregate, 0.5), reward, atol=1e-15, rtol=0)


def test_the_minimum_is_at_most_the_mean_and_weight_zero_is_exactly_the_mean():
    rewards = np.random.default_rng(1).normal(size=(5, 200))
    mean = aggregate_rewards(rewards, "mean", 0.5)
    assert (aggregate_rewards(rewards, "worst_case", 0.5) <= mean).all()
    assert (aggregate_rewards(rewards, "uncertainty", 0.1) < mean).all()
    assert np.array_equal(aggregate_rewards(rewards, "uncertainty", 0.0), mean)


def test_the_variance_is_divided_by_the_number_of_members():
    # Members 0, 3, 6: mean 3, population variance 6 (the sample variance would be 9).
    assert aggregate_rewards(np.array([[0.0], [3.0], [6.0]]), "uncertainty", 0.5).tolist() == [0.0]


@pytest.fixture
def member(prepared, tokenizer, tmp_path):
    """member(seed) saves a reward model with random weights as the run of a seed and gives its folder."""

    def of(seed, backbone=prepared[1], tokenizer=tokenizer):
        folder = tmp_path / "runs" / "bradley_terry" / f"seed{seed}"
        RewardModel(load_classifier(backbone, prepared[2]["backbone"], seed)).save(folder / "model")
        tokenizer.tokenizer.save_pretrained(folder / "model")
        (folder / "summary.json").write_text(json.dumps({"run_key": f"key{seed}"}))
        return folder / "model"

    return of


def combined(prepared, tmp_path, members, aggregate="mean", weight=0.5, pairs=None):
    """The report and the folder of an ensemble, made as a run makes it: under another name first."""
    inputs = Inputs(0, tmp_path, "ensemble seed 0", prepared[2], required={"members": members})
    folder = tmp_path / "runs" / "ensemble" / "seed0" / ".model.partial"
    folder.mkdir(parents=True)
    method = Method({"members": "bradley_terry", "aggregate": aggregate, "weight": weight})
    report = method.combine(made_up_pairs(6, seed=3) if pairs is None else pairs, inputs, folder)
    return report, folder.rename(folder.with_name("model"))


def items_of(pairs):
    return [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected, p.chosen * 3], 0) for p in pairs]


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_scores_are_the_aggregate_of_the_centered_members(aggregate, prepared, pairs, member, tmp_path):
    members = [member(seed) for seed in (0, 1, 2)]
    report, folder = combined(prepared, tmp_path, members, aggregate)
    items, validation = items_of(pairs[:4]), items_of(made_up_pairs(6, seed=3))
    expected = []
    for model, center in zip(members, report["centers"], strict=True):
        validated = [row.score for row in load_scorer(model, SETTINGS).score(validation) if row.response_index < 2]
        assert center == pytest.approx(np.mean(validated), abs=1e-6)
        expected.append([row.score - center for row in load_scorer(model, SETTINGS).score(items)])
    rows = load_scorer(folder, SETTINGS).score(items)
    assert [row.score for row in rows] == pytest.approx(
        aggregate_rewards(np.array(expected), aggregate, 0.5).tolist(), abs=1e-6
    )
    alone = load_scorer(members[0], SETTINGS).score(items)
    assert [replace(row, score=0.0) for row in rows] == [replace(row, score=0.0) for row in alone]


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_scores_without_a_member_are_those_of_the_ensemble_of_the_others(aggregate, prepared, pairs, member, tmp_path):
    members = [member(seed) for seed in (0, 1, 2)]
    report, _ = combined(prepared, tmp_path, members, aggregate)
    items = items_of(pairs[:4])
    scores = np.array([[row.score for row in load_scorer(model, SETTINGS).score(items)] for model in members])
    method = Method({"members": "bradley_terry", "aggregate": aggregate, "weight": 0.5})
    left_out = method.left_out_scores(scores, np.zeros(scores.shape[1]), report)
    for j in range(3):
        _, folder = combined(prepared, tmp_path / f"without{j}", [*members[:j], *members[j + 1 :]], aggregate)
        assert left_out[j].tolist() == [row.score for row in load_scorer(folder, SETTINGS).score(items)]


def test_what_had_to_be_cut_stays_marked(prepared, pairs, member, tmp_path):
    folder = combined(prepared, tmp_path, [member(0), member(1)])[1]
    rows = load_scorer(folder, SETTINGS).score([BenchmarkItem("a", "s", pairs[0].prompt, ["short", "long " * 2000], 0)])
    assert [row.truncated for row in rows] == [False, True]
    assert 0 < rows[0].n_tokens < rows[1].n_tokens <= 256


class Shifted(scoring.Scorer):
    """A loaded member with made-up rewards, moved by a constant."""

    def __init__(self, folder):
        self.number, self.shift = json.loads((folder / "member.json").read_text())

    def compute(self, items, label=""):
        texts = [(item, k, text) for item in items for k, text in enumerate(item.responses)]
        return scoring.Scoring(
            [
                ScoredResponse(i.item_id, k, response_hash(t), len(t) % (7 + self.number) + self.shift, 1, False)
                for i, k, t in texts
            ]
        )

    def computation(self):
        return {}


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_constant_added_to_a_member_changes_nothing(aggregate, prepared, pairs, tmp_path, monkeypatch):
    for module in (ensemble, scoring):
        monkeypatch.setattr(module, "load_scorer", lambda folder, settings: Shifted(folder))
    scores = []
    for k, shift in enumerate((0.0, -100.0)):
        members = [tmp_path / f"{k}" / "member" / str(number) for number in range(3)]
        for number, folder in enumerate(members):
            folder.mkdir(parents=True)
            (folder / "member.json").write_text(json.dumps([number, shift if number == 1 else 0.0]))
        _, folder = combined(prepared, tmp_path / str(k), members, aggregate)
        description = json.loads((folder / "scorer.json").read_text())
        scores.append(
            [row.score for row in scoring.EnsembleScorer(description, folder, SETTINGS).score(items_of(pairs[:5]))]
        )
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)
    assert len(set(scores[0])) > 3


def test_an_experiment_that_was_moved_as_a_whole_scores_as_before(prepared, pairs, tmp_path):
    config = experiment_config(tmp_path, methods={"bradley_terry": {}, "ensemble": {}}, seeds=[0, 1])
    runs = tmp_path / "experiment" / "runs"
    members = []
    for seed in (0, 1):
        train(config, "bradley_terry", seed, run_files(prepared, runs / "bradley_terry" / f"seed{seed}", {}))
        members.append(runs / "bradley_terry" / f"seed{seed}" / "model")
    summary = train(config, "ensemble", 0, run_files(prepared, runs / "ensemble" / "seed0", {"members": members}))
    assert summary["report"]["members"] == 2
    assert summary["metrics"]["validation_pairs"] == 12
    description = json.loads((runs / "ensemble" / "seed0" / "model" / "scorer.json").read_text())
    assert description["members"] == [f"../../../bradley_terry/seed{seed}/model" for seed in (0, 1)]
    before = load_scorer(runs / "ensemble" / "seed0" / "model", SETTINGS).score(items_of(pairs[:4]))
    (tmp_path / "experiment").rename(tmp_path / "elsewhere")
    after = load_scorer(tmp_path / "elsewhere" / "runs" / "ensemble" / "seed0" / "model", SETTINGS).score(
        items_of(pairs[:4])
    )
    assert after == before


def run_files(prepared, folder, required):
    outputs = (folder / "model", folder / "metrics.jsonl", folder / "summary.json", folder / "work")
    return RunFiles(prepared[0], prepared[1], *outputs, required)


@pytest.fixture
def alive(monkeypatch):
    """For each model that is loaded, how many of those loaded before are still in memory."""
    loaded, alive = [], []
    original = published.published_scorer

    def counted(*arguments):
        gc.collect()
        alive.append(sum(reference() is not None for reference in loaded))
        made = original(*arguments)
        loaded.append(weakref.ref(made.model))
        return made

    monkeypatch.setattr(published, "published_scorer", counted)
    return alive


def test_only_one_member_is_loaded_at_a_time(prepared, pairs, member, tmp_path, alive):
    folder = combined(prepared, tmp_path, [member(0), member(1), member(2)])[1]
    alive.clear()
    scorer = load_scorer(folder, SETTINGS)
    assert alive == []
    scorer.score(items_of(pairs[:2]))
    assert alive == [0, 0, 0]


def test_members_that_are_to_stay_loaded_are_loaded_once_and_score_the_same(prepared, pairs, member, tmp_path, alive):
    folder = combined(prepared, tmp_path, [member(0), member(1), member(2)])[1]
    once = [load_scorer(folder, SETTINGS).score(items_of(some)) for some in (pairs[:2], pairs[2:5])]
    alive.clear()
    scorer = load_scorer(folder, SETTINGS, keep_loaded=True)
    assert [scorer.score(items_of(some)) for some in (pairs[:2], pairs[2:5])] == once
    assert alive == [0, 1, 2]


def test_a_single_member_is_refused(prepared, member, tmp_path):
    config = experiment_config(tmp_path, methods={"bradley_terry": {}, "ensemble": {}}, seeds=[0, 1])
    with pytest.raises(UserError, match="2 or more runs of 'bradley_terry'; 1 were given"):
        train(config, "ensemble", 0, run_files(prepared, tmp_path / "out", {"members": [member(0)]}))
    with pytest.raises(ConfigError, match="needs at least 2 seeds"):
        resolve(
            {key: config[key] for key in ("experiment", "data")}
            | {"methods": {"bradley_terry": {}, "ensemble": {}}, "seeds": [0]}
        )


def test_a_missing_member_is_named(prepared, member, tmp_path):
    members = [member(0), member(1)]
    folder = combined(prepared, tmp_path, members)[1]
    members[1].rename(members[1].with_name("away"))
    with pytest.raises(UserError, match=r"1 of 2 members are missing, the first is .*/bradley_terry/seed1/model"):
        load_scorer(folder, SETTINGS)


def test_members_that_read_the_text_differently_are_refused(prepared, pairs, member, tmp_path):
    from rm_methods.reward_models.backbones import load_tokenizer

    section = prepared[2]["backbone"] | {"tiny": prepared[2]["backbone"]["tiny"] | {"vocabulary_size": 270}}
    prepare_backbone(section, pairs, tmp_path / "other")
    other = member(1, tmp_path / "other", load_tokenizer(tmp_path / "other", 256))
    folder = combined(prepared, tmp_path, [member(0), other])[1]
    with pytest.raises(UserError, match="different tokenizers"):
        load_scorer(folder, SETTINGS).score(items_of(pairs[:1]))


def test_without_validation_pairs_it_says_what_to_do(prepared, member, tmp_path):
    with pytest.raises(UserError, match=r"Set data\.validation_fraction"):
        combined(prepared, tmp_path, [member(0), member(1)], pairs=[])


def test_a_run_without_validation_split_leaves_no_model(prepared, member, tmp_path):
    write_pairs(made_up_pairs(4), tmp_path / "train_only.parquet")
    config = experiment_config(tmp_path, methods={"bradley_terry": {}, "ensemble": {}}, seeds=[0, 1])
    files = run_files(prepared, tmp_path / "out", {"members": [member(0), member(1)]})
    with pytest.raises(UserError, match="ensemble: the members' rewards"):
        train(config, "ensemble", 0, replace(files, pairs=Path(tmp_path / "train_only.parquet")))
    assert not (tmp_path / "out" / "model").exists()
