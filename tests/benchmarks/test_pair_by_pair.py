"""Joint models are graded pair by pair on items of more than two responses, by their own preferences."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rm_methods.benchmarks import rm_bench, rmb
from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import align_preferences, credit_table, evaluate_run, metric_values, tie_rate
from rm_methods.benchmarks.grading import wins_of_scores
from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.benchmarks.score_table import ScoredResponse, read_preferences, response_hash, write_scores
from rm_methods.errors import DataError
from rm_methods.files import read_json
from rm_methods.reward_models.joint_model import JointModel
from rm_methods.reward_models.joint_reader import DecoderReader
from rm_methods.scoring.scorer import JointScorer, ScoringSettings

PROMPT = [{"role": "user", "content": "Paint it."}]
LABEL = {"chosen": [0, 1, 2], "rejected": [3, 4, 5]}
ITEM = BenchmarkItem("a", "chat", PROMPT, ["red", "blue", "green", "pink", "gray", "teal"], LABEL)


def circular(better: int, worse: int) -> np.ndarray:
    """All logits are 0 but for one pair."""
    logits = np.zeros((6, 6), dtype=np.float32)
    logits[better, worse], logits[worse, better] = 1.5, -1.5
    return logits


def test_the_matrix_of_rm_bench_is_that_of_the_preferences():
    """Only chosen 0 against rejected 1 (index 4) is won: one of the three hard cells."""
    card = load_benchmark_card("rm_bench")
    logits = circular(0, 4)
    scores = [np.zeros(6, dtype=np.float32)]
    metrics = metric_values(credit_table(card, [ITEM], scores, {"a": logits}))
    assert metrics["hard"] == pytest.approx(1 / 3)
    assert metrics["easy"] == metrics["normal"] == 0
    assert tie_rate(card, [ITEM], scores, {"a": logits}) == pytest.approx(8 / 9)
    assert metric_values(credit_table(card, [ITEM], scores))["hard"] == 0


def test_preferences_that_no_scores_could_give():
    """The best answer of a list beats every other one, and these beat each other in a circle."""
    logits = np.array([[0, 1, 1, 1], [-1, 0, 2, -2], [-1, -2, 0, 2], [-1, 2, -2, 0]], dtype=np.float32)
    item = BenchmarkItem("l", "help_bon", PROMPT, ["a", "b", "c", "d"], 0)
    assert rmb.grade_wins(item.label, logits > 0) == {"accuracy": 1.0}
    logits[0, 3], logits[3, 0] = -1, 1
    assert rmb.grade_wins(item.label, logits > 0) == {"accuracy": 0.0}
    logits[0, 3] = np.nan
    assert rmb.grade_wins(item.label, logits > 0) == {"accuracy": 0.0}


@pytest.mark.parametrize("seed", range(5))
def test_preferences_that_are_differences_of_scores_change_nothing(seed):
    scores = np.random.default_rng(seed).normal(size=6).astype(np.float32)
    scores[4] = scores[1]
    assert rm_bench.grade_wins(LABEL, wins_of_scores(scores)) == rm_bench.grade(LABEL, scores)
    logits = scores[:, None] - scores[None, :]
    assert rm_bench.grade_wins(LABEL, logits > 0) == rm_bench.grade(LABEL, scores)


def test_a_benchmark_without_comparisons_of_pairs_keeps_the_scores():
    card = load_benchmark_card("rewardbench2")
    item = BenchmarkItem("a", "math", PROMPT, ["r", "b", "g", "p"], {"correct": 1})
    scores = [np.array([3, 2, 1, 0], dtype=np.float32)]
    plain = metric_values(credit_table(card, [item], scores))
    assert plain["math"] == 1
    assert metric_values(credit_table(card, [item], scores, {"a": -np.ones((4, 4))})) == plain


@pytest.fixture
def table(tmp_path):
    """Writes items and a score table with preferences."""

    def make(preferences, items=(ITEM,)):
        write_items(items, tmp_path / "items.parquet")
        rows = [
            ScoredResponse(item.item_id, k, response_hash(text), float(k), 3, False)
            for item in items
            for k, text in enumerate(item.responses)
        ]
        write_scores(rows, tmp_path / "scores.parquet", preferences)
        return tmp_path / "items.parquet", tmp_path / "scores.parquet"

    return make


def test_the_evaluate_stage_reads_the_preferences_of_the_table(table, tmp_path):
    items, scores = table({"a": circular(2, 3).tolist()})
    identity = {"variant": "v", "method": "m", "seed": 0, "run_key": "k"}
    evaluate_run([("rm_bench", items, scores)], identity, tmp_path / "m.json", tmp_path / "c.parquet")
    result = read_json(tmp_path / "m.json")["benchmarks"]["rm_bench"]
    assert result["metrics"]["easy"] == pytest.approx(1 / 3)
    assert result["tie_rate"] == pytest.approx(8 / 9)
    table(None)
    assert read_preferences(scores) is None
    evaluate_run([("rm_bench", items, scores)], identity, tmp_path / "m.json", tmp_path / "c.parquet")
    assert (
        read_json(tmp_path / "m.json")["benchmarks"]["rm_bench"]["metrics"]["easy"] == 0
    )  # scores rise with the index


def test_unknown_preferences_are_kept_and_earn_nothing(table):
    logits = circular(0, 3).tolist()
    logits[0][3] = logits[3][0] = None
    _, scores = table({"a": logits})
    arrays = align_preferences([ITEM], scores)
    assert np.isnan(arrays["a"][0, 3])
    zeros = [np.zeros(6, dtype=np.float32)]
    assert metric_values(credit_table(load_benchmark_card("rm_bench"), [ITEM], zeros, arrays))["normal"] == 0


@pytest.mark.parametrize(
    ("preferences", "message"),
    [
        ({"b": np.zeros((6, 6)).tolist()}, "do not fit the 1 items"),
        ({"a": np.zeros((5, 5)).tolist()}, "do not fit the 1 items"),
        ({"a": [[0, 1], [0]]}, "damaged"),
        ({"a": [["x"] * 6] * 6}, "damaged"),
        (["a"], "damaged"),
    ],
)
def test_other_preferences_are_refused(table, preferences, message):
    _, scores = table(json.loads(json.dumps(preferences)))
    with pytest.raises(DataError, match=message):
        align_preferences([ITEM], scores)


def test_a_joint_model_gives_a_logit_for_each_two_responses(prepared, tokenizer):
    """Antisymmetric; their mean over the others is the score."""
    from rm_methods.reward_models.backbones import load_classifier

    model = JointModel(load_classifier(prepared[1], prepared[2]["backbone"], seed=0), decoder=True).eval()
    scorer = JointScorer(model, DecoderReader(tokenizer), ScoringSettings(max_length=256, threads=1))
    pair = BenchmarkItem("p", "chat", PROMPT, ["red", "blue"], 0)
    scoring = scorer.compute([ITEM, pair])
    assert set(scoring.preferences) == {"a"}
    logits = np.array(scoring.preferences["a"])
    np.testing.assert_allclose(logits, -logits.T, atol=1e-6)
    scores = [row.score for row in scoring.responses if row.item_id == "a"]
    np.testing.assert_allclose(scores, logits.sum(1) / 6, atol=1e-6)
    assert np.abs(logits).max() > 0
    first, second = (row.score for row in scoring.responses if row.item_id == "p")
    np.testing.assert_allclose(first - second, logits[0, 1], atol=1e-6)
