from __future__ import annotations

import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.errors import DataError

from .conftest import EXAMPLES
from .made_up import graded_items, metrics_of_graded, prepared, write_lines

CARD = load_benchmark_card("ultrafeedback")
USER = {"role": "user", "content": "Hello?"}
CHOSEN = [USER, {"role": "assistant", "content": "Hello."}]
REJECTED = [USER, {"role": "assistant", "content": "No."}]
ROW = {
    "prompt": "Hello?",
    "prompt_id": "id-1",
    "chosen": CHOSEN,
    "rejected": REJECTED,
    "messages": CHOSEN,
    "score_chosen": 8.0,
    "score_rejected": 6.5,
}


def read(tmp_path, *rows, **options):
    write_lines(tmp_path / "root/data/test_prefs-00000-of-00001.jsonl", *rows)
    return prepared("ultrafeedback", tmp_path / "root", tmp_path, **options)


def test_the_last_turns_are_compared_under_the_shared_turns(tmp_path):
    _, (item,) = read(tmp_path, ROW)
    assert item.prompt == [USER]
    assert (item.responses, item.label) == (["Hello.", "No."], 0)
    assert item.item_id == "test_prefs/id-1"
    assert item.meta == {"score_chosen": 8.0, "score_rejected": 6.5}


def test_several_turns_and_a_system_turn(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, *CHOSEN, {"role": "user", "content": "Again?"}]
    row = ROW | {"chosen": [*turns, CHOSEN[1]], "rejected": [*turns, REJECTED[1]]}
    _, (item,) = read(tmp_path, row)
    assert item.prompt == turns


class TestEqualScores:
    def test_they_are_kept_and_counted(self, tmp_path):
        report, items = prepared("ultrafeedback", EXAMPLES / "ultrafeedback", tmp_path)
        assert len(items) == 3
        assert report["counted"]["both answers have the same score: the label says nothing, kept"]["count"] == 1

    def test_they_can_be_excluded(self, tmp_path):
        report, items = prepared("ultrafeedback", EXAMPLES / "ultrafeedback", tmp_path, equal_scores="exclude")
        assert [item.item_id for item in items] == ["test_prefs/id-1", "test_prefs/id-2"]
        assert report["excluded"]["both answers have the same score (options.equal_scores)"]["count"] == 1
        assert report["counted"] == {}

    def test_a_rejected_answer_with_the_higher_score_is_counted(self, tmp_path):
        report, items = read(tmp_path, ROW | {"score_rejected": 9})
        assert items[0].label == 0
        assert report["counted"] == {
            "the rejected answer has the higher score, kept": {
                "count": 1,
                "examples": [f"{tmp_path}/root/data/test_prefs-00000-of-00001.jsonl, row 1"],
            }
        }


def test_rows_that_are_no_pair_are_excluded_and_counted(tmp_path):
    other = [{"role": "user", "content": "Bye?"}, REJECTED[1]]
    rows = [ROW, ROW | {"rejected": other}, ROW | {"chosen": [USER], "rejected": [USER]}]
    rows.append(ROW | {"chosen": [CHOSEN[1]], "rejected": [REJECTED[1]]})
    report, items = read(tmp_path, *rows)
    assert len(items) == 1
    assert {reason: entry["count"] for reason, entry in report["excluded"].items()} == {
        "the prompts of chosen and rejected differ": 1,
        "the answer is not an assistant turn": 1,
        "empty prompt": 1,
    }


def test_equal_prompt_ids_stay_two_items_of_one_group(tmp_path):
    _, items = read(tmp_path, ROW, ROW)
    assert [item.item_id for item in items] == ["test_prefs/id-1", "test_prefs/id-1#2"]
    assert items[0].group == items[1].group


def test_a_tie_of_the_scorer_is_wrong():
    assert metrics_of_graded(CARD, graded_items("test_prefs", 0, 1, 2, 4)) == {"accuracy": 0.25}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": "Hello."}, r"jsonl, row 2: `chosen` must be a list of messages, found 'Hello\.'"),
        ({"rejected": []}, "row 2: `rejected` must be a list of messages"),
        ({"chosen": [{"role": "human", "content": "x"}]}, "row 2: `chosen`, message 1 has the role 'human'"),
        ({"score_chosen": None}, "row 2: `score_chosen` is None; expected a number"),
        ({"score_rejected": "6"}, "row 2: `score_rejected` is '6'; expected a number"),
        ({"prompt_id": None}, "row 2: `prompt_id` must be a text or a whole number, found None"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, ROW, ROW | change)
