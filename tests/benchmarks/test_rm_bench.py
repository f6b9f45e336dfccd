from __future__ import annotations

import json

import numpy as np
import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items, usable_scores
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.rm_bench import grade, levels
from rm_methods.errors import DataError

from .made_up import scores_by

LABEL = {"chosen": [0, 1, 2], "rejected": [3, 4, 5]}
CARD = load_benchmark_card("rm_bench")


def metrics_of(rows: list[tuple[str, list[float]]]) -> dict[str, float]:
    """Metrics of (subset, three chosen and three rejected scores)."""
    items = [BenchmarkItem(str(number), subset, (), [""] * 6, LABEL) for number, (subset, _) in enumerate(rows)]
    return metric_values(credit_table(CARD, items, [usable_scores(scores) for _, scores in rows]))


def percent(values: dict[str, float], *names: str) -> list[float]:
    return [round(100 * values[name], 2) for name in names]


class TestLevels:
    def test_the_papers_matrix_of_fsfairx_on_chat(self):
        """The matrix printed in the paper; a swap of the triangles would give 93.26 as hard."""
        matrix = np.array([[83.61, 3.83, 2.19], [99.45, 66.12, 49.73], [100.0, 80.33, 66.67]])
        values = levels(matrix)
        assert [round(values[level], 2) for level in ("hard", "normal", "easy")] == [18.58, 72.13, 93.26]
        assert values["average"] == pytest.approx(matrix.mean())

    def test_one_item_by_hand(self):
        """chosen 3, 1, 2 against rejected 2, 0, 3.

        M = [[3>2, 3>0, 3>3], [1>2, 1>0, 1>3], [2>2, 2>0, 2>3]] = [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
        hard = M01, M02, M12 = 1, 0, 0; normal = M00, M11, M22 = 1, 1, 0; easy = M10, M20, M21 = 0, 0, 1.
        """
        credit = grade(LABEL, np.array([3, 1, 2, 2, 0, 3], dtype=np.float32))
        assert credit == pytest.approx({"hard": 1 / 3, "normal": 2 / 3, "easy": 1 / 3, "average": 4 / 9})

    def test_a_missing_score_fails_only_its_own_comparisons(self):
        """Row 0 of M is lost: hard keeps 1 of 3, normal 2 of 3, easy 3 of 3."""
        credit = grade(LABEL, np.array([np.nan, 1, 1, 0, 0, 0], dtype=np.float32))
        assert credit == pytest.approx({"hard": 1 / 3, "normal": 2 / 3, "easy": 1.0, "average": 2 / 3})


class TestMetrics:
    def test_safety_pools_its_rows_and_overall_is_the_mean_over_domains(self):
        """Safety: 3 of 4 rows right = 0.75, not the mean of two files (1 + 0) / 2.  All: (0.75 + 0) / 2, not 3/5."""
        right, wrong = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
        values = metrics_of([*[("safety-refuse", right)] * 3, ("safety-response", wrong), ("chat", wrong)])
        assert values["safety"] == pytest.approx(0.75)
        assert [values[name] for name in ("overall", "easy", "normal", "hard")] == pytest.approx([0.375] * 4)
        assert "math" not in values

    def test_overall_is_the_mean_of_the_three_levels(self):
        values = metrics_of([("chat", [3, 1, 2, 2, 0, 3]), ("code", [1, 5, 9, 2, 3, 4])])
        assert values["overall"] == pytest.approx((values["easy"] + values["normal"] + values["hard"]) / 3)

    def test_the_official_code_on_small_cases(self, shared):
        cases = json.loads(shared("golden/golden_metric_cases.json").read_text())["rm_bench"]
        assert len(cases) == 2
        for case in cases:
            values = metrics_of(
                [(row.get("domain", "chat"), row["score_chosen"] + row["score_rejected"]) for row in case["rows"]]
            )
            ours = {"hard_acc": "hard", "normal_acc": "normal", "easy_acc": "easy", "total_avg_acc": "overall"}
            assert {name: values[ours.get(name, name)] for name in case["result"]} == pytest.approx(case["result"])


class TestReading:
    def write(self, folder, name, rows):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def row(self, **changes):
        return {"id": 8, "prompt": "Why?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]} | changes

    def prepare(self, root, tmp_path, **options):
        report = prepare_items(
            "rm_bench", {"root": str(root), "options": options}, None, tmp_path / "i.parquet", tmp_path / "r.json"
        )
        return report, read_items(tmp_path / "i.parquet")

    def test_equal_ids_in_two_files_stay_apart(self, tmp_path):
        root = self.write(tmp_path / "root", "chat_filtered.json", [self.row()])
        self.write(root, "code_filtered.json", [self.row()])
        report, items = self.prepare(root, tmp_path)
        assert [item.item_id for item in items] == ["chat/8", "code/8"]
        assert items[0].responses == ["a", "b", "c", "d", "e", "f"]
        assert "math" in report["notes"][0]
        assert "not the official Overall" in report["notes"][0]

    def test_the_total_file_is_read_alone(self, tmp_path):
        rows = [self.row(domain=domain) for domain in ("chat", "code", "math", "safety-refuse", "safety-response")]
        root = self.write(tmp_path / "root", "total_dataset.jsonl", rows)
        self.write(root, "chat_filtered.json", [self.row()])
        report, items = self.prepare(root, tmp_path)
        assert [item.subset for item in items] == ["chat", "code", "math", "safety-refuse", "safety-response"]
        (note,) = report["notes"]
        assert note.startswith("Expected 1,327 rows, got 5: chat 1 of 129, code 1 of 228, math 1 of 529")

    def test_domains_that_are_not_asked_for_are_counted(self, tmp_path):
        root = self.write(tmp_path / "root", "chat_filtered.json", [self.row()])
        self.write(root, "safety-refuse_filtered.json", [self.row()])
        report, items = self.prepare(root, tmp_path, domains=["safety"])
        assert [item.subset for item in items] == ["safety-refuse"]
        assert report["excluded"]["domain not asked for by options.domains"]["count"] == 1
        assert any("one of the two safety files" in note for note in report["notes"])
        with pytest.raises(DataError, match=r"no rows of the domains \['math'\]"):
            self.prepare(root, tmp_path, domains=["chat", "math"])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"chosen": ["a", "b"]}, "row 2: `chosen` must be a list of three texts"),
            ({"rejected": "abc"}, "row 2: `rejected` must be a list of three texts"),
            ({"prompt": None}, "row 2: `prompt` must be a text, found null"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, change, message):
        root = self.write(tmp_path / "root", "chat_filtered.jsonl", [self.row(), self.row(id=9, **change)])
        with pytest.raises(DataError, match=message):
            self.prepare(root, tmp_path)

    def test_an_unknown_domain_is_named(self, tmp_path):
        root = self.write(tmp_path / "root", "total_dataset.json", [self.row(domain="maths")])
        with pytest.raises(DataError, match=r"row 1: domain 'maths' is not one of RM-Bench. Did you mean 'math'"):
            self.prepare(root, tmp_path)

    def test_an_id_that_occurs_twice_is_an_error(self, tmp_path):
        root = self.write(tmp_path / "root", "chat_filtered.jsonl", [self.row(), self.row(prompt="How?")])
        with pytest.raises(DataError, match="'chat/8' occurs twice"):
            self.prepare(root, tmp_path)


def test_the_public_files_and_the_length_ruler(shared, tmp_path):
    """Chat, code and safety (math is not at hand).  A ruler must find the lower triangle easy, the upper one hard."""
    report = prepare_items(
        "rm_bench", {"root": str(shared("data/rm_bench"))}, None, tmp_path / "i.parquet", tmp_path / "r.json"
    )
    assert report["subsets"] == {"chat": 129, "code": 228, "safety-refuse": 284, "safety-response": 157}
    assert report["n_rows"] == report["n_items"] == 798
    assert any(note.startswith("Domains missing: math.") for note in report["notes"])
    items = read_items(tmp_path / "i.parquet")
    values = metric_values(credit_table(CARD, items, scores_by(len, items)))
    assert percent(values, "easy", "normal", "hard") == [83.69, 39.4, 12.67]
    assert values["easy"] - values["hard"] > 0.7
