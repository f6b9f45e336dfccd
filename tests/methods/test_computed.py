"""The computed lines of the controlled world: exact values, and refusal of other data."""

import json

import numpy as np
import pytest

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError, DataError
from rm_methods.methods.registry import load_method, load_method_card, method_names
from rm_methods.preferences.pair import make_pair, write_pairs
from rm_methods.preferences.world import generate
from rm_methods.preferences.world import vocabulary as words
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config

COMPUTED = [name for name in method_names() if load_method_card(name).kind == "computed"]
PROMPT = [{"role": "user", "content": "I want a red color. The size should be small."}]
BIAS = {"closing": 4.0, "length": 0.0, "formatting": 1.0, "flattery": 2.0}


@pytest.fixture(scope="module")
def annotated():
    options = {"skill": 3.0, "bias": BIAS}
    return generate(annotator=options, train_pairs=200, validation_pairs=20, test_pairs=100)


def train_pairs(pairs):
    return [pair for pair in pairs if pair.split == "train"]


def fitted(name, pairs):
    method = load_method(name, load_method_card(name).defaults())
    method.fitted = json.loads(json.dumps(method.fit(train_pairs(pairs))))
    return method


def accuracy(method, pairs, split):
    margins = [
        method.score(pair.prompt, pair.chosen, 0) - method.score(pair.prompt, pair.rejected, 0)
        for pair in pairs
        if pair.split == split
    ]
    return np.mean(np.array(margins) > 0)


def test_scores_equal_the_values_derived_by_hand(annotated):
    response = f"{words.FLATTERIES[0]} It has a red color. The size is large. {words.CLOSINGS[1]} {words.CLOSINGS[2]}"
    assert fitted("gold", annotated).score(PROMPT, response, 0) == 0.0  # 1 met, 1 contradicted
    assert fitted("cue_only", annotated).score(PROMPT, response, 0) == 2.0
    assert fitted("annotator", annotated).score(PROMPT, response, 0) == 4.0 + 2.0 - 3.0 * 1.0
    assert fitted("annotator", annotated).score(PROMPT, "", 0) == -3.0  # two omissions


def test_lines_are_what_the_world_is_made_of(annotated):
    for split in ("iid", "cue_on_better", "cue_on_worse"):
        assert accuracy(fitted("gold", annotated), annotated, split) == 1.0
    assert accuracy(fitted("cue_only", annotated), annotated, "cue_on_better") == 1.0
    assert accuracy(fitted("cue_only", annotated), annotated, "cue_on_worse") == 0.0
    line = [p.meta["utility_chosen"] > p.meta["utility_rejected"] for p in annotated if p.split == "cue_on_worse"]
    assert accuracy(fitted("annotator", annotated), annotated, "cue_on_worse") == np.mean(line)


@pytest.mark.parametrize("name", COMPUTED)
def test_other_data_are_refused(name):
    other = [make_pair(PROMPT, "a", "b", split="train", source="mine.jsonl")]
    with pytest.raises(DataError, match=r"controlled world .* but the training pairs are of mine\.jsonl"):
        fitted(name, other)
    config = {"experiment": "x", "data": {"dataset": "hh_rlhf"}, "methods": {name: {}}}
    with pytest.raises(ConfigError, match=f"methods.{name}: .* but data.dataset is 'hh_rlhf'"):
        resolve(config)


@pytest.mark.parametrize("name", ["annotator", "cue_only"])
def test_a_world_without_annotators_is_refused(name):
    with pytest.raises(DataError, match=r"Set data\.options\.annotator"):
        fitted(name, generate(train_pairs=5, validation_pairs=0, test_pairs=0))
    with pytest.raises(ConfigError, match=f"methods.{name}: .* needs annotators"):
        resolve({"experiment": "x", "data": {"dataset": "world"}, "methods": {name: {}}})
    resolve({"experiment": "x", "data": {"dataset": "world", "options": {"annotator": {}}}, "methods": {name: {}}})


@pytest.mark.parametrize("name", COMPUTED)
def test_a_run_stores_what_it_needs_and_scores_like_the_method(name, annotated, tmp_path):
    write_pairs(annotated, tmp_path / "pairs.parquet")
    config = experiment_config(
        tmp_path, data={"dataset": "world", "options": {"annotator": {}}}, methods={name: {}}, seeds=[0]
    )
    outputs = (tmp_path / "model", tmp_path / "metrics.jsonl", tmp_path / "summary.json", tmp_path / "work")
    files = RunFiles(tmp_path / "pairs.parquet", tmp_path / "backbone", *outputs)
    summary = train(config, name, 0, files)
    assert (summary["kind"], summary["seed_free"]) == ("computed", True)
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in annotated[:5]]
    stored = [row.score for row in load_scorer(tmp_path / "model", ScoringSettings()).score(items)]
    method = fitted(name, annotated)
    assert stored == [method.score(item.prompt, text, 0) for item in items for text in item.responses]


@pytest.mark.parametrize("name", COMPUTED)
def test_cards_say_that_the_rows_are_no_rivals(name):
    card = load_method_card(name)
    assert card.without_seed
    assert card.without_model
    assert not card.has_weights
    assert card.scalar_reward
    assert card.data is not None
