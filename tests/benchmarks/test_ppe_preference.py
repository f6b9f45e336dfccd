from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items, tie_rate
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.ppe_preference import DOMAINS, SUBSET, grade
from rm_methods.errors import DataError

from .conftest import EXAMPLES
from .made_up import scores_by

CARD = load_benchmark_card("ppe_preference")
ROW = {
    "question_id": "q",
    "model_a": "one",
    "model_b": "two",
    "winner": "model_b",
    "prompt": "1 + 1?",
    "response_1": "3",
    "response_2": "2",
    "language": "English",
    "is_code": False,
    "hard_prompt": False,
    "easy_prompt": True,
    "if_prompt": False,
    "math_prompt": True,
}


@pytest.fixture
def prepare(tmp_path):
    def run(*rows, root=None, **options):
        if rows:
            root = tmp_path / "root"
            folder = root / "PPE-Human-Preference-V1" / "data"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(list(rows)), folder / "test-00000-of-00001.parquet")
        report = prepare_items(
            CARD.name, {"root": root, "options": options}, None, tmp_path / "items.parquet", tmp_path / "report.json"
        )
        return read_items(tmp_path / "items.parquet"), report

    return run


class TestGrade:
    @pytest.mark.parametrize(
        ("label", "scores", "accuracy"),
        [
            (0, (2, 1), 1.0),
            (0, (1, 2), 0.0),
            (1, (1, 2), 1.0),
            (1, (2, 1), 0.0),
            (0, (1, 1), 0.0),
            (1, (1, 1), 0.0),
            (0, (2, np.nan), 0.0),
            (1, (np.nan, 2), 0.0),
        ],
    )
    def test_only_the_higher_score_of_the_voters_answer_is_right(self, label, scores, accuracy):
        assert grade(label, np.array(scores, dtype=np.float32)) == {"accuracy": accuracy}


class TestMetrics:
    def test_the_longer_answer_on_the_examples_by_hand(self, prepare):
        """Wrong in q2 alone, which is easy, asks to follow an instruction, and is English: 5 of 6, and so on."""
        items, _ = prepare(root=EXAMPLES / "ppe_preference")
        assert metric_values(credit_table(CARD, items, scores_by(len, items))) == pytest.approx(
            {
                "accuracy": 5 / 6,
                "hard": 1.0,
                "easy": 1 / 2,
                "if": 0.0,
                "math": 1.0,
                "code": 1.0,
                "english": 2 / 3,
                "non_english": 1.0,
                "chinese": 1.0,
                "russian": 1.0,
            }
        )

    def test_accuracy_is_over_rows_however_many_domains_they_have(self, prepare):
        """Three easy rows wrong, one row of no domain but its language right: 1 of 4."""
        easy = [ROW | {"question_id": f"q{number}"} for number in range(3)]
        plain = ROW | {"question_id": "p", "easy_prompt": False, "math_prompt": False, "language": "German"}
        items, _ = prepare(*easy, plain)
        scores = [np.array([1, 0], dtype=np.float32)] * 3 + [np.array([0, 1], dtype=np.float32)]
        assert metric_values(credit_table(CARD, items, scores)) == {
            "accuracy": 0.25,
            "easy": 0.0,
            "math": 0.0,
            "english": 0.0,
            "non_english": 1.0,
        }

    def test_a_tie_of_scores_is_wrong_and_counted(self, prepare):
        items, _ = prepare(ROW, ROW | {"question_id": "r"})
        scores = [np.array([0, 1], dtype=np.float32), np.array([1, 1], dtype=np.float32)]
        assert metric_values(credit_table(CARD, items, scores))["accuracy"] == 0.5
        assert tie_rate(CARD, items, scores) == 0.5

    def test_items_without_domains_have_accuracy_alone(self):
        items = [BenchmarkItem("1", SUBSET, (), ["", ""], 1)]
        assert metric_values(credit_table(CARD, items, [np.array([0, 1], dtype=np.float32)])) == {"accuracy": 1.0}


class TestReading:
    def test_a_row_becomes_an_item(self, prepare):
        (item,), report = prepare(ROW)
        assert (item.item_id, item.subset, item.label) == ("q", "human_preference", 1)
        assert item.prompt == [{"role": "user", "content": "1 + 1?"}]
        assert item.responses == ["3", "2"]
        assert item.meta == {"domains": ["easy", "math", "english"], "models": ["one", "two"]}
        assert report["notes"] == [
            "Expected 16,038 rows, got 1: human_preference 1 of 16,038. Figures are not the official ones.",
            "Domains missing: hard, if, code, non_english, chinese, russian. They have no figures.",
        ]

    def test_tie_votes_are_excluded_and_counted(self, prepare):
        items, report = prepare(root=EXAMPLES / "ppe_preference")
        assert [item.item_id for item in items] == ["q1", "q2", "q4", "q6", "q7", "q8"]
        assert report["n_rows"] == 8
        assert {reason: entry["count"] for reason, entry in report["excluded"].items()} == {
            "the human vote is 'tie'": 1,
            "the human vote is 'tie (bothbad)'": 1,
        }
        size = "Expected 16,038 rows, got 8: human_preference 8 of 16,038."
        assert report["notes"] == [f"{size} Figures are not the official ones."]

    @pytest.mark.parametrize("winner", ["tie", "tie (bothbad)", "both_bad"])
    def test_every_spelling_of_a_tie_is_excluded(self, prepare, winner):
        items, report = prepare(ROW, ROW | {"winner": winner})
        assert len(items) == 1
        assert report["excluded"][f"the human vote is {winner!r}"]["count"] == 1

    @pytest.mark.parametrize(
        ("language", "domains"),
        [
            ("English", ["english"]),
            ("Chinese", ["non_english", "chinese"]),
            ("Russian", ["non_english", "russian"]),
            ("Spanish", ["non_english"]),
        ],
    )
    def test_domains_of_a_language(self, prepare, language, domains):
        (item,), _ = prepare(ROW | {"language": language, "easy_prompt": False, "math_prompt": False})
        assert item.meta["domains"] == domains

    @pytest.mark.parametrize(
        ("column", "domain"),
        [
            ("hard_prompt", "hard"),
            ("easy_prompt", "easy"),
            ("if_prompt", "if"),
            ("math_prompt", "math"),
            ("is_code", "code"),
        ],
    )
    def test_each_flag_marks_its_domain(self, prepare, column, domain):
        flags = dict.fromkeys(("hard_prompt", "easy_prompt", "if_prompt", "math_prompt", "is_code"), False)
        (item,), _ = prepare(ROW | flags | {column: True})
        assert item.meta["domains"] == [domain, "english"]

    def test_unusual_rows_are_kept_and_counted(self, prepare):
        items, report = prepare(
            ROW | {"hard_prompt": None}, ROW | {"question_id": "r", "response_1": "", "response_2": ""}
        )
        assert len(items) == 2
        assert {remark: entry["count"] for remark, entry in report["counted"].items()} == {
            "`hard_prompt` is missing: not in the domain 'hard'": 1,
            "both responses are the same text: always a tie, kept": 1,
            "empty response, kept": 1,
        }

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"winner": "model_c"},
                r"winner 'model_c' is not allowed\. Did you mean 'model_[ab]'\? Allowed: both_bad, mod",
            ),
            ({"winner": None}, "winner None is not allowed"),
            ({"prompt": " "}, "`prompt` must be a text that is not empty"),
            ({"response_2": None}, "`response_2` must be a text, found null"),
            ({"is_code": "no"}, "`is_code` must be true or false, found 'no'"),
            ({"language": None}, "`language` must be a text, found null"),
            ({"question_id": ""}, "`question_id` must be a text or a whole number, found ''"),
        ],
    )
    def test_a_bad_row_is_named(self, prepare, changes, message):
        with pytest.raises(DataError, match=rf"test-00000-of-00001.parquet, row 1: {message}"):
            prepare(ROW | changes)

    def test_an_id_that_occurs_twice_is_an_error(self, prepare):
        with pytest.raises(DataError, match=r"row 2: item id 'q' occurs twice, first in .*row 1"):
            prepare(ROW, ROW)

    def test_a_folder_without_the_file(self, prepare, tmp_path):
        with pytest.raises(
            DataError, match=r"benchmarks.ppe_preference.root: .*no file \*\*/\*Human-Preference-V1/\*\*"
        ):
            prepare(root=tmp_path)

    def test_from_the_hub_it_is_the_split_test(self, prepare, monkeypatch):
        import datasets

        asked = []

        def load_dataset(path, **arguments):
            asked.append((path, arguments))
            return [ROW]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        (item,), report = prepare()
        assert asked == [("lmarena-ai/PPE-Human-Preference-V1", {"revision": None, "split": "test"})]
        assert item.item_id == "q"
        assert report["notes"][0].startswith("Not pinned")

    def test_the_domains_of_a_sample_are_those_of_its_items(self, prepare):
        items, report = prepare(root=EXAMPLES / "ppe_preference", limit=1)
        assert len(items) == 1
        missing = set(DOMAINS) - set(items[0].meta["domains"])
        assert any(note.startswith("Domains missing: ") and all(d in note for d in missing) for note in report["notes"])
