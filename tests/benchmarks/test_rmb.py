from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items, tie_rate
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.rmb import COLUMNS, SCENARIOS, grade
from rm_methods.errors import DataError, UserError

from .conftest import EXAMPLES
from .made_up import perfect_scores, scores_by

CARD = load_benchmark_card("rmb")
S1 = "Pairwise_set/Harmlessness/S1"


@pytest.fixture
def prepare(tmp_path):
    def run(root=EXAMPLES / "rmb", **options):
        report = prepare_items(
            CARD.name, {"root": str(root), "options": options}, None, tmp_path / "i.parquet", tmp_path / "r.json"
        )
        return read_items(tmp_path / "i.parquet"), report

    return run


@pytest.fixture
def copy(tmp_path):
    """A copy of the example files in which a function has changed the first row of one file."""

    def make(path=S1, edit=None):
        root = tmp_path / "copy"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(EXAMPLES / "rmb" / "RMB_dataset", root)
        if edit is not None:
            file = root / f"{path}.json"
            rows = json.loads(file.read_text())
            edit(rows[0])
            file.write_text(json.dumps(rows))
        return root

    return make


def put(key, value):
    def edit(row):
        row[key] = value

    return edit


def values_of(items, scores):
    return metric_values(credit_table(CARD, items, scores))


def accuracy(*scores):
    return grade(0, np.array(scores, dtype=np.float32))["accuracy"]


class TestGrade:
    def test_a_list_passes_only_if_the_best_answer_beats_every_loser(self):
        assert accuracy(3, 1, 2, 0) == 1.0
        assert accuracy(2, 1, 3, 0) == 0.0
        assert accuracy(2, 1, 2, 0) == 0.0

    def test_a_missing_score_of_any_answer_fails_the_list(self):
        assert accuracy(np.nan, 1, 2) == accuracy(3, np.nan, 2) == accuracy(3, 1, np.nan) == 0.0

    def test_ties_of_pairs_are_wrong_as_in_the_published_result_of_armorm(self):
        """Helpfulness/Brainstorming/Idea Development: 675 of 849 pairs higher, 12 equal, 162 lower; reported .79505."""
        scores = [(1, 0)] * 675 + [(1, 1)] * 12 + [(0, 1)] * 162
        items = [
            BenchmarkItem(str(number), "helpfulness_pairwise", (), ["", ""], 0, meta={"scenario": "Chat/Discussion"})
            for number in range(len(scores))
        ]
        scores = [np.array(pair, dtype=np.float32) for pair in scores]
        assert values_of(items, scores)["helpfulness_pairwise"] == pytest.approx(0.7950530035335689)
        assert tie_rate(CARD, items, scores) == 12 / 849


class TestMetrics:
    def test_the_longest_answer_on_the_examples_by_hand(self, prepare):
        """By scenario: helpfulness lists 2/2, 0/1 and pairs 1/2, 1/1; harmlessness lists 1/1, 0/1 and pairs 1/1, 0/1.

        overall = (2/3 + 2/3 + 1/2 + 1/2) / 4, overall_macro = (1/2 + 3/4 + 1/2 + 1/2) / 4.
        """
        items, _ = prepare()
        assert values_of(items, scores_by(len, items)) == pytest.approx(
            {
                "overall": 7 / 12,
                "helpfulness_bon": 2 / 3,
                "helpfulness_pairwise": 2 / 3,
                "harmlessness_bon": 1 / 2,
                "harmlessness_pairwise": 1 / 2,
                "overall_macro": 9 / 16,
                "helpfulness_bon_macro": 1 / 2,
                "helpfulness_pairwise_macro": 3 / 4,
                "harmlessness_bon_macro": 1 / 2,
                "harmlessness_pairwise_macro": 1 / 2,
            }
        )

    def test_every_column_weighs_the_same_in_the_macro_average_however_many_scenarios_it_has(self):
        """Lists 1/2, 1/1, 0/1 in three scenarios, mean 1/2; pairs 1/1 in one.  (1/2 + 1) / 2, not 2.5 / 4."""
        rows = [
            ("helpfulness_bon", "Chat/Discussion", 1),
            ("helpfulness_bon", "Chat/Discussion", 0),
            ("helpfulness_bon", "Open QA/Factual", 1),
            ("helpfulness_bon", "Rewrite/Paraphrasing", 0),
            ("harmlessness_pairwise", "S1", 1),
        ]
        items = [
            BenchmarkItem(str(number), column, (), ["", ""], 0, meta={"scenario": scenario})
            for number, (column, scenario, _) in enumerate(rows)
        ]
        values = values_of(items, [np.array([right, 0.5], dtype=np.float32) for _, _, right in rows])
        assert values["overall_macro"] == pytest.approx(0.75)
        assert values["helpfulness_bon_macro"] == pytest.approx(1 / 2)

    def test_a_tie_with_one_loser_costs_the_list(self, prepare):
        items, _ = prepare(sets=["bon"], goals=["harmlessness"])
        scores = perfect_scores(CARD, items)
        assert values_of(items, scores)["harmlessness_bon"] == 1.0
        scores[0] = np.array([1, 0, 1], dtype=np.float32)
        assert values_of(items, scores)["harmlessness_bon"] == 0.5
        assert tie_rate(CARD, items, scores) == 1 / 4

    def test_items_without_a_scenario_have_no_macro_averages(self):
        items = [BenchmarkItem("1", "harmlessness_bon", (), [""] * 3, 0)]
        assert values_of(items, [np.array([2, 1, 0], dtype=np.float32)]) == {"overall": 1.0, "harmlessness_bon": 1.0}


class TestReading:
    def test_49_scenarios_in_two_sets(self):
        assert [len(scenarios) for scenarios in SCENARIOS.values()] == [37, 12]
        assert set(CARD.files) == set(CARD.subsets) == set(COLUMNS)

    def test_a_pair_and_a_list(self, prepare):
        items, report = prepare()
        assert report["subsets"] == {
            "harmlessness_bon": 2,
            "harmlessness_pairwise": 2,
            "helpfulness_bon": 3,
            "helpfulness_pairwise": 3,
        }
        by_id = {item.item_id: item for item in items}
        pair = by_id["helpfulness_pairwise/1"]
        assert pair.prompt == [
            {"role": "user", "content": "Do you like rain?"},
            {"role": "assistant", "content": "Yes, on a roof."},
            {"role": "user", "content": "And snow?"},
        ]
        assert (pair.responses, pair.label) == (["Snow is quiet, and I like that.", "No."], 0)
        ranking = by_id["helpfulness_bon/2"]
        assert len(ranking.prompt) == 5
        assert (ranking.responses, ranking.label) == (["The Mekong.", "The Nile.", "A river.", ""], 0)
        assert ranking.meta == {
            "scenario": "Chat/Discussion",
            "models": ["model-a", "model-b", "model-c", "model-d"],
        }
        assert by_id["helpfulness_bon/1"].group == pair.group

    def test_the_root_may_be_the_folder_of_the_data_itself(self, prepare):
        assert prepare(EXAMPLES / "rmb")[0] == prepare(EXAMPLES / "rmb" / "RMB_dataset")[0]

    def test_unusual_rows_are_kept_and_counted(self, prepare, copy):
        _, report = prepare()
        assert {remark: entry["count"] for remark, entry in report["counted"].items()} == {
            "some answers are empty, kept": 1
        }

        def edit(row):
            row["conversation_input"][0]["content"] = ""
            row["reject"]["answer"] = row["chosen"]["answer"]

        items, report = prepare(copy(edit=edit))
        assert (report["n_rows"], len(items), report["excluded"]) == (10, 10, {})
        assert {remark: entry["count"] for remark, entry in report["counted"].items()} == {
            "some answers are empty, kept": 1,
            "the best answer and another are the same text: always a tie, kept": 1,
            "some turns of the prompt are empty, kept": 1,
        }

    def test_columns_that_were_not_read_are_reported(self, prepare, copy):
        _, report = prepare(copy(edit=put("system prompt", "Be brief.")))
        assert list(report["unread"].values()) == [{"system prompt": 1}]

    def test_missing_columns_and_scenarios_are_noted(self, prepare, copy):
        root = copy()
        shutil.rmtree(root / "BoN_set" / "Harmlessness")
        items, report = prepare(root)
        assert "harmlessness_bon" not in {item.subset for item in items}
        assert report["notes"][0] == (
            "Columns missing: harmlessness_bon. `overall` is the mean over the others and is not the official Overall."
        )
        assert report["notes"][-2] == (
            "Scenarios missing in harmlessness_pairwise: S2, S3, S4, S5, S6, S7, S8, S9, S10, S11. Its figures and "
            "`overall` are not official."
        )

    def test_all_files_together_need_no_note_but_that_of_their_size(self, prepare, tmp_path):
        row = {"conversation_input": [{"role": "user", "content": "?"}]}
        answers = {"llm_name": "m", "answer": "a"}
        rows = {
            "bon": row | {"bon_best": answers, "loser_list": [answers]},
            "pairwise": row | {"chosen": answers, "reject": answers},
        }
        number = 0
        for column, folder in COLUMNS.items():
            goal, name = column.split("_")
            for scenario in SCENARIOS[goal]:
                number += 1
                file = tmp_path / "all" / folder / f"{scenario}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps([rows[name] | {"pair_uid": number, "bon_uid": number}]))
        items, report = prepare(tmp_path / "all")
        size = "Expected 3,786 rows, got 49: helpfulness_bon 37 of 2,109, harmlessness_bon 12 of 1,677."
        assert (len(items), report["notes"]) == (98, [f"{size} Figures are not the official ones."])

    @pytest.mark.parametrize(
        ("options", "columns"),
        [
            ({"sets": ["bon"]}, {"helpfulness_bon", "harmlessness_bon"}),
            ({"goals": ["harmlessness"]}, {"harmlessness_bon", "harmlessness_pairwise"}),
            ({"sets": ["pairwise"], "goals": ["helpfulness"]}, {"helpfulness_pairwise"}),
        ],
    )
    def test_options_select_sets_and_goals(self, prepare, options, columns):
        items, report = prepare(**options)
        assert {item.subset for item in items} == columns
        assert all(column in report["notes"][0] for column in set(COLUMNS) - columns)

    def test_a_set_that_is_asked_for_must_be_there(self, prepare, copy):
        root = copy()
        shutil.rmtree(root / "BoN_set")
        assert len(prepare(root)[0]) == 5
        with pytest.raises(
            DataError, match=r"rmb: no files of \['bon'\], which options.sets or options.goals asks for"
        ):
            prepare(root, sets=["bon", "pairwise"])


class TestRefused:
    def test_no_root(self, tmp_path):
        with pytest.raises(UserError, match=r"benchmarks.rmb.root is not set: RMB is not on a hub"):
            prepare_items("rmb", {}, None, tmp_path / "i.parquet", tmp_path / "r.json")

    @pytest.mark.parametrize("folder", ["nowhere", "empty"])
    def test_a_root_without_the_files(self, prepare, tmp_path, folder):
        (tmp_path / "empty").mkdir()
        expected = (
            rf"benchmarks.rmb.root: .*{folder}: no such folder, or no file \*\*/BoN_set/Harmlessness/\*.json\* is"
        )
        with pytest.raises(DataError, match=expected):
            prepare(tmp_path / folder, sets=["bon"], goals=["harmlessness"])

    def test_an_unknown_scenario(self, prepare, copy):
        root = copy()
        (root / f"{S1}.json").rename(root / "Pairwise_set" / "Harmlessness" / "S12.json")
        with pytest.raises(DataError, match=r"S12.json: 'S12' is not a scenario of RMB. Did you mean 'S"):
            prepare(root)

    def test_two_files_of_one_scenario(self, prepare, copy):
        root = copy()
        shutil.copy(root / f"{S1}.json", root / f"{S1}.jsonl")
        with pytest.raises(DataError, match=r"S1.jsonl: .*S1.json holds the same scenario, 'S1'. Keep one of them"):
            prepare(root)

    @pytest.mark.parametrize(
        ("path", "edit", "message"),
        [
            (S1, put("pair_uid", None), "`pair_uid` must be a text or a whole number, found None"),
            (
                S1,
                put("reject", "Take a brick."),
                "`reject` must be an object with `llm_name` and `answer`, found 'Take",
            ),
            (S1, put("chosen", {"llm_name": "m"}), "`chosen`: `answer` must be a text, found null"),
            (S1, put("conversation_input", "Hi"), "`conversation_input` must be a list of turns, found 'Hi'"),
            (S1, put("conversation_input", []), r"the roles of `conversation_input` are \[\]"),
            (
                S1,
                put("conversation_input", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
                r"the roles of `conversation_input` are \['user', 'assistant'\]; expected user and assistant in turn",
            ),
            (
                S1,
                put("conversation_input", [{"role": "user", "content": 3}]),
                "turn 1 of `conversation_input`: `content` must be a text, found a whole number",
            ),
            (
                S1,
                put("category_path", "Pairwise_set/Harmlessness/S2"),
                "`category_path` is 'Pairwise_set/Harmlessness/S2'; the rows of this file have 'Pairwise_set/Harm",
            ),
            (
                "BoN_set/Harmlessness/S1",
                put("loser_list", []),
                r"`loser_list` must be a list of at least one answer, found '\[\]'",
            ),
            (
                "BoN_set/Harmlessness/S1",
                put("loser_list", [{"llm_name": "m", "answer": None}]),
                r"`loser_list\[0\]`: `answer` must be a text, found null",
            ),
        ],
    )
    def test_a_bad_row_is_named(self, prepare, copy, path, edit, message):
        with pytest.raises(DataError, match=rf"{path}.json, row 1: {message}"):
            prepare(copy(path, edit))

    def test_an_id_that_occurs_twice(self, prepare, copy):
        root = copy("Pairwise_set/Harmlessness/multi", put("pair_uid", "4"))
        with pytest.raises(DataError, match=r"'harmlessness_pairwise/4' occurs twice, first in .*S1.json, row 1"):
            prepare(root)
