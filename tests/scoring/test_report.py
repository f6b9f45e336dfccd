import math

import numpy as np
import pytest

from rm_methods.benchmarks.score_table import ScoredResponse
from rm_methods.scoring.data import load_data
from rm_methods.scoring.report import make_report, report_text
from rm_methods.scoring.scorer import Scoring

MODEL = {
    "folder": "/models/" + "long_name_" * 12,
    "kind": "LlamaForSequenceClassification",
    "precision": "fp32",
    "layout": "packed",
}


@pytest.fixture
def report(write_rows):
    """The report of pairs with given scores (chosen, rejected), two pairs a prompt; the last row is refused."""

    def make(*scores, truncated=(), split=None):
        rows = [
            {"prompt": f"Prompt {k // 2}?", "chosen": f"Good {k}.", "rejected": f"Bad {k}."} for k in range(len(scores))
        ]
        if split:
            rows = [row | {"split": name} for row, name in zip(rows, split, strict=True)]
        data = load_data(str(write_rows("x.jsonl", *rows, rows[0] | {"chosen": " "})))
        responses = [
            ScoredResponse(item.item_id, k, "", score, 10, (position, k) in truncated)
            for position, (item, pair) in enumerate(zip(data.items, scores, strict=True))
            for k, score in enumerate(pair)
        ]
        return make_report(data, Scoring(responses), MODEL, 1.5)

    return make


def test_accuracy_counts_ties_and_missing_scores_as_wrong_and_prompts_as_units(report):
    """Right pairs of the three prompts: 2, 1 and 0 of 2.  Each prompt's deviations from 1/2 make (1, 0, -1) / 6 of
    the mean, so V = 3/2 x 2/36 = 1/12, as of three independent items.  Wilson's limits with q = t(0.975, 2) = 4.3027
    are 1/2 +- q / (1 + q^2 / 3) x sqrt(1/12 + q^2 / 36) = 1/2 +- 0.4638.
    """
    right, wrong, tie, missing = (2.0, 1.0), (1.0, 2.0), (1.0, 1.0), (math.nan, 1.0)
    result = report(right, right, right, wrong, tie, missing)
    accuracy = result["metrics"]["accuracy"]
    assert (accuracy["low"], accuracy["high"]) == (pytest.approx(0.0362, abs=1e-4), pytest.approx(0.9638, abs=1e-4))
    assert (accuracy["value"], accuracy["items"], accuracy["groups"]) == (0.5, 6, 3)
    assert result["ties"] == 1
    assert result["not_finite"]["count"] == 1


def test_the_interval_is_that_of_a_mean_of_prompts(report):
    """20 prompts of two pairs that agree: 15 right, 5 wrong.  Wilson's interval of 20 numbers, with t(0.975, 19)."""
    result = report(*[(2.0, 1.0)] * 30, *[(1.0, 2.0)] * 10)["metrics"]["accuracy"]
    q = 2.0930240544
    n = 0.75 * 0.25 / (np.var([1.0] * 15 + [0.0] * 5, ddof=1) / 20)
    center = (0.75 + q**2 / (2 * n)) / (1 + q**2 / n)
    reach = q / (1 + q**2 / n) * math.sqrt(0.75 * 0.25 / n + q**2 / (4 * n**2))
    assert result["value"] == 0.75
    assert (result["low"], result["high"]) == pytest.approx((center - reach, center + reach))


def test_splits_are_never_mixed(report):
    result = report((2.0, 1.0), (2.0, 1.0), (1.0, 2.0), split=["train", "train", "test"])
    assert {name: metric["value"] for name, metric in result["metrics"].items()} == {
        "accuracy, train": 1.0,
        "accuracy, test": 0.0,
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_scores_that_are_not_finite_are_said_loudly(report, bad):
    result = report((2.0, 1.0), (2.0, bad), (bad, bad))
    assert (result["not_finite"]["count"], result["not_finite"]["items"]) == (3, 2)
    text = " ".join(report_text(result, []).split())
    assert "WARNING: 3 scores of 2 pairs are NaN or infinite and earn nothing (row 2; row 3)." in text
    assert "WARNING" not in report_text(report((2.0, 1.0), (2.0, 1.0)), [])


def test_one_score_for_all_texts_is_said_loudly(report):
    assert "WARNING: all scores are equal" in report_text(report((1.0, 1.0), (1.0, 1.0)), [])


def test_truncation_is_counted_in_texts(report):
    result = report((2.0, 1.0), (2.0, 1.0), truncated={(0, 0)})
    assert result["truncated"] == {"count": 1, "share": 0.25}
    assert "1  texts (25.0%)" in report_text(result, [])
    everything = report((2.0, 1.0), truncated={(0, 0), (0, 1)})
    assert "WARNING: every text was cut." in report_text(everything, [])


def test_the_text_says_the_result_first_and_fits_a_terminal(report, tmp_path):
    lines = report_text(report((2.0, 1.0), (1.0, 2.0), (2.0, 1.0)), [tmp_path / "s.parquet"]).split("\n")
    assert lines[0].endswith("x.jsonl: 3 pairs scored, 1 of 4 rows refused")
    assert lines[1].startswith("  accuracy: 66.7% (95% interval ")
    assert any("1  empty response (row 4)" in line for line in lines)
    assert [line for line in lines[1:] if len(line) > 80 and "/" not in line] == []


def test_columns_that_are_not_read_are_named(write_rows):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "reason": "because"}
    data = load_data(str(write_rows("x.jsonl", row, row | {"prompt": "d", "reason": ""})))
    responses = [ScoredResponse(item.item_id, k, "", 1.0 - k, 10, False) for item in data.items for k in (0, 1)]
    report = make_report(data, Scoring(responses), MODEL, 1.5)
    assert list(report["read"]["unread"].values()) == [{"reason": 1}]
    assert "not read    columns: reason (1 rows)" in report_text(report, [])


def test_a_score_that_is_not_a_number_is_no_tie(report):
    assert report((math.nan, math.nan), (2.0, 1.0))["ties"] == 0
    assert report((math.inf, math.inf), (2.0, 1.0))["ties"] == 0
