from __future__ import annotations

import numpy as np
import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, tie_rate
from rm_methods.benchmarks.llmbar import grade
from rm_methods.errors import DataError, UserError

from .conftest import EXAMPLES
from .made_up import graded_items, metrics_of_graded, prepared, scores_by, write_lines

CARD = load_benchmark_card("llmbar")
ROW = {"input": "Why?", "output_1": "Because.", "output_2": "No.", "label": 1}


class TestGrade:
    def test_a_tie_is_wrong_and_half_by_the_official_rule(self):
        """Officially one order of the outputs gives output 2, the other output 1: one of two answers is right."""
        for label in (0, 1):
            assert grade(label, np.array([0.3, 0.3], dtype=np.float32)) == {"accuracy": 0.0, "ties_half": 0.5}

    def test_without_a_tie_both_rules_agree(self):
        assert grade(0, np.array([2, 1], dtype=np.float32)) == {"accuracy": 1.0, "ties_half": 1.0}
        assert grade(1, np.array([2, 1], dtype=np.float32)) == {"accuracy": 0.0, "ties_half": 0.0}

    @pytest.mark.parametrize("scores", [(np.nan, 1), (1, np.nan), (np.nan, np.nan)])
    def test_a_missing_score_earns_nothing_by_either_rule(self, scores):
        assert grade(1, np.array(scores, dtype=np.float32)) == {"accuracy": 0.0, "ties_half": 0.0}


class TestAverages:
    def test_the_official_accuracies_of_gpt_4_give_the_papers_adversarial_average(self):
        """GPT-4 with metrics and a reference, in the repository's `statistics.json`: right answers in both orders.

        (95 + 97) / 2 = 96 of 100, (115 + 114) / 2 = 114.5 of 134, 82.5 of 92, 34 of 47, 38.5 of 46. A tie makes the
        halves here. The paper's adversarial average is 82.8; the pooled rows of the four sets would give 84.48.
        """
        counts = {
            "natural": (96, 0, 100),
            "neighbor": (114, 1, 134),
            "gptinst": (82, 1, 92),
            "gptout": (34, 0, 47),
            "manual": (38, 1, 46),
        }
        graded = []
        for subset, (right, tied, total) in counts.items():
            graded += graded_items(subset, 1, right, tied, total)
        values = metrics_of_graded(CARD, graded)
        percent = {name: round(100 * value, 2) for name, value in values.items()}
        sets = [percent[f"{subset}_ties_half"] for subset in counts]
        assert sets == [96.0, 85.45, 89.67, 72.34, 83.7]
        assert (percent["adversarial_ties_half"], percent["average_ties_half"]) == (82.79, 85.43)
        assert values["adversarial"] == pytest.approx((114 / 134 + 82 / 92 + 34 / 47 + 38 / 46) / 4)
        assert values["average"] == pytest.approx((0.96 + 114 / 134 + 82 / 92 + 34 / 47 + 38 / 46) / 5)

    def test_sets_weigh_alike_whatever_their_sizes(self):
        graded = graded_items("natural", 0, 3, 0, 3) + graded_items("neighbor", 0, 0, 0, 1)
        graded += graded_items("manual", 0, 1, 0, 2)
        values = metrics_of_graded(CARD, graded)
        assert values["average"] == pytest.approx((1 + 0 + 0.5) / 3)
        assert values["adversarial"] == pytest.approx((0 + 0.5) / 2)
        assert "gptout" not in values

    def test_without_an_adversarial_set_it_has_no_average(self):
        values = metrics_of_graded(CARD, graded_items("natural", 0, 1, 0, 2))
        assert values == dict.fromkeys(("average", "natural", "average_ties_half", "natural_ties_half"), 0.5)


class TestReading:
    def test_the_label_counts_outputs_from_one(self, tmp_path):
        _, items = prepared("llmbar", EXAMPLES / "llmbar", tmp_path)
        assert [(item.subset, item.label) for item in items[:3]] == [("natural", 1), ("natural", 0), ("neighbor", 0)]
        assert items[0].prompt == [{"role": "user", "content": "Name a fruit."}]
        assert items[0].responses == ["A brick.", "A plum."]

    def test_missing_sets_are_noted(self, tmp_path):
        write_lines(tmp_path / "root/Natural/dataset.json", ROW)
        report, items = prepared("llmbar", tmp_path / "root", tmp_path)
        assert len(items) == 1
        assert report["notes"] == [
            "Sets missing: neighbor, gptinst, gptout, manual. Averages are means over the others, not the paper's "
            "averages.",
            "Expected 100 rows, got 1: natural 1 of 100. Figures are not the official ones.",
        ]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label": 0}, r"dataset\.json, row 2: `label` is 0; expected one of 1, 2\."),
            ({"label": True}, r"row 2: `label` is True; expected one of 1, 2\."),
            ({"label": "1"}, r"row 2: `label` is '1'; expected one of 1, 2\."),
            ({"input": ""}, "row 2: `input` must be a text that is not empty"),
            ({"output_2": None}, "row 2: `output_2` must be a text, found null"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, change, message):
        write_lines(tmp_path / "root/Natural/dataset.json", ROW, ROW | change)
        with pytest.raises(DataError, match=message):
            prepared("llmbar", tmp_path / "root", tmp_path)

    def test_unusual_rows_are_kept_and_counted(self, tmp_path):
        write_lines(tmp_path / "root/Natural/dataset.json", ROW, ROW, ROW | {"output_1": "No."}, ROW | {"output_1": ""})
        report, items = prepared("llmbar", tmp_path / "root", tmp_path)
        assert len(items) == 4
        assert items[1].item_id == items[0].item_id + "#2"
        assert {remark: entry["count"] for remark, entry in report["counted"].items()} == {
            "id occurs more than once, kept under another": 1,
            "both responses are the same text: always a tie, kept": 1,
            "empty response, kept": 1,
        }

    def test_without_a_root_the_user_is_sent_to_the_repository(self, tmp_path):
        from rm_methods.benchmarks.evaluation import prepare_items

        with pytest.raises(
            UserError, match=r"benchmarks.llmbar.root is not set: .*loading script.*Clone https://github"
        ):
            prepare_items("llmbar", {}, None, tmp_path / "i.parquet", tmp_path / "r.json")


def test_the_public_files_and_the_longer_output(shared, tmp_path):
    """Rows and right answers of "always the longer output": 56 of 100, 16 of 134, 12 of 92, 21 of 47, 8 of 46."""
    report, items = prepared("llmbar", shared("data/llmbar"), tmp_path)
    assert report["subsets"] == {"gptinst": 92, "gptout": 47, "manual": 46, "natural": 100, "neighbor": 134}
    assert (report["n_rows"], report["excluded"], report["counted"]) == (419, {}, {})
    scores = scores_by(len, items)
    values = metric_values(credit_table(CARD, items, scores))
    shares = [56 / 100, 16 / 134, 12 / 92, 21 / 47, 8 / 46]
    assert [values[subset] for subset in CARD.subsets] == pytest.approx(shares)
    assert (round(100 * values["adversarial"], 2), round(100 * values["average"], 2)) == (21.76, 28.61)
    assert tie_rate(CARD, items, scores) == 2 / 419
