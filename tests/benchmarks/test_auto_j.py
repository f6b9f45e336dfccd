from __future__ import annotations

import numpy as np
import pytest

from rm_methods.benchmarks.auto_j import GROUP_OF_SCENARIO, SCENARIOS, TIE, comparisons, grade
from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, tie_rate
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError, UserError

from .conftest import EXAMPLES
from .made_up import graded_items, metrics_of_graded, prepared, scores_by, write_lines

CARD = load_benchmark_card("auto_j")
ROW = {"scenario": "chitchat", "label": 0, "prompt": "Hello!", "response 1": "Hi!", "response 2": "What?"}


def tied_items(subset: str, equal: int, total: int) -> list[tuple[BenchmarkItem, np.ndarray]]:
    """Pairs that humans labeled as ties: so many with equal scores."""
    graded = []
    for number in range(total):
        scores = np.array([0.0, float(number >= equal)], dtype=np.float32)
        graded.append((BenchmarkItem(f"{subset}-tie-{number}", subset, (), ["", ""], TIE), scores))
    return graded


class TestGrade:
    @pytest.mark.parametrize(
        ("label", "scores", "agreement"),
        [(0, (2, 1), 1), (0, (1, 2), 0), (0, (1, 1), 0), (1, (1, 2), 1), (TIE, (1, 1), 1), (TIE, (1, 2), 0)],
    )
    def test_three_classes(self, label, scores, agreement):
        assert grade(label, np.array(scores, dtype=np.float32))["agreement"] == agreement

    def test_a_missing_score_is_no_tie(self):
        for label in (0, 1, TIE):
            scores = np.array([np.nan, np.nan], dtype=np.float32)
            assert grade(label, scores) == {"accuracy": 0.0, "agreement": 0.0}

    def test_a_tie_has_no_comparison(self):
        assert comparisons(TIE, 2) == []
        assert comparisons(1, 2) == [(1, 0)]
        with pytest.raises(DataError, match="label 3 is not allowed"):
            comparisons(3, 2)
        with pytest.raises(DataError, match="has 2 responses, found 3"):
            comparisons(TIE, 3)


class TestMetrics:
    def test_the_official_example_output_gives_the_official_agreement(self):
        """The official table of an example output (type "single"): right answers, rows and agreement of each group.

        Here each group has 5 ties, 3 of them right. How right answers are spread over the classes does not matter.
        """
        right = {
            "summarization": (41, 72, 56.94),
            "exam_questions": (30, 72, 41.67),
            "code": (65, 120, 54.17),
            "rewriting": (69, 120, 57.5),
            "creative_writing": (137, 216, 63.43),
            "functional_writing": (164, 240, 68.33),
            "general_communication": (165, 288, 57.29),
            "nlp_tasks": (164, 264, 62.12),
        }
        graded = []
        for group, (n_right, n_rows, _) in right.items():
            graded += tied_items(group, equal=3, total=5)
            graded += graded_items(group, 0, n_right - 3, 1, n_rows - 5)
        values = metrics_of_graded(CARD, graded)
        assert round(100 * values["agreement"], 2) == 59.99
        for group, (n_right, n_rows, official) in right.items():
            assert round(100 * values[f"{group}_agreement"], 2) == official
            assert values[group] == pytest.approx((n_right - 3) / (n_rows - 5))
        assert values["accuracy_without_ties"] == pytest.approx((835 - 8 * 3) / (1392 - 8 * 5))

    def test_without_ties_in_the_items_it_has_no_agreement(self):
        values = metrics_of_graded(CARD, graded_items("code", 1, 2, 1, 4))
        assert values == {"accuracy_without_ties": 0.5, "code": 0.5}

    def test_ties_have_no_part_in_the_tie_rate(self):
        graded = tied_items("code", 1, 1) + graded_items("code", 0, 1, 1, 4)
        assert tie_rate(CARD, [item for item, _ in graded], [scores for _, scores in graded]) == 1 / 4


def test_the_groups_have_58_scenarios_of_which_none_is_in_two():
    assert [len(scenarios) for scenarios in SCENARIOS.values()] == [3, 3, 5, 5, 9, 10, 12, 11]
    assert len(GROUP_OF_SCENARIO) == 58
    assert tuple(SCENARIOS) == CARD.subsets


class TestReading:
    def test_ties_are_excluded_and_counted(self, tmp_path):
        report, items = prepared("auto_j", EXAMPLES / "auto_j", tmp_path)
        assert (report["n_rows"], len(items)) == (9, 8)
        assert report["excluded"]["labeled as a tie (options.ties)"]["count"] == 1
        assert report["excluded"]["labeled as a tie (options.ties)"]["examples"][0].endswith(
            "testdata_pairwise.jsonl, row 8"
        )

    def test_ties_can_be_kept(self, tmp_path):
        report, items = prepared("auto_j", EXAMPLES / "auto_j", tmp_path, ties="keep")
        assert (len(items), report["excluded"]) == (9, {})
        assert [item.label for item in items] == [0, 1, 0, 1, 0, 1, 0, TIE, 1]
        assert items[0].responses == ["Rain all day.", "Sun."]
        assert items[0].meta == {"scenario": "post_summarization"}
        values = metric_values(credit_table(CARD, items, scores_by(lambda text: 0.0, items)))
        assert (values["agreement"], values["accuracy_without_ties"]) == (pytest.approx(1 / 9), 0.0)

    def test_ties_alone_are_refused(self, tmp_path):
        write_lines(tmp_path / "root/testdata_pairwise.jsonl", ROW | {"label": 2})
        with pytest.raises(DataError, match="all 1 items are labeled as ties"):
            prepared("auto_j", tmp_path / "root", tmp_path, ties="keep")
        with pytest.raises(DataError, match="1 excluded: labeled as a tie"):
            prepared("auto_j", tmp_path / "root", tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label": 3}, r"pairwise\.jsonl, row 2: `label` is 3; expected one of 0, 1, 2\."),
            ({"label": None}, r"row 2: `label` is None; expected one of 0, 1, 2\."),
            ({"scenario": "chit chat"}, "row 2: scenario 'chit chat' is not one of Auto-J. Did you mean 'chitchat'"),
            ({"response 1": ["a"]}, "row 2: `response 1` must be a text, found a list"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, change, message):
        write_lines(tmp_path / "root/testdata_pairwise.jsonl", ROW, ROW | change)
        with pytest.raises(DataError, match=message):
            prepared("auto_j", tmp_path / "root", tmp_path)

    def test_without_a_root_the_user_is_sent_to_the_repository(self, tmp_path):
        from rm_methods.benchmarks.evaluation import prepare_items

        with pytest.raises(UserError, match=r"benchmarks.auto_j.root is not set: .*Clone https://github.com/GAIR-NLP"):
            prepare_items("auto_j", {}, None, tmp_path / "i.parquet", tmp_path / "r.json")


def test_the_public_file_and_the_longer_response(shared, tmp_path):
    """727 of the 1,019 pairs without a tie, with 6 equal lengths; 737 of 1,392 over three classes."""
    root = shared("data/auto_j")
    report, items = prepared("auto_j", root, tmp_path)
    assert (report["n_rows"], len(items)) == (1392, 1019)
    assert metric_values(credit_table(CARD, items, scores_by(len, items)))["accuracy_without_ties"] == 727 / 1019
    assert tie_rate(CARD, items, scores_by(len, items)) == 6 / 1019
    _, items = prepared("auto_j", root, tmp_path, ties="keep")
    values = metric_values(credit_table(CARD, items, scores_by(len, items)))
    assert values["agreement"] == pytest.approx(737 / 1392)
    assert values["accuracy_without_ties"] == pytest.approx(727 / 1019)
