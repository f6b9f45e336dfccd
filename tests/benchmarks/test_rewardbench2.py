from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.rewardbench2 import grade
from rm_methods.errors import DataError

CARD = load_benchmark_card("rewardbench2")


def ties_metrics(rows):
    """Metrics of rows {"id": "ref:0" or "tied:0", "num_correct", "scores"}."""
    items = []
    for row in rows:
        kind, number = row["id"].split(":")
        meta = {"kind": kind, "ties": number}
        label = {"correct": row["num_correct"]}
        items.append(BenchmarkItem(row["id"], "ties", (), [""] * len(row["scores"]), label, meta=meta))
    return metric_values(credit_table(CARD, items, [np.array(row["scores"], dtype=np.float32) for row in rows]))


def test_ties_equal_the_official_function(shared):
    """All golden cases that the official function accepts; scores there are float64, here float32."""
    cases = json.loads(shared("golden/golden_metric_cases.json").read_text())["rb2_ties"]
    cases = [case for case in cases if not isinstance(case["overall_score"], str)]
    assert len(cases) == 5
    for case in cases:
        assert ties_metrics(case["rows"])["ties"] == pytest.approx(case["overall_score"], abs=1e-6), case["name"]


def test_ties_by_hand():
    """ref gap 3 - 1 = 2.  tied: right 4 and 3, wrong 1.5: spread 1, gap 1.5; min of gaps 1.5 > 1.

    .30 + .30 + .20 + .20 + .01 tanh(1.5 / 1 - 1)
    """
    rows = [
        {"id": "ref:0", "num_correct": 1, "scores": [3, 1]},
        {"id": "tied:0", "num_correct": 2, "scores": [4, 3, 1.5]},
    ]
    values = ties_metrics(rows)
    assert values["ties"] == pytest.approx(1 + 0.01 * math.tanh(0.5))
    assert values["ties_margin"] == pytest.approx(math.tanh(0.5))
    rows[0]["scores"] = [1.9, 1]  # gap .9: right, but less than the spread
    values = ties_metrics(rows)
    assert values["ties"] == pytest.approx(0.8 + 0.01 * math.tanh(-0.1))
    names = ("ties_ref_accuracy", "ties_tied_accuracy", "ties_preferred", "ties_preferred_hard")
    assert [values[name] for name in names] == [1, 1, 1, 0]


def test_equal_margins_fail():
    """ref gap 5; tied: right 3 and 2, wrong 1: spread 1 and gap 1.  .30 + .30, and tanh(0) = 0."""
    rows = [
        {"id": "ref:0", "num_correct": 1, "scores": [6, 1]},
        {"id": "tied:0", "num_correct": 2, "scores": [3, 2, 1]},
    ]
    values = ties_metrics(rows)
    assert (values["ties_preferred"], values["ties_preferred_hard"]) == (0, 0)
    assert values["ties"] == pytest.approx(0.6)


def test_best_of_four_equals_the_official_function(shared):
    for case in json.loads(shared("golden/golden_metric_cases.json").read_text())["rb2_best_of_4"]:
        assert grade({"correct": 1}, np.array(case["scores"], dtype=np.float32))["official"] == case["result"]


@pytest.mark.parametrize(
    ("scores", "official", "strict"),
    [([2, 1, 1, 1], 1, 1), ([2, 2, 1, 1], 0.5, 0), ([1, 1, 1, 1], 0.25, 0), ([1, 2, 0, 0], 0, 0)],
)
def test_best_of_four_by_hand(scores, official, strict):
    credits = grade({"correct": 1}, np.array(scores, dtype=np.float32))
    assert credits == {"official": official, "strict": strict}


def test_overall_is_the_mean_over_subsets_not_over_rows():
    """Two rows of Math right, one of Focus wrong, Ties 1.01: (1 + 0 + 1.01) / 3."""
    items = [
        BenchmarkItem("math/0", "math", (), [""] * 4, {"correct": 1}),
        BenchmarkItem("math/1", "math", (), [""] * 4, {"correct": 1}),
        BenchmarkItem("focus/0", "focus", (), [""] * 4, {"correct": 1}),
        BenchmarkItem("r", "ties", (), [""] * 2, {"correct": 1}, meta={"kind": "ref", "ties": "0"}),
        BenchmarkItem("t", "ties", (), [""] * 3, {"correct": 2}, meta={"kind": "tied", "ties": "0"}),
    ]
    scores = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0], [1, 1, 0]]
    values = metric_values(credit_table(CARD, items, [np.array(row, dtype=np.float32) for row in scores]))
    assert values["ties"] == pytest.approx(1.01)
    assert values["overall"] == pytest.approx(2.01 / 3)
    assert values["best_of_four_strict"] == pytest.approx(0.5)


FOUR = {"id": "1", "prompt": "Hi", "chosen": ["yes"], "rejected": ["no", "nay", "non"], "subset": "Math"}
REF = {"id": "ref:3", "prompt": "One?", "chosen": ["a"], "rejected": ["x"], "subset": "Ties", "num_correct": 1}
TIED = {"id": "tied:3", "prompt": "Any?", "chosen": ["a", "b"], "rejected": ["x"], "subset": "Ties", "num_correct": 2}


def prepared(tmp_path, rows, **options):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"root": tmp_path, "options": options}
    report = prepare_items("rewardbench2", config, None, tmp_path / "items.parquet", tmp_path / "report.json")
    return read_items(tmp_path / "items.parquet"), report


def test_ids_that_repeat_across_subsets_and_both_rows_of_a_prompt(tmp_path):
    items, report = prepared(tmp_path, [FOUR, FOUR | {"subset": "Focus"}, TIED, REF])
    assert [item.item_id for item in items] == ["math/1", "focus/1", "ties/ref:3", "ties/tied:3"]
    assert {item.group for item in items[2:]} == {"ties/3"}
    assert "Subsets missing: factuality, precise_if, safety." in report["notes"][0]
    assert "Expected 780 rows, got 4: math 1 of 183, focus 1 of 495, ties 2 of 102." in report["notes"][1]


def test_a_ties_row_without_partner_is_excluded_and_counted(tmp_path):
    items, report = prepared(tmp_path, [FOUR, TIED])
    assert [item.item_id for item in items] == ["math/1"]
    reason = "Ties row without exactly one partner (ref:k and tied:k)"
    assert report["excluded"] == {reason: {"count": 1, "examples": ["ties/tied:3"]}}


def test_the_limit_draws_both_rows_of_a_ties_prompt(tmp_path):
    others = [REF | {"id": "ref:4"}, TIED | {"id": "tied:4"}]
    items, report = prepared(tmp_path, [REF, TIED, *others], limit=1)
    assert len(items) == 2
    assert len({item.meta["ties"] for item in items}) == 1
    assert report["excluded"]["not drawn by options.limit"]["count"] == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (FOUR | {"subset": "Maths"}, r"row 1: subset 'Maths' is not one of RewardBench 2\. Did you mean 'Math'"),
        (FOUR | {"chosen": ["a", "b"]}, r"row 1: `chosen` must have one answer in Math, found 2"),
        (FOUR | {"rejected": []}, r"row 1: `rejected` must be a list of texts that is not empty"),
        (FOUR | {"num_correct": 2}, r"row 1: `num_correct` is 2, but `chosen` has 1 answers"),
        (TIED | {"chosen": ["a"], "num_correct": 1}, r"row 1: a row tied:k of Ties needs several right answers"),
        (REF | {"id": "reference:3"}, r"row 1: `id` of a Ties row must be ref:NUMBER or tied:NUMBER"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, [row])
