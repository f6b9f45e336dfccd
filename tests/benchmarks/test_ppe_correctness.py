from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items
from rm_methods.benchmarks.item import read_items
from rm_methods.benchmarks.ppe_correctness import grade
from rm_methods.errors import DataError
from rm_methods.overoptimization.best_of_n import pool_curves

from .conftest import EXAMPLES
from .made_up import scores_by

CARD = load_benchmark_card("ppe_correctness")
ROW = {
    "question_id": "q",
    "model_name": "m",
    "prompt": "1 + 1?",
    "response_1": "3",
    "response_2": "2",
    "response_3": "two",
    "scores": [False, True, True],
    "sampled_conflict_pairs": [[0, 1], [2, 0]],
}


@pytest.fixture
def prepare(tmp_path):
    def run(*rows, root=None, **options):
        if rows:
            root = tmp_path
            folder = root / "PPE-MATH-Best-of-K" / "data"
            folder.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(list(rows)), folder / "train-00000-of-00001.parquet")
        report = prepare_items(
            CARD.name, {"root": root, "options": options}, None, tmp_path / "items.parquet", tmp_path / "report.json"
        )
        return read_items(tmp_path / "items.parquet"), report

    return run


class TestGrading:
    LABEL = {"gold": [1.0, 0.0, 1.0, 0.0], "conflict_pairs": [[0, 1], [2, 3], [0, 1], [2, 1]]}  # noqa: RUF012

    def test_by_hand(self):
        """Scores 4, 3, 1, 2: conflict pairs right, wrong, right, wrong; the top is right; 2 of 4 pairs are right."""
        credits = grade(self.LABEL, np.array([4, 3, 1, 2], dtype=np.float32))
        assert credits == {
            "accuracy": 0.5,
            "best_of_all": 1.0,
            "best_of_all_expected": 1.0,
            "agreement": 0.5,
            "auc": 0.5,
        }

    def test_ties(self):
        credits = grade(self.LABEL, np.ones(4, dtype=np.float32))
        assert credits == {
            "accuracy": 0.0,
            "best_of_all": 0.0,
            "best_of_all_expected": 0.5,
            "agreement": 0.0,
            "auc": 0.5,
        }

    def test_auc_is_that_of_scikit_learn(self):
        generator = np.random.default_rng(0)
        gold = generator.integers(0, 2, 32).astype(float)
        scores = generator.integers(0, 9, 32).astype(np.float32)
        label = {"gold": gold.tolist(), "conflict_pairs": [[int(gold.argmax()), int(gold.argmin())]]}
        assert grade(label, scores)["auc"] == pytest.approx(roc_auc_score(gold, scores))


class TestReading:
    def test_a_row_becomes_an_item_with_pairs_right_first(self, prepare):
        (item,), report = prepare(ROW)
        assert (item.item_id, item.subset, item.responses) == ("math/q/m", "math", ["3", "2", "two"])
        assert item.label == {"gold": [0.0, 1.0, 1.0], "conflict_pairs": [[1, 0], [2, 0]]}
        assert "Benchmarks missing: mmlu_pro, gpqa, ifeval, mbpp_plus" in report["notes"][0]

    def test_pairs_that_are_no_conflict_are_counted_and_rows_without_any_excluded(self, prepare):
        agreeing = ROW | {"sampled_conflict_pairs": [[1, 2], [0, 1]]}
        nothing = ROW | {"sampled_conflict_pairs": [[1, 2]]}
        items, report = prepare(ROW, agreeing, nothing)
        assert [item.item_id for item in items] == ["math/q/m", "math/q/m#2"]
        assert items[1].label["conflict_pairs"] == [[1, 0]]
        assert report["counted"]["conflict pair of two equally correct responses, left out"]["count"] == 2
        assert report["excluded"]["no conflict pair of a right and a wrong response"]["count"] == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scores": [False, True]}, "more responses than the 2 values"),
            ({"scores": [False, True, True, False]}, "`response_4` is null"),
            ({"sampled_conflict_pairs": [[0, 3]]}, r"conflict pair \[0, 3\] is not two indices from 0 to 2"),
            ({"prompt": None}, "`prompt` must be a text"),
        ],
    )
    def test_bad_rows_are_errors_that_say_where(self, prepare, changes, message):
        with pytest.raises(DataError, match=f"row 1: .*{message}"):
            prepare(ROW | changes)

    def test_all_five_from_the_hub_layout(self, prepare):
        _, report = prepare(root=EXAMPLES / "ppe_correctness")
        assert report["subsets"] == dict.fromkeys(("gpqa", "ifeval", "math", "mbpp_plus", "mmlu_pro"), 2)
        size = "Expected 2,555 rows, got 10: all five benchmarks 10 of 2,555."
        assert report["notes"] == [f"{size} Figures are not the official ones."]

    def test_from_the_hub_every_benchmark_is_a_repository_of_its_own(self, prepare, monkeypatch):
        import datasets

        asked = []
        monkeypatch.setattr(
            datasets, "load_dataset", lambda name, **given: asked.append((name, given["split"])) or [ROW]
        )
        items, _ = prepare(benchmarks=["math", "gpqa"])
        assert asked == [("lmarena-ai/PPE-MATH-Best-of-K", "train"), ("lmarena-ai/PPE-GPQA-Best-of-K", "train")]
        assert [item.subset for item in items] == ["math", "gpqa"]


def test_the_longest_response_on_the_example_by_hand(prepare):
    """First rows: "It is k, surely." is longest and wrong; of the pairs (0,1), (0,3), (0,1) none is longer, so 0.
    Second rows: the right answer is the shortest, so 0.  Nothing is picked right and every metric is 0."""
    items, _ = prepare(root=EXAMPLES / "ppe_correctness")
    values = metric_values(credit_table(CARD, items, scores_by(len, items)))
    assert (values["accuracy"], values["best_of_all"], values["math"]) == (0.0, 0.0, 0.0)
    assert values["agreement"] == pytest.approx(
        0.5 * 0.25
    )  # of the first row's four pairs only "It is k+1." is longer than "k"


def test_the_pool_of_best_of_n_ends_at_the_end_score(prepare):
    items, _ = prepare(root=EXAMPLES / "ppe_correctness")
    scores = scores_by(lambda text: float(sum(map(ord, text)) % 31), items)
    curves = pool_curves(items, scores)
    values = metric_values(credit_table(CARD, items, scores))
    assert curves.gold.mean(axis=0)[0] == pytest.approx(0.375)
    assert curves.gold.mean(axis=0)[-1] == pytest.approx(values["best_of_all_expected"])
