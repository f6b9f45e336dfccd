"""Files whose rows are not pairs: the form from the columns, pairs derived by hand, every bad row accounted for."""

import csv
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rm_methods.errors import ConfigError, DataError
from rm_methods.preferences.cards import card_for
from rm_methods.preferences.read_report import ReadReport
from rm_methods.preferences.readers import preference_rows, read_dataset

USER = {"role": "user", "content": "Q?"}


def said(text):
    return [{"role": "assistant", "content": text}]


def made(pairs):
    return {(pair.chosen, pair.rejected, pair.strength) for pair in pairs}


ABC = {"prompt": "Q?", "responses": ["a", "b", "c"]}
# The form, rows, and the pairs with their strength, derived by hand.
FORMS = {
    "ranked by ranks": ("ranked", [ABC | {"ranks": [2, 3, 1]}], {("c", "a", 1), ("c", "b", 2), ("a", "b", 1)}),
    "ranked with a tie": ("ranked", [ABC | {"ranks": [2, 2, 1]}], {("c", "a", 1), ("c", "b", 1)}),
    "ranked, null for none": ("ranked", [ABC | {"ranks": [2, None, 1]}], {("c", "a", 1)}),
    "ranked objects": (
        "ranked",
        [{"prompt": "Q?", "responses": [{"rank": 1, "response": "a"}, {"rank": 0, "response": "b"}]}],
        {("b", "a", 1)},
    ),
    "scored": ("scored", [ABC | {"scores": [0.5, 3, 0.5]}], {("b", "a", 2.5), ("b", "c", 2.5)}),
    "scored objects": (
        "scored",
        [{"prompt": "Q?", "responses": [{"score": 1.5, "response": said("a")}, {"score": 4, "response": said("b")}]}],
        {("b", "a", 2.5)},
    ),
    "scored conversations": (
        "scored",
        [{"prompt": [USER], "responses": [[USER, *said("a")], said("b")], "scores": [2, 1]}],
        {("a", "b", 1)},
    ),
    "ratings as words": (
        "ratings",
        [
            {"prompt": "Q?", "response_a": "a", "response_b": "b", "preference": word}
            for word in ("A", "tie", " b ", "tie (bothbad)")
        ],
        {("a", "b", None), ("b", "a", None)},
    ),
    "ratings as signed numbers": (
        "ratings",
        [
            {"prompt": f"Q{number}?", "response_a": f"a{number}", "response_b": "b", "rating": number}
            for number in (-3, 0, 2)
        ],
        {("a-3", "b", 3), ("b", "a2", 2)},
    ),
    "pointwise": (
        "pointwise",
        [{"prompt": "Q?", "response": text, "score": score} for text, score in (("a", 1), ("b", 2.5), ("c", 1))],
        {("b", "a", 1.5), ("b", "c", 1.5)},
    ),
    "unpaired preference of TRL": (
        "pointwise",
        [{"prompt": [USER], "completion": said(text), "label": text != "a"} for text in "abc"],
        {("b", "a", 1), ("c", "a", 1)},
    ),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_columns_tell_the_form_and_the_pairs_are_those_made_by_hand(read, write_lines, tmp_path, name, suffix):
    form, rows, expected = FORMS[name]
    path = write_lines("x.jsonl", rows)
    if suffix == "parquet":
        path = tmp_path / "x.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    pairs, report = read(path)
    assert made(pairs) == expected
    assert list(report["forms"].values()) == [form]
    assert all(pair.prompt[-1]["content"].startswith("Q") and pair.split == "train" for pair in pairs)
    counts = report["pairing"]
    assert counts["made"] == report["pairs"] == len(pairs)
    assert counts["possible"] == counts["made"] + counts["ties"] + sum(counts["left_out"].values())
    assert report["rows"] == len(rows)
    assert not report["unread"]


def test_csv_holds_lists_as_json(read, tmp_path):
    def write(name, rows):
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path / name

    scored = write("s.csv", [{"prompt": "Q?", "responses": json.dumps(["a", "b"]), "scores": "[1, 2]"}])
    assert made(read(scored)[0]) == {("b", "a", 1)}
    labels = [{"prompt": "Q?", "completion": text, "label": label} for text, label in (("a", "True"), ("b", "false"))]
    assert made(read(write("l.csv", labels))[0]) == {("a", "b", 1)}
    ratings = [{"prompt": "Q?", "response_a": "a", "response_b": "b", "rating": value} for value in ("-2", "1", "0")]
    assert made(read(write("r.csv", ratings))[0]) == {("a", "b", 2), ("b", "a", 1)}
    with pytest.raises(
        DataError, match=r"s2.csv, row 1: field 'responses' is 'a, b' \(text\); expected a list as JSON"
    ):
        read(write("s2.csv", [{"prompt": "Q?", "responses": "a, b", "scores": "[1, 2]"}]))


def test_public_formats_are_read_by_naming_their_columns(read, write_lines):
    nemo = {
        "context": [USER],
        "completions": [{"rank": 0, "completion": said("a")}, {"rank": 1, "completion": said("b")}],
    }
    options = {"prompt_field": "context", "responses_field": "completions", "response_key": "completion"}
    assert made(read(write_lines("nemo.jsonl", [nemo]), **options)[0]) == {("a", "b", 1)}
    ultrafeedback = {
        "instruction": "Q?",
        "completions": [{"response": "a", "overall_score": 7.5, "model": "x"}, {"response": "b", "overall_score": 8}],
    }
    options = {"prompt_field": "instruction", "responses_field": "completions", "score_key": "overall_score"}
    assert made(read(write_lines("ultra.jsonl", [ultrafeedback]), **options)[0]) == {("b", "a", 0.5)}
    nectar = {
        "prompt": "\n\nHuman: Why?\n\nAssistant: ",
        "answers": [{"answer": "a", "model": "x", "rank": 2.0}, {"answer": "b", "model": "y", "rank": 1.0}],
    }
    pairs, report = read(write_lines("nectar.jsonl", [nectar]), responses_field="answers", response_key="answer")
    assert made(pairs) == {("b", "a", 1)}
    assert "Prompts begin with 'Human:', like transcripts" in report["notes"][0]
    helpsteer2 = [
        {"prompt": "c#", "response": text, "helpfulness": score, "correctness": 4}
        for text, score in (("a", 3), ("b", 1))
    ]
    pairs, report = read(write_lines("help2.jsonl", helpsteer2), score_field="helpfulness")
    assert made(pairs) == {("a", "b", 2)}
    assert list(report["unread"].values()) == [{"correctness": 2}]
    helpsteer = {"context": [USER], "response1": "a", "response2": "b"}
    options = {
        "prompt_field": "context",
        "response_a_field": "response1",
        "response_b_field": "response2",
        "preference_field": "overall_preference",
    }
    ratings = [helpsteer | {"overall_preference": number} for number in (-1, 3)]
    assert made(read(write_lines("help.jsonl", ratings), **options)[0]) == {("a", "b", 1), ("b", "a", 3)}
    words = [helpsteer | {"overall_preference": "response1"}]
    assert made(read(write_lines("words.jsonl", words), **options)[0]) == {("a", "b", None)}


def test_a_system_column_does_not_hide_the_prompt_in_a_conversation(read, write_lines):
    row = {
        "prompt": [USER],
        "responses": [[USER, *said("a")], [USER, *said("b")]],
        "scores": [2, 1],
        "system": "Be kind.",
    }
    (pair,), report = read(write_lines("x.jsonl", [row]))
    assert (pair.chosen, pair.rejected) == ("a", "b")
    assert pair.prompt == [{"role": "system", "content": "Be kind."}, USER]
    assert report["changed"]["the column 'system' became the system turn"]["count"] == 1


def test_a_list_in_order_is_read_best_first_only_if_the_form_is_said(read, write_lines):
    path = write_lines("x.jsonl", [ABC])
    with pytest.raises(DataError, match=r"row 1: no column says which of the responses .*data.options.form: ranked"):
        read(path)
    assert made(read(path, form="ranked")[0]) == {("a", "b", 1), ("a", "c", 2), ("b", "c", 1)}


def test_a_column_ranking_must_be_explained(read, write_lines):
    path = write_lines("x.jsonl", [ABC | {"ranking": [3, 1, 2]}])
    for form in (None, "ranked"):
        with pytest.raises(
            DataError, match=r"'ranking' may mean two things.*rank_field: ranking.*order_field: ranking"
        ):
            read(path, form=form)
    assert made(read(path, rank_field="ranking")[0]) == {("b", "c", 1), ("b", "a", 2), ("c", "a", 1)}
    assert made(read(path, order_field="ranking")[0]) == {("c", "a", 1), ("c", "b", 2), ("a", "b", 1)}
    from_zero = write_lines("y.jsonl", [ABC | {"ranking": [2, 0, 1]}])
    assert made(read(from_zero, order_field="ranking")[0]) == {("c", "a", 1), ("c", "b", 2), ("a", "b", 1)}


@pytest.mark.parametrize("ranks", [[1, 2, 2], [1, 1, 3], [0, 1, 2], [1.5, 1.5, 3], [1, 1, 2]])
def test_usual_ranks_with_ties_are_no_repair(read, write_lines, ranks):
    _, report = read(write_lines("x.jsonl", [ABC | {"ranks": ranks}]))
    assert not report["changed"]


@pytest.mark.parametrize("ranks", [[1, 3, 4], [2, 3, 4], [1, 2, 4], [-1, 0, 1], [0.2, 0.3, 0.4]])
def test_ranks_that_skip_keep_their_order_and_are_counted(read, write_lines, ranks):
    pairs, report = read(write_lines("x.jsonl", [ABC | {"ranks": ranks}]))
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert report["changed"]["ranks that skip a number: their order is used"]["count"] == 1


def test_numbers_that_need_not_be_signed_must_be_explained(read, write_lines):
    rows = [{"prompt": "Q?", "response_a": f"a{value}", "response_b": "b", "label": value} for value in (0, 1, 2)]
    path = write_lines("x.jsonl", rows)
    with pytest.raises(
        DataError, match=r"row 1: field 'label': .* are 0, 1, 2\. Without a number below 0 it is unclear"
    ):
        read(path)
    assert made(read(path, positive_prefers="b")[0]) == {("b", "a1", 1), ("b", "a2", 2)}
    assert made(read(path, positive_prefers="a")[0]) == {("a1", "b", 1), ("a2", "b", 2)}
    lists = {"prefers_a": [0], "prefers_b": [1], "means_tie": [2]}
    assert made(read(path, **lists)[0]) == {("a0", "b", None), ("b", "a1", None)}
    with pytest.raises(
        DataError, match=r"row 3: field 'label' is 2 .*does not name \(prefers_a: \[0\]; prefers_b: \[1\]"
    ):
        read(path, prefers_a=[0], prefers_b=[1])


def test_a_file_that_fits_two_forms_is_refused_and_the_option_decides(read, write_lines):
    path = write_lines("x.jsonl", [ABC | {"ranks": [1, 2, 3], "scores": [1, 2, 3]}])
    with pytest.raises(DataError, match=r"fit the forms ranked and scored\. Set data.options.form to one of them"):
        read(path)
    assert ("a", "b", 1) in made(read(path, form="ranked")[0])
    assert ("b", "a", 1) in made(read(path, form="scored")[0])


def test_chosen_and_rejected_are_pairs_whatever_other_columns_there_are(read, write_lines):
    row = ABC | {"scores": [1, 2, 3], "chosen": "x", "rejected": "y", "response": "z", "score": 1}
    pairs, report = read(write_lines("x.jsonl", [row]))
    assert made(pairs) == {("x", "y", None)}
    assert report["pairing"] is None


def test_options_that_mean_nothing_for_the_form_are_noted(read, write_lines):
    path = write_lines("x.jsonl", [{"prompt": "Q?", "chosen": "a", "rejected": "b"}])
    _, report = read(path, ties="error", pairing="best_and_worst")
    assert report["notes"] == ["Not used for x, whose rows have the form pairs: data.options.pairing, ties."]


AB = {"prompt": "Q?", "response_a": "a", "response_b": "b"}
ONE = {"prompt": "Q?", "response": "a"}
# Bad rows that stop the reading: (row, options, words of the message). Each message names file and row.
REFUSED = [
    (ABC | {"scores": [1, 2]}, {}, "field 'scores' has 2 entries, but field 'responses' has 3 responses"),
    (ABC | {"ranks": [1, 2, 3, 4]}, {}, "field 'ranks' has 4 entries, but field 'responses' has 3 responses"),
    (ABC | {"scores": [1, True, 2]}, {}, "entry 2 is True (true or false); expected a finite number"),
    (ABC | {"scores": [1, 2, "3"]}, {}, "entry 3 is '3' (text); expected a finite number"),
    (ABC | {"scores": 3}, {}, "field 'scores' is 3 (a whole number); expected a list"),
    (ABC | {"scores": {"a": 1}}, {}, "field 'scores' is {'a': 1} (a mapping); expected a list"),
    (ABC | {"scores": [[1], 2, 3]}, {}, "entry 1 is [1] (a list); expected a finite number"),
    ({"prompt": "Q?", "responses": "a", "scores": [1]}, {}, "field 'responses' is 'a' (text); expected a list."),
    (
        {"prompt": "Q?", "responses": [1, 2], "scores": [1, 2]},
        {},
        "holds 1 (a whole number); each response must be text",
    ),
    (ABC | {"order": [0, 1, 1]}, {"order_field": "order"}, "best first, each once, from 0 to 2 or from 1 to 3"),
    (ABC | {"order": [0, 1]}, {"order_field": "order"}, "positions of its 3 responses"),
    (ABC | {"order": ["a", "b", "c"]}, {"order_field": "order"}, "positions of its 3 responses"),
    (ABC | {"order": [False, True, 2]}, {"order_field": "order"}, "positions of its 3 responses"),
    ({"question": "Q?", "responses": ["a", "b"], "scores": [1, 2]}, {}, "data.options.prompt_field. Found: question"),
    ({"question": "Q?", "responses": ["a", "b"], "scores": [1, 2]}, {}, "The column 'question' may be it"),
    (ABC | {"scores": [1, 2, 3]}, {"score_field": "scors"}, "no column says which of the responses"),
    (ABC | {"scores": [1, 2, 3]}, {"score_field": "scors", "form": "scored"}, "Did you mean 'scores'?"),
    (ABC | {"scores": [1, 2, 3]}, {"responses_field": "respones"}, "Rows that are not pairs need 'respones'"),
    ({"prompt": "Q?", "responses": [{"text": "a", "score": 1}]}, {}, "has no key 'response'. Name the key with"),
    ({"prompt": "Q?", "responses": [{"response": "a", "score": 1}, {"response": "b"}]}, {}, "has no key 'score'"),
    ({"prompt": "Q?", "responses": [{"response": "a", "score": "9"}, "b"]}, {}, "has no key 'score'"),
    (
        AB | {"preference": "neither"},
        {},
        "field 'preference' is 'neither' (text); expected one of a, response_a, model_a",
    ),
    (AB | {"preference": True}, {}, "field 'preference' is True (true or false)"),
    (AB | {"preference": [1]}, {}, "field 'preference' is [1] (a list)"),
    (AB | {"preference": "A", "rating": -1}, {}, "'preference' and 'rating' could both be meant. Name one"),
    (AB, {}, "no column says which response is preferred. Name it with data.options.preference_field"),
    (AB | {"response_a": 3, "preference": "A"}, {}, "field 'response_a' is 3 (a whole number)"),
    (ONE | {"score": True}, {}, "field 'score' is True (true or false); expected a finite number"),
    (ONE | {"score": "high"}, {}, "field 'score' is 'high' (text); expected a finite number"),
    (ONE | {"label": 3}, {}, "a label is true or false. If it is a score, set data.options.score_field: label"),
    (ONE | {"label": "good"}, {}, "field 'label' is 'good' (text); a label is true or false"),
    (ONE | {"label": True, "score": 1}, {}, "'score' and 'label' could both be the judgment"),
    (ONE | {"completion": "b", "score": 1}, {}, "'response' and 'completion' could both be meant"),
    (ONE, {}, "no column has the score of 'response'. Name it with data.options.score_field"),
    (ONE | {"score": 1}, {"label_field": "labels"}, "field 'labels' is missing"),
    ({"text": "a"}, {}, "field 'chosen' is missing"),
]


@pytest.mark.parametrize(("row", "options", "words"), REFUSED)
def test_a_bad_row_is_refused_with_file_and_row(read, write_lines, row, options, words):
    path = write_lines("x.jsonl", [row])
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert str(caught.value).startswith(f"{path}, row 1: ")
    assert words in str(caught.value)


# Rows that give no pair: (rows, reason, rows dropped for it).
DROPPED = [
    ([{"prompt": "Q?", "responses": ["a"], "scores": [1]}], "fewer than two responses", 1),
    ([{"prompt": "Q?", "responses": [], "scores": []}], "fewer than two responses", 1),
    ([{"prompt": "Q?", "responses": ["a", "b"], "scores": [1, 1]}], "ties with every other response to its prompt", 1),
    ([{"prompt": "Q?", "responses": ["a", "a"], "scores": [1, 2]}], "one response with different scores", 1),
    (
        [{"prompt": "Q?", "responses": ["a", ""], "scores": [1, 2]}],
        "no two different responses with different scores",
        1,
    ),
    ([{"prompt": "Q?", "responses": None, "scores": [1, 2]}], "field 'responses' is null", 1),
    ([{"prompt": None, "responses": ["a", "b"], "scores": [1, 2]}], "field 'prompt' is null", 1),
    ([{"prompt": " ", "responses": ["a", "b"], "scores": [1, 2]}], "empty prompt", 1),
    ([{"prompt": "Q?", "responses": ["a", "b"], "scores": None}], "field 'scores' is null", 1),
    (
        [{"prompt": [USER, *said("a")], "responses": ["a", "b"], "scores": [1, 2]}],
        "prompt does not end with a user turn",
        1,
    ),
    ([AB | {"preference": None}], "no preference", 1),
    (
        [{"prompt": [USER], "responses": [[*said("x"), USER, *said("a")], said("b")], "scores": [1, 2]}],
        "a response of several turns does not begin with the prompt",
        1,
    ),
    (
        [{"prompt": [USER], "responses": [[USER], said("b")], "scores": [1, 2]}],
        "the answer is not an assistant turn",
        1,
    ),
    ([AB | {"preference": "tie"}], "ties with every other response to its prompt", 1),
    ([AB | {"response_b": "a", "preference": "A"}], "responses A and B are equal", 1),
    ([AB | {"response_a": " ", "preference": "A"}], "no two different responses with different scores", 1),
    ([ONE | {"score": 1}], "no other response to its prompt", 1),
    ([ONE | {"score": 1}, ONE | {"score": 2}], "one response with different scores", 2),
    ([ONE | {"score": 1}, ONE | {"score": 1}], "repeated response", 1),
    ([ONE | {"score": None}, {"prompt": "Q?", "response": "b", "score": 1}], "no score", 1),
    ([ONE | {"response": " ", "score": 1}, ONE | {"score": 2}], "empty response", 1),
    ([ONE | {"response": None, "score": 1}], "field 'response' is null", 1),
    (
        [ONE | {"label": True}, {"prompt": "Q?", "response": "b", "label": True}],
        "ties with every other response to its prompt",
        2,
    ),
]


@pytest.mark.parametrize(("rows", "reason", "count"), DROPPED)
def test_a_row_that_gives_no_pair_is_counted_with_the_reason(read, write_lines, rows, reason, count):
    path = write_lines("x.jsonl", rows)
    pairs, report = read(path)
    assert not pairs
    assert report["dropped"][reason]["count"] == count
    assert report["dropped"][reason]["examples"][0].startswith(f"{path}, row ")
    assert report["rows"] == sum(entry["count"] for entry in report["dropped"].values()) == len(rows)
    counts = report["pairing"]
    assert counts["made"] == 0
    assert counts["possible"] == counts["ties"] + sum(counts["left_out"].values())


def test_nan_in_parquet_is_refused(read, tmp_path):
    pq.write_table(pa.Table.from_pylist([ABC | {"scores": [1.0, float("nan"), 2.0]}]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet, row 1: field 'scores', entry 2 is nan"):
        read(tmp_path / "x.parquet")
    pq.write_table(pa.Table.from_pylist([ONE | {"score": float("inf")}]), tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"y.parquet, row 1: field 'score' is inf"):
        read(tmp_path / "y.parquet")


def test_scores_whose_difference_is_beyond_all_floats_are_refused(read, write_lines):
    with pytest.raises(DataError, match=r"x.jsonl, row 1: the difference of the scores .* is beyond all floats"):
        read(write_lines("x.jsonl", [{"prompt": "Q?", "responses": ["a", "b"], "scores": [1.7e308, -1.7e308]}]))


def test_ties_by_policy(read, write_lines):
    path = write_lines("x.jsonl", [ABC | {"scores": [1, 2, 3]}, ABC | {"prompt": "P?", "scores": [1, 2, 2]}])
    pairs, report = read(path)
    assert (len(pairs), report["pairing"]["ties"]) == (5, 1)
    assert (report["pairing"]["prompts"], report["pairing"]["responses"]) == (2, 6)
    with pytest.raises(DataError, match=r"x.jsonl, row 2: two responses to one prompt tie"):
        read(path, ties="error")
    with pytest.raises(ConfigError, match=r'data.options.ties: is "half"; allowed: drop, error'):
        read(path, ties="half")


def test_the_pairing_options_reach_the_rule(read, write_lines):
    path = write_lines("x.jsonl", [ABC | {"scores": [1, 2, 3]}])
    assert made(read(path, pairing="best_and_worst")[0]) == {("c", "a", 2)}
    pairs, report = read(path, pairs_per_prompt=1)
    assert len(pairs) == 1
    assert report["pairing"]["left_out"] == {"left out by pairs_per_prompt": 2}


@pytest.mark.parametrize("option", ["system_field", "split_field"])
def test_a_named_column_that_no_row_has_is_refused(read, write_lines, option):
    path = write_lines("x.jsonl", [ABC | {"scores": [1, 2, 3]}])
    with pytest.raises(DataError, match=rf"x.jsonl: data.options.{option} is 'scored', .*Did you mean 'scores'"):
        read(path, **{option: "scored"})


def test_rows_of_one_prompt_are_compared_row_by_row_and_count_as_one_prompt(read, write_lines):
    rows = [ABC | {"scores": [1, 2, 3]}, {"prompt": "Q?", "responses": ["d", "e"], "scores": [10, 20]}]
    pairs, report = read(write_lines("x.jsonl", rows))
    assert made(pairs) == {("c", "b", 1), ("c", "a", 2), ("b", "a", 1), ("e", "d", 10)}
    assert report["pairing"] == {
        "prompts": 1, "responses": 5, "possible": 4, "made": 4, "ties": 0, "left_out": {},
    }  # fmt: skip


def test_options_that_exclude_each_other_are_refused(read, write_lines):
    path = write_lines("x.jsonl", [ABC | {"ranks": [1, 2, 3]}])
    with pytest.raises(ConfigError, match="rank_field or order_field, not both"):
        read(path, rank_field="ranks", order_field="order")
    with pytest.raises(ConfigError, match="score_field or label_field, not both"):
        read(write_lines("y.jsonl", [ONE | {"score": 1}]), score_field="score", label_field="label")


def test_pointwise_rows_are_grouped_by_prompt_and_split_and_not_by_place(read, write_lines):
    rows = [
        {"prompt": "Q?", "response": "a", "score": 1, "split": "train"},
        {"prompt": "P?", "response": "c", "score": 1, "split": "train"},
        {"prompt": "Q?", "response": "b", "score": 2, "split": "train"},
        {"prompt": "Q?", "response": "c", "score": 3, "split": "test"},
        {"prompt": "Q?", "response": "d", "score": 4, "split": "test"},
    ]
    pairs, report = read(write_lines("x.jsonl", rows))
    assert {(pair.chosen, pair.rejected, pair.split) for pair in pairs} == {("b", "a", "train"), ("d", "c", "test")}
    assert report["dropped"]["no other response to its prompt"]["examples"][0].endswith("x.jsonl, row 2")


def test_prompts_that_differ_only_in_white_space_are_not_mixed_but_said(read, write_lines):
    rows = [
        {"prompt": "Name a tree.", "response": "Oak", "score": 1},
        {"prompt": "Name a  tree. ", "response": "Elm", "score": 2},
    ]
    pairs, report = read(write_lines("x.jsonl", rows))
    assert not pairs
    (note,) = report["notes"]
    assert note.startswith("Prompts that differ from another one only in white space, case or Unicode form: 1.")
    assert "row 2, and row 1" in note


@pytest.mark.parametrize("options", [{}, {"pairing": "best_and_worst"}, {"pairs_per_prompt": 2}])
def test_the_order_of_rows_does_not_change_the_pairs(read, write_lines, options):
    draw = random.Random(0)
    pointwise = [
        {"prompt": f"Q{draw.randrange(5)}?", "response": f"r{draw.randrange(12)}", "score": draw.randrange(4)}
        for _ in range(60)
    ]
    scored = [
        {"prompt": f"Q{number}?", "responses": list("abcde"), "scores": [draw.randrange(4) for _ in range(5)]}
        for number in range(10)
    ]
    for rows in (pointwise, scored):
        before, first = read(write_lines("x.jsonl", rows), **options)
        draw.shuffle(rows)
        after, second = read(write_lines("x.jsonl", rows), **options)
        assert {pair.pair_id for pair in before} == {pair.pair_id for pair in after}
        assert len(before) == len(after) >= 5
        assert first["pairing"] == second["pairing"]
        counts = {reason: entry["count"] for reason, entry in first["dropped"].items()}
        assert counts == {reason: entry["count"] for reason, entry in second["dropped"].items()}


def test_pairs_carry_scores_ids_and_their_row(read, write_lines):
    rows = [ABC | {"scores": [1, 2, 2], "id": "x1"}, ABC | {"prompt": "P?", "ranks": [1, 2, 2]}]
    pairs, _ = read(write_lines("x.jsonl", rows[:1]))
    assert [pair.meta for pair in pairs] == [{"id": "x1", "chosen_score": 2.0, "rejected_score": 1.0}] * 2
    assert [(pair.row, pair.source) for pair in pairs] == [(1, "x/x.jsonl")] * 2
    pairs, _ = read(write_lines("y.jsonl", rows[1:]))
    assert [pair.meta for pair in pairs] == [{"chosen_rank": 1.0, "rejected_rank": 2.0}] * 2


def test_a_card_of_the_hub_may_use_the_reader(write_lines, tmp_path):
    from dataclasses import replace

    write_lines("train.jsonl", [ABC | {"scores": [1, 2, 3]}])
    card, root = card_for(str(tmp_path))
    pairs, options, _ = read_dataset(replace(card, options={"pairing": "best_and_worst"}), root, {})
    assert options["pairing"] == "best_and_worst"
    assert made(pairs) == {("c", "a", 2)}


def test_every_option_has_a_default_and_a_description_and_belongs_to_a_form():
    of_forms = {name for options in preference_rows.OPTIONS_OF_FORM.values() for name in options}
    assert set(preference_rows.OPTIONS) == {"form", *of_forms}
    for fragment in preference_rows.OPTIONS.values():
        assert {"default", "description"} <= fragment.keys()


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 5),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["", " ", "a", "b", "A", "B", "tie", "1", "train", "user", "Q?"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["response", "score", "rank", "role", "content"]), inner, max_size=3),
    ),
    max_leaves=6,
)
COLUMNS = {
    "ranked": ["prompt", "responses", "ranks"],
    "scored": ["prompt", "responses", "scores"],
    "ratings": ["prompt", "response_a", "response_b", "preference"],
    "pointwise": ["prompt", "response", "score"],
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(sorted(COLUMNS)), data=st.data())
def test_any_values_are_refused_with_file_and_row_or_accounted_for(tmp_path, form, data):
    good = {
        "prompt": "Q?", "responses": ["a", "b"], "ranks": [1, 2], "scores": [1, 2], "response_a": "a",
        "response_b": "b", "preference": "A", "response": "a", "score": 1,
    }  # fmt: skip
    rows = [{name: good[name] for name in COLUMNS[form]} for _ in range(data.draw(st.integers(1, 4)))]
    for row in rows:
        for name in data.draw(st.sets(st.sampled_from([*COLUMNS[form], "id", "split", "system"]), max_size=2)):
            row[name] = data.draw(VALUES)
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = ReadReport()
    refusal = ""
    try:
        pairs, _, _ = read_dataset(*card_for(str(path)), {}, report)
    except DataError as error:
        refusal = str(error)
    if refusal:
        form_is_unclear = refusal.startswith(f"{path}: its columns fit the forms ranked and scored")
        assert form_is_unclear or re.match(rf"{re.escape(str(path))}, row \d+: ", refusal)
        return
    counts = report.pairing
    assert report.forms == {str(tmp_path / "x"): form}
    assert counts.made == len(pairs)
    assert counts.possible == counts.made + counts.ties + sum(counts.left_out.values())
    dropped = sum(entry["count"] for entry in report.dropped.values())
    if form == "pointwise":
        texts = {(pair.split, str(pair.prompt), text) for pair in pairs for text in (pair.chosen, pair.rejected)}
        assert len(texts) == len(rows) - dropped
    else:
        assert len({pair.row for pair in pairs}) == len(rows) - dropped
    for pair in pairs:
        assert pair.chosen.strip()
        assert pair.rejected.strip()
        assert pair.chosen != pair.rejected


def test_the_example_rows_of_the_page_have_the_form_that_it_says(read, write_lines):
    page = (Path(__file__).resolve().parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
    examples = re.findall(
        r"^\| (\w+)[^|]* \| `(\{.*?\})` \|", page.partition("## Rows that are not pairs")[2], re.MULTILINE
    )
    assert {form for form, _ in examples} == set(preference_rows.FORMS)
    for form, row in examples:
        path = write_lines("x.jsonl", [row])
        _, report = read(path)
        assert list(report["forms"].values()) == [form]
        assert set(report["dropped"]) <= {"no other response to its prompt"}


def test_a_judged_row_with_tools_makes_pairs_with_tools(read, write_lines):
    tools = [{"type": "function", "function": {"name": "tree", "parameters": {}}}]
    row = {"prompt": "Name a tree.", "responses": ["Oak.", "Rock."], "scores": [2, 1], "tools": tools}
    pairs, _ = read(write_lines("x.jsonl", [row]))
    assert [message["role"] for message in pairs[0].prompt] == ["tools", "user"]
