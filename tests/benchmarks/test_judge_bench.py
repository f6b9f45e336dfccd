from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.judge_bench import CATEGORIES, grade
from rm_methods.errors import DataError

from .conftest import EXAMPLES

CARD = load_benchmark_card("judge_bench")
ROOT = EXAMPLES / "judge_bench"


def grades(label: str, *scores: float) -> tuple[float, float, float]:
    credit = grade(label, np.array(scores, dtype=np.float32))
    return credit["strict"], credit["single_game"], credit["double_game"]


class TestGrade:
    def test_without_a_tie_all_rules_agree(self):
        assert grades("A>B", 2, 1) == grades("B>A", 1, 2) == (1, 1, 1)
        assert grades("A>B", 1, 2) == grades("B>A", 2, 1) == (0, 0, 0)

    def test_a_tie_is_decided_as_b_in_the_single_game_only(self):
        assert grades("A>B", 1, 1) == (0, 0, 0)
        assert grades("B>A", 1, 1) == (0, 1, 0)

    def test_a_missing_score_earns_nothing_by_any_rule(self):
        for label, scores in itertools.product(["A>B", "B>A"], [(np.nan, 1), (1, np.nan), (np.nan, np.nan)]):
            assert grades(label, *scores) == (0, 0, 0)

    def test_the_double_game_equals_strict_comparison(self):
        for label, *scores in itertools.product(["A>B", "B>A"], [-1, 0, 1], [-1, 0, 1]):
            strict, _, double = grades(label, *scores)
            assert strict == double


def test_overall_is_the_micro_average_of_the_published_counts():
    """GRM-Gemma-2B in the official results: 97/154, 52/98, 36/56, 23/42 and 208/350 = 59.43; macro average 58.78."""
    counts = {"knowledge": (97, 154), "reasoning": (52, 98), "math": (36, 56), "coding": (23, 42)}
    items, scores = [], []
    for category, (right, total) in counts.items():
        for row in range(total):
            items.append(BenchmarkItem(f"{category}{row}", CATEGORIES[category], (), ["", ""], "A>B"))
            scores.append(np.array([row < right, 0.5], dtype=np.float32))
    values = metric_values(credit_table(CARD, items, scores))
    assert [round(100 * values[name], 2) for name in (*counts, "overall")] == [62.99, 53.06, 64.29, 54.76, 59.43]


class TestReading:
    def prepare(self, root, tmp_path, **options):
        report = prepare_items(
            "judge_bench", {"root": root, "options": options}, None, tmp_path / "i.parquet", tmp_path / "r.json"
        )
        return report, read_items(tmp_path / "i.parquet")

    def test_the_answers_of_one_model_at_a_time(self, tmp_path):
        _, gpt = self.prepare(ROOT, tmp_path)
        _, claude = self.prepare(ROOT, tmp_path, response_model="claude")
        assert [item.item_id for item in gpt] == ["pair-1", "pair-2", "pair-3", "pair-4", "pair-5"]
        assert [item.item_id for item in claude] == ["pair-6", "pair-7"]

    def test_equal_answers_are_kept_and_counted(self, tmp_path):
        report, items = self.prepare(ROOT, tmp_path, response_model="claude")
        assert len(items) == 2
        assert report["counted"]["both answers are the same text: always a tie, kept"] == {
            "count": 1,
            "examples": ["pair-7"],
        }

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label": "A=B"}, "row 1: label 'A=B' is not allowed"),
            ({"source": "gsm8k"}, "row 1: source 'gsm8k' is not one of JudgeBench"),
            ({"response_A": None}, "row 1: `response_A` must be a text"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, change, message):
        row = {
            "pair_id": "p",
            "source": "livecodebench",
            "question": "?",
            "response_A": "a",
            "response_B": "b",
            "label": "A>B",
        } | change
        (tmp_path / "x,response_model=gpt-4o-2024-05-13.jsonl").write_text(json.dumps(row))
        with pytest.raises(DataError, match=message):
            self.prepare(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("response_model", "counts", "a_better"),
    [("gpt", (154, 98, 56, 42), 193), ("claude", (154, 51, 34, 31), 143)],
)
def test_the_public_files(shared, tmp_path, response_model, counts, a_better):
    config = {"root": str(shared("data/judgebench")), "options": {"response_model": response_model}}
    report = prepare_items("judge_bench", config, None, tmp_path / "i.parquet", tmp_path / "r.json")
    assert report["subsets"] == dict(zip(CATEGORIES.values(), counts, strict=True))
    assert report["n_rows"] == report["n_items"] == sum(counts)
    assert sum(item.label == "A>B" for item in read_items(tmp_path / "i.parquet")) == a_better


def test_the_longer_answer_on_the_claude_set(shared, tmp_path):
    """Two pairs tie; the label of both is "B>A", so the official single game counts them as right."""
    config = {"root": str(shared("data/judgebench")), "options": {"response_model": "claude"}}
    prepare_items("judge_bench", config, None, tmp_path / "i.parquet", tmp_path / "r.json")
    items = read_items(tmp_path / "i.parquet")
    scores = [np.array([len(text) for text in item.responses], dtype=np.float32) for item in items]
    values = metric_values(credit_table(CARD, items, scores))
    names = ("overall", "knowledge", "coding", "overall_single_game", "knowledge_single_game", "coding_single_game")
    assert [round(100 * values[name], 2) for name in names] == [43.70, 44.16, 45.16, 44.44, 44.81, 48.39]
    assert values["math"] == values["math_single_game"]
