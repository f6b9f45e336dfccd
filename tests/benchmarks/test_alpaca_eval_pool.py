from __future__ import annotations

import json

import numpy as np
import pytest

from rm_methods.benchmarks.alpaca_eval_pool import comparisons, grade
from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items
from rm_methods.benchmarks.item import read_items
from rm_methods.errors import DataError, UserError
from rm_methods.overoptimization.best_of_n import pool_counts, pool_curves

from .made_up import scores_by

CARD = load_benchmark_card("alpaca_eval_pool")


@pytest.fixture
def prepare(tmp_path):
    def run(root, **options):
        report = prepare_items(
            CARD.name, {"root": root, "options": options}, None, tmp_path / "items.parquet", tmp_path / "report.json"
        )
        return read_items(tmp_path / "items.parquet"), report

    return run


def values(items, scorer):
    return metric_values(credit_table(CARD, items, scores_by(scorer, items)))


class TestGrading:
    LABEL = [0.2, 1.0, 0.6]  # noqa: RUF012

    def test_by_hand(self):
        """Scores 3, 1, 2: the first is picked; of the pairs (1,0), (1,2), (2,0) none is right."""
        assert grade(self.LABEL, np.array([3, 1, 2])) == {
            "best_of_all": 0.2,
            "best_of_all_expected": 0.2,
            "agreement": 0.0,
        }
        assert grade(self.LABEL, np.array([1, 3, 0]))["agreement"] == pytest.approx(2 / 3)

    def test_a_tie_at_the_top_counts_as_its_worst_candidate_or_as_the_mean(self):
        credits = grade(self.LABEL, np.array([3, 3, 1]))
        assert (credits["best_of_all"], credits["best_of_all_expected"]) == (0.2, pytest.approx(0.6))
        assert credits["agreement"] == pytest.approx(1 / 3)  # of (1,0) a tie, (1,2) right, (2,0) wrong

    def test_a_missing_score_costs_the_choice_of_the_best(self):
        """The second might have been picked. Of the pairs (1,0), (1,2), (2,0) only the last has two scores."""
        assert grade(self.LABEL, np.array([1, np.nan, 2])) == {
            "best_of_all": 0.0,
            "best_of_all_expected": 0.0,
            "agreement": pytest.approx(1 / 3),
        }
        assert grade(self.LABEL, np.full(3, np.nan)) == {
            "best_of_all": 0.0,
            "best_of_all_expected": 0.0,
            "agreement": 0.0,
        }

    @pytest.mark.parametrize(
        ("scores", "credit"),
        [((1, 0, 0, 0), 1.0), ((1, 1, 1, 1), 0.25), ((1, 1, 2, 0), 0.0), ((1, np.nan, 0, 0), 0.0)],
    )
    def test_with_one_right_candidate_it_is_the_official_best_of_4_of_reward_bench_2(self, scores, credit):
        """Results of the official function (allenai/reward-bench @ 05a9005); ties at random."""
        assert grade([1.0, 0.0, 0.0, 0.0], np.array(scores))["best_of_all_expected"] == credit

    def test_equal_gold_is_no_comparison(self):
        assert comparisons([0.5, 0.5, 1.0], 3) == [(2, 0), (2, 1)]
        with pytest.raises(DataError, match="2 gold values for 3 responses"):
            comparisons([0.5, 1.0], 3)


class TestReading:
    def write(self, folder, *candidates, **changes):
        rows = [
            {"generator": f"m{k}", "output": output, "preference": preference}
            for k, (output, preference) in enumerate(candidates)
        ]
        row = {"instruction": "Ask.", "dataset": "koala", "candidates": rows} | changes
        (folder / "bon_pool_test.jsonl").write_text(json.dumps(row) + "\n")
        return folder

    @pytest.mark.parametrize(
        ("candidates", "changes", "message"),
        [
            ([("a", 2.5), ("b", 1.0)], {}, "row 1: candidate 1: `preference` must be a number from 1 to 2, found 2.5"),
            ([("a", 0.0), ("b", 1.0)], {}, "found 0.0"),
            ([(None, 2.0), ("b", 1.0)], {}, "candidate 1 has no text"),
            ([("a", 2.0)], {}, "at least two answers"),
            ([("a", 2.0), ("b", 1.0)], {"dataset": "kola"}, "Did you mean 'koala'"),
            ([("a", 2.0), ("b", 1.0)], {"instruction": " "}, "`instruction` must be a text that is not empty"),
        ],
    )
    def test_bad_rows_are_errors_that_say_where(self, prepare, tmp_path, candidates, changes, message):
        with pytest.raises(DataError, match=message):
            prepare(self.write(tmp_path, *candidates, **changes))

    def test_it_is_not_on_a_hub(self, prepare):
        with pytest.raises(UserError, match=r"is not on a hub\. Name the folder that holds bon_pool_"):
            prepare(None)


class TestPublicData:
    """Numbers of the data's README: longest 1.432, mean 1.127, best 1.847; 105 outputs repeat another of their list."""

    @pytest.fixture
    def items(self, prepare, shared):
        return prepare(shared("data/alpaca_eval"))[0]

    def test_counts(self, items):
        assert len(items) == 143
        assert {len(item.responses) for item in items} == {36}
        assert pool_counts(items) == {"prompts": 143, "responses": 5148, "duplicates": 105, "empty": 0}

    def test_longest_mean_and_best(self, items):
        longest = values(items, len)
        assert longest["best_of_all"] == longest["best_of_all_expected"] == pytest.approx(0.432, abs=5e-4)
        assert values(items, lambda text: 0.0)["best_of_all_expected"] == pytest.approx(0.127, abs=5e-4) == CARD.chance
        best = [np.array(item.label, dtype=np.float32) for item in items]
        assert metric_values(credit_table(CARD, items, best))["best_of_all"] == pytest.approx(0.847, abs=5e-4)

    def test_best_of_n_begins_at_the_mean_and_ends_at_the_benchmarks_own_metric(self, items):
        curves = pool_curves(items, scores_by(len, items))
        assert curves.n.tolist() == [1, 2, 4, 8, 16, 32, 36]
        gold = curves.gold.mean(axis=0)
        assert gold[0] == pytest.approx(0.127, abs=5e-4)
        assert gold[-1] == pytest.approx(values(items, len)["best_of_all_expected"])
        assert curves.oracle.mean(axis=0)[-1] == pytest.approx(0.847, abs=5e-4)
        assert (curves.kl_estimate <= curves.kl_bound + 1e-12).all()
