from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rm_methods.benchmarks.cards import benchmark_module, load_benchmark_card
from rm_methods.benchmarks.evaluation import align_scores, credit_table, evaluate_run, tie_rate, usable_scores
from rm_methods.benchmarks.item import BenchmarkItem, response_hashes, write_items
from rm_methods.benchmarks.score_table import ScoredResponse, write_scores
from rm_methods.errors import DataError, UserError
from rm_methods.files import file_hash
from rm_methods.stored import read_metrics, with_checksum

from .made_up import score_rows, write_score_table

IDENTITY = {"variant": "bt", "method": "bradley_terry", "seed": 3, "run_key": "abc"}
PROMPT = [{"role": "user", "content": "?"}]
ITEMS = [
    BenchmarkItem(f"i{number}", "test", PROMPT, ["good", "bad"], 0, group=f"g{number // 2}") for number in range(4)
]


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate score rows of the held-out benchmark with four items."""
    write_items(ITEMS, tmp_path / "items.parquet")

    def run(rows):
        write_scores(rows, tmp_path / "scores.parquet")
        benchmarks = [("heldout", tmp_path / "items.parquet", tmp_path / "scores.parquet")]
        return evaluate_run(benchmarks, IDENTITY, tmp_path / "metrics.json", tmp_path / "credits.parquet")

    return run


def rows_of(*scores: tuple[float, float]):
    return score_rows(ITEMS, [np.array(pair, dtype=np.float32) for pair in scores])


class TestMetricsFile:
    def test_it_is_exactly_what_the_architecture_says(self, evaluate, tmp_path):
        """Right, wrong, tie, not scored: accuracy 1/4, one tie in four comparisons, three items scored."""
        rows = rows_of((2, 1), (1, 2), (1, 1), (1, float("nan")))
        rows[0] = replace(rows[0], truncated=True)
        rows[1] = replace(rows[1], truncated=True)
        result = evaluate(rows)
        assert result == with_checksum(result)
        sure = 1 / (1 + math.exp(-1))
        # Of the three pairs with both scores one is right, one wrong, and the tie is half right.
        calibration = {
            "ece": pytest.approx((2 * sure + 0.5) / 3 - 0.5),
            "ece_if_calibrated": pytest.approx(math.sqrt(2 / math.pi * (2 * sure * (1 - sure) + 0.25) / 9)),
            "bins": [
                {
                    "low": 0.5,
                    "high": pytest.approx(sure),
                    "n": 3,
                    "mean_confidence": pytest.approx((2 * sure + 0.5) / 3),
                    "accuracy": 0.5,
                }
            ],
        }
        assert result | {"checksum": None} == {"checksum": None} | IDENTITY | {
            "benchmarks": {
                "heldout": {
                    # Every chosen response here is the longer one, so length cannot be controlled.
                    "metrics": {"test": 0.25, "test_length_controlled": None, "mean": 0.25},
                    "tie_rate": 0.25,
                    "tie_rule": "equal scores are wrong (strict)",
                    "calibration": calibration,
                    "n_scored": 3,
                    "n_total": 4,
                    "n_truncated": 1,
                    "most_responses": 2,
                    "notes": [
                        "test_length_controlled: undefined; it needs pairs whose chosen response is longer and pairs "
                        "whose chosen one is shorter."
                    ],
                    "made_from": {name: file_hash(tmp_path / f"{name}.parquet") for name in ("items", "scores")},
                }
            }
        }
        assert json.loads((tmp_path / "metrics.json").read_text()) == result
        assert read_metrics(tmp_path / "metrics.json") == result

    def test_an_infinite_score_counts_as_not_scored(self, evaluate):
        result = evaluate(rows_of((float("inf"), 1), (2, 1), (2, 1), (2, 1)))["benchmarks"]["heldout"]
        assert (result["metrics"]["test"], result["n_scored"]) == (0.75, 3)

    def test_several_benchmarks_stand_side_by_side(self, tmp_path):
        judge = [BenchmarkItem("j", "mmlu-pro", PROMPT, ["x", "y"], "B>A")]
        runs = []
        for name, items in (("heldout", ITEMS), ("judge_bench", judge)):
            write_items(items, tmp_path / f"{name}.parquet")
            scores = [np.array([0, 1], dtype=np.float32)] * len(items)
            runs.append(
                (
                    name,
                    tmp_path / f"{name}.parquet",
                    write_score_table(items, scores, tmp_path / f"{name}_scores.parquet"),
                )
            )
        result = evaluate_run(runs, IDENTITY, tmp_path / "m.json", tmp_path / "c.parquet")
        assert result["benchmarks"]["heldout"]["metrics"]["test"] == 0.0
        assert result["benchmarks"]["judge_bench"]["metrics"]["overall"] == 1.0
        assert result["benchmarks"]["judge_bench"]["calibration"]["bins"][0]["accuracy"] == 1.0
        assert set(pd.read_parquet(tmp_path / "c.parquet")["benchmark"]) == {"heldout", "judge_bench"}
        with pytest.raises(DataError, match="named twice"):
            evaluate_run(runs[:1] * 2, IDENTITY, tmp_path / "m.json", tmp_path / "c.parquet")
        with pytest.raises(UserError, match="Unknown benchmark"):
            evaluate_run([("judgebench", *runs[1][1:])], IDENTITY, tmp_path / "m.json", tmp_path / "c.parquet")


class TestCreditsFile:
    def test_columns_types_and_groups(self, evaluate, tmp_path):
        evaluate(rows_of((2, 1), (1, 2), (1, 1), (2, 1)))
        credits = pd.read_parquet(tmp_path / "credits.parquet")
        assert list(credits.columns) == ["benchmark", "metric", "item_id", "group", "stratum", "weight", "credit"]
        assert credits["weight"].dtype == credits["credit"].dtype == np.float64
        test = credits[credits["metric"] == "test"]
        assert list(test["group"]) == ["g0", "g0", "g1", "g1"]
        assert list(test["credit"]) == [1, 0, 0, 1]

    def test_a_metric_is_the_sum_over_strata_of_weight_times_mean_credit(self, tmp_path):
        """RM-Bench with uneven domains, recomputed with pandas from nothing but the file."""
        rng = np.random.default_rng(0)
        subsets = ["chat"] * 3 + ["code"] * 5 + ["safety-refuse"] * 2 + ["safety-response"]
        label = {"chosen": [0, 1, 2], "rejected": [3, 4, 5]}
        items = [
            BenchmarkItem(f"i{n}", subset, PROMPT, [f"r{k}" for k in range(6)], label)
            for n, subset in enumerate(subsets)
        ]
        write_items(items, tmp_path / "items.parquet")
        table = write_score_table(
            items, [rng.normal(size=6).astype(np.float32) for _ in items], tmp_path / "scores.parquet"
        )
        run = [("rm_bench", tmp_path / "items.parquet", table)]
        result = evaluate_run(run, IDENTITY, tmp_path / "m.json", tmp_path / "c.parquet")["benchmarks"]["rm_bench"]
        metrics = result["metrics"]
        assert "calibration" not in result  # its items are not pairs
        credits = pd.read_parquet(tmp_path / "c.parquet")
        strata = credits.groupby(["metric", "stratum"]).agg(weight=("weight", "first"), credit=("credit", "mean"))
        recomputed = (strata["weight"] * strata["credit"]).groupby("metric").sum()
        assert strata["weight"].groupby("metric").sum().to_numpy() == pytest.approx(1.0)
        assert recomputed.to_dict() == pytest.approx(metrics)
        assert metrics["overall"] == pytest.approx((metrics["chat"] + metrics["code"] + metrics["safety"]) / 3)


class TestScoreTableMustFitTheItems:
    def test_missing_rows(self, evaluate, tmp_path):
        with pytest.raises(
            DataError, match=r"4 items \(8 responses\): 2 missing \(such as item 'i3', response 0\).*score stage again"
        ):
            evaluate(rows_of((2, 1), (2, 1), (2, 1), (2, 1))[:-2])
        assert not (tmp_path / "metrics.json").exists()

    def test_extra_and_double_rows(self, evaluate):
        rows = rows_of((2, 1), (2, 1), (2, 1), (2, 1))
        extra = replace(rows[0], item_id="stranger")
        with pytest.raises(
            DataError,
            match=r"1 not in the benchmark \(such as item 'stranger', response 0\); 1 double \(such as item 'i0'",
        ):
            evaluate([*rows, extra, rows[0]])

    def test_another_text_under_the_same_id(self, evaluate):
        rows = rows_of((2, 1), (2, 1), (2, 1), (2, 1))
        rows[3] = replace(rows[3], response_hash="0" * 16)
        with pytest.raises(DataError, match=r"1 scored with another text \(such as item 'i1', response 1\)"):
            evaluate(rows)

    def test_the_order_of_the_rows_does_not_matter(self, evaluate):
        rows = rows_of((2, 1), (1, 2), (3, 1), (2, 1))
        one, other = (evaluate(some)["benchmarks"]["heldout"] for some in (rows[::-1], rows))
        assert one.pop("made_from") != other.pop("made_from")
        assert one == other


class TestScores:
    def test_ties_are_decided_in_float32(self):
        """1 + 2^-25 rounds to 1 in float32 (24 significant bits), so it ties with 1 and earns nothing."""
        card, items = load_benchmark_card("heldout"), ITEMS[:1]
        scores = [usable_scores([1 + 2**-25, 1.0])]
        assert credit_table(card, items, scores)["credit"] == [0.0, 0.0]
        assert tie_rate(card, items, scores) == 1.0

    def test_what_is_not_finite_becomes_nan(self):
        assert np.isnan(usable_scores([float("inf"), float("-inf"), float("nan"), 1e300])).all()
        assert usable_scores([1.5]).dtype == np.float32

    def test_another_number_of_scores_is_an_error(self):
        with pytest.raises(DataError, match="item 'i0' has 2 responses but 3 scores"):
            credit_table(load_benchmark_card("heldout"), ITEMS[:1], [usable_scores([1, 2, 3])])

    def test_no_items_is_an_error(self):
        with pytest.raises(DataError, match="no items to evaluate"):
            credit_table(load_benchmark_card("heldout"), [], [])


def plain_alignment(items, rows):
    """What `align_scores` should say of rows, one Python object a row: problems, or the scores of each item."""
    by_key = {}
    doubles = []
    for row in rows:
        key = (row.item_id, row.response_index)
        if key in by_key:
            doubles.append(key)
        by_key[key] = row
    expected = {(item.item_id, k): digest for item in items for k, digest in enumerate(response_hashes(item))}
    scored = {key: digest for key, digest in expected.items() if key in by_key}
    faults = {
        "missing": [key for key in expected if key not in by_key],
        "not in the benchmark": [key for key in by_key if key not in expected],
        "double": doubles,
        "scored with another text": [key for key, digest in scored.items() if by_key[key].response_hash != digest],
    }
    problems = [
        f"{len(keys)} {fault} (such as item {keys[0][0]!r}, response {keys[0][1]})"
        for fault, keys in faults.items()
        if keys
    ]
    if problems:
        return "; ".join(problems)
    scores = [[by_key[item.item_id, k].score for k in range(len(item.responses))] for item in items]
    return scores, sum(any(by_key[item.item_id, k].truncated for k in range(len(item.responses))) for item in items)


def test_columns_agree_with_plain_objects_on_damaged_tables(tmp_path):
    generator = np.random.default_rng(0)
    items = [
        BenchmarkItem(
            f"i{number}", "test", [{"role": "user", "content": "?"}], [f"{number} {k}" for k in range(size)], 0
        )
        for number, size in enumerate([1, 3, 2, 4])
    ]
    good = [
        ScoredResponse(
            item.item_id, k, digest, float(np.float32(generator.normal())), 5, bool(generator.random() < 0.2)
        )
        for item in items
        for k, digest in enumerate(response_hashes(item))
    ]
    fitting = 0
    for _ in range(150):
        rows = list(good)
        for change in generator.choice(5, size=generator.integers(0, 4)):
            victim = int(generator.integers(len(rows)))
            if change == 0:
                del rows[victim]
            elif change == 1:
                rows.insert(int(generator.integers(len(rows))), rows[victim])
            elif change == 2:
                rows[victim] = replace(rows[victim], response_hash="0" * 16)
            elif change == 3:
                rows[victim] = replace(rows[victim], item_id=f"x{generator.integers(2)}")
            else:
                rows[victim] = replace(rows[victim], response_index=int(generator.integers(-1, 5)))
        if generator.random() < 0.5:
            rows = [rows[position] for position in generator.permutation(len(rows))]
        write_scores(rows, tmp_path / "scores.parquet")
        expected = plain_alignment(items, rows)
        if isinstance(expected, str):
            with pytest.raises(DataError) as caught:
                align_scores(items, tmp_path / "scores.parquet")
            assert f"responses): {expected}. It was made" in str(caught.value)
        else:
            scores, n_truncated = align_scores(items, tmp_path / "scores.parquet")
            assert ([values.tolist() for values in scores], n_truncated) == expected
            fitting += 1
    assert 20 < fitting < 130


@pytest.mark.parametrize("name", ["alpaca_eval_pool", "ppe_correctness"])
def test_ties_are_counted_as_if_every_comparison_was_listed(name):
    module = benchmark_module(load_benchmark_card(name))
    generator = np.random.default_rng(0)
    for size in (1, 2, 5, 40):
        for _ in range(10):
            gold = generator.integers(0, 2, size).tolist()
            label = gold if name == "alpaca_eval_pool" else {"gold": gold, "conflict_pairs": [[0, 0]]}
            scores = generator.integers(0, 4, size).astype(np.float32)
            scores[generator.random(size) < 0.1] = np.nan
            listed = module.comparisons(label, size)
            equal = sum(bool(scores[better] == scores[worse]) for better, worse in listed)
            assert module.tie_counts(label, scores) == (equal, len(listed))


@pytest.mark.parametrize("name", ["alpaca_eval_pool", "ppe_correctness"])
@pytest.mark.parametrize("label", [None, 0, [], [0.5], ["a", 1.0], {"gold": [0.0, 1.0]}, [float("nan"), 1.0]])
def test_a_label_is_refused_with_the_message_of_its_comparisons(name, label):
    module = benchmark_module(load_benchmark_card(name))
    messages = []
    for check in (module.comparisons, module.check_label):
        with pytest.raises(DataError) as caught:
            check(label, 2)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
