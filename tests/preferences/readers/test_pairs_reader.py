import csv
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_methods.errors import ConfigError, DataError
from rm_methods.preferences.readers.pairs import split_implicit_prompt

USER = {"role": "user", "content": "What color is the sky?"}
BLUE, GREEN = ({"role": "assistant", "content": f"It is {color}."} for color in ("blue", "green"))
FORMS = {
    "explicit text": {"prompt": "What color is the sky?", "chosen": "It is blue.", "rejected": "It is green."},
    "explicit conversation": {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},
    "implicit conversation": {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "text prompt repeated in conversations": {
        "prompt": USER["content"],
        "chosen": [USER, BLUE],
        "rejected": [USER, GREEN],
    },
    "text prompt, message answers": {"prompt": USER["content"], "chosen": [BLUE], "rejected": [GREEN]},
    "prompt messages repeated in conversations": {"prompt": [USER], "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    "prompt messages, text answers": {"prompt": [USER], "chosen": "It is blue.", "rejected": "It is green."},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(read, write_lines, form):
    (pair,), report = read(write_lines("x.jsonl", [FORMS[form]]))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], "It is blue.", "It is green.")
    assert (pair.split, pair.source, pair.strength) == ("train", "x/x.jsonl", None)
    assert report["rows"] == report["pairs"] == 1
    assert not report["dropped"]


def test_every_form_survives_parquet(read, tmp_path):
    for number, row in enumerate(FORMS.values()):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
        (pair,), _ = read(path)
        assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], "It is blue.", "It is green.")


def test_implicit_text_prompts_follow_trls_documented_example(read, write_lines):
    (pair,), report = read(write_lines("x.jsonl", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}]))
    assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == ("The sky is", " blue.", " green.")
    assert any("Implicit prompts" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is"),  # TRL: "The sky is bl"
        ("Why?\n\nYes.", "Why?\n\nNo.", "Why?"),
        ("Why? Yes.", "Why? Yes. Surely.", "Why?"),
        ("one", "two", ""),
        ("oneword", "onewordmore", ""),
    ],
)
def test_an_implicit_prompt_ends_before_white_space(chosen, rejected, prompt):
    assert split_implicit_prompt(chosen, rejected)[0] == prompt


@given(st.text("ab \n"), st.text("ab \n"), st.text("ab \n"))
def test_an_implicit_prompt_and_its_answers_are_the_texts_again(prompt, first, second):
    found, chosen, rejected = split_implicit_prompt(prompt + first, prompt + second)
    assert (found + chosen, found + rejected) == (prompt + first, prompt + second)
    assert not found or not found[-1].isspace()


IMAGE = {"type": "image", "url": "sky.png"}
SYSTEM = {"role": "system", "content": "Be kind."}
PROMPTS_DIFFER = "prompts differ: the conversation does not begin with the column"
AS_NUMPY_PRINTS = "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]"
UNPARSED = "conversation stored as text that cannot be parsed"
SYSTEM_TURNS_DIFFER = "system turns differ: the conversation's and the column 'system'"


def conversation(*roles):
    return [{"role": role, "content": f"turn {number}"} for number, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q?", "chosen": "a", "rejected": " \n"}, "empty response"),
        ({"prompt": "Q?", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
        ({"chosen": "Q? a", "rejected": "Q? a"}, "chosen equals rejected"),
        ({"chosen": [USER, BLUE], "rejected": [USER, BLUE]}, "chosen equals rejected"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"chosen": "yes", "rejected": "no"}, "empty prompt"),
        ({"prompt": "Q?", "chosen": "a\ud800", "rejected": "b"}, "text is not Unicode"),
        (
            {"prompt": "Q?", "chosen": [GREEN, USER, BLUE], "rejected": [USER, GREEN]},
            "prompts of chosen and rejected differ",
        ),
        (
            {"chosen": [USER, GREEN, USER, BLUE], "rejected": [USER, BLUE, USER, BLUE]},
            "prompts of chosen and rejected differ",
        ),
        ({"chosen": [USER], "rejected": [USER, GREEN]}, "empty response"),
        ({"prompt": conversation("user", "user"), "chosen": "a", "rejected": "b"}, "turns do not alternate"),
        ({"prompt": conversation("user", "system", "user"), "chosen": "a", "rejected": "b"}, "turns do not alternate"),
        ({"prompt": conversation("assistant", "user"), "chosen": "a", "rejected": "b"}, "turns do not alternate"),
        (
            {"prompt": conversation("user", "assistant"), "chosen": "a", "rejected": "b"},
            "prompt does not end with a user turn",
        ),
        ({"prompt": conversation("system"), "chosen": "a", "rejected": "b"}, "prompt does not end with a user turn"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [GREEN]}, "the answer is not an assistant turn"),
        ({"prompt": conversation("judge", "user"), "chosen": "a", "rejected": "b"}, "unsupported role"),
        ({"prompt": "Q?", "chosen": None, "rejected": "b"}, "field 'chosen' is null"),
        (
            {"prompt": None, "chosen": "The sky is blue.", "rejected": "The sky is red."},
            "no prompt, in a file with prompts",
        ),
        ({"chosen": "The sky is blue.", "rejected": "The sky is red."}, "no prompt, in a file with prompts"),
        ({"prompt": [USER], "chosen": [{**BLUE, "content": None}], "rejected": [GREEN]}, "message without text"),
        ({"prompt": [USER], "chosen": [{"role": "assistant"}], "rejected": [GREEN]}, "message without text"),
        ({"prompt": [USER], "chosen": [{**BLUE, "content": [IMAGE]}], "rejected": [GREEN]}, "content that is not text"),
        ({"prompt": "Be kind. " + USER["content"], "chosen": [USER, BLUE], "rejected": [USER, GREEN]}, PROMPTS_DIFFER),
        ({"prompt": "?", "chosen": [USER, GREEN, USER, BLUE], "rejected": [USER, GREEN, USER, GREEN]}, PROMPTS_DIFFER),
        ({"prompt": "Q?", "chosen": "[{'role': 'assistant', 'content': 'cut", "rejected": "b"}, UNPARSED),
        (
            {
                "prompt": "Q?",
                "chosen": "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]",
                "rejected": "b",
            },
            UNPARSED,
        ),
        ({"prompt": "Q?", "chosen": "a", "rejected": "b", "id": "\udc00"}, "text is not Unicode"),
        ({"prompt": "Q?", "chosen": "a", "rejected": "b", "split": "x\ud800"}, "text is not Unicode"),
        ({"prompt": "Q?", "chosen": "a", "rejected": "b", "\ud800": 1}, "text is not Unicode"),
        ({"prompt": [SYSTEM, USER], "chosen": "a", "rejected": "b", "system": "Be brief."}, SYSTEM_TURNS_DIFFER),
    ],
)
def test_a_row_that_cannot_be_a_pair_is_dropped_and_counted(read, tmp_path, row, reason):
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in [FORMS["explicit text"], row])
    )  # escapes, so that half a surrogate is written
    pairs, report = read(path)
    assert len(pairs) == 1
    assert {name: entry["count"] for name, entry in report["dropped"].items()} == {reason: 1}
    assert report["dropped"][reason]["examples"][0].startswith(f"{path}, row 2")


def test_a_system_prompt_and_earlier_turns_are_kept(read, write_lines):
    prompt = conversation("system", "user", "assistant", "user")
    (pair,), _ = read(write_lines("x.jsonl", [{"chosen": [*prompt, BLUE], "rejected": [*prompt, GREEN]}]))
    assert pair.prompt == prompt


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": "Q?", "chosen": "a"},
            r"field 'rejected' is missing\. If another column has this answer, name it with "
            r"data\.options\.rejected_field\. Found: chosen, prompt",
        ),
        (
            {"prompt": "Q?", "preferred": "a", "rejected": "b"},
            r"field 'chosen' is missing\. .* data\.options\.chosen_field\. Found: preferred, prompt, rejected",
        ),
        ({"prompt": "Q?", "chosen": 3.5, "rejected": "b"}, r"field 'chosen' is 3.5 \(a number\)"),
        ({"prompt": 7, "chosen": "a", "rejected": "b"}, "field 'prompt' is 7"),
        ({"prompt": "Q?", "chosen": [BLUE], "rejected": "b"}, "both must have one form"),
        (
            {"chosen": [USER, {"content": "x"}], "rejected": [USER, GREEN]},
            "message 2 is .*; expected an object with role and content",
        ),
        ({"chosen": [USER, "x"], "rejected": [USER, GREEN]}, "message 2 is 'x'"),
        (
            {"chosen": [{"role": "user", "content": 5}, BLUE], "rejected": [USER, GREEN]},
            "role and content must be text",
        ),
        ({**FORMS["explicit text"], "id": 2.5}, "id 2.5 is not text or a whole number"),
        ({**FORMS["explicit text"], "split": 2}, "field 'split' is 2; expected the name of a split"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named_with_file_and_row(read, write_lines, row, expected):
    path = write_lines("x.jsonl", [FORMS["explicit text"], row])
    with pytest.raises(DataError, match=rf"x\.jsonl, row 2: .*{expected}"):
        read(path)


def test_an_id_must_not_occur_twice(read, write_lines):
    path = write_lines(
        "x.jsonl", [{**FORMS["explicit text"], "id": "a"}, {"prompt": "?", "chosen": "b", "rejected": "c", "id": "a"}]
    )
    with pytest.raises(DataError, match=r"row 2: id 'a' occurs twice, first in .*x\.jsonl, row 1"):
        read(path)


def test_strength_comes_from_a_column_or_from_two_scores(read, write_lines):
    path = write_lines("x.jsonl", [{**FORMS["explicit text"], "sure": 2, "good": 8.5, "bad": 6}])
    assert read(path, strength_field="sure")[0][0].strength == 2.0
    assert read(path, score_fields=["good", "bad"])[0][0].strength == 2.5
    assert (
        read(write_lines("y.jsonl", [{**FORMS["explicit text"], "sure": None}]), strength_field="sure")[0][0].strength
        is None
    )


def test_strength_must_be_a_finite_number(read, tmp_path, write_lines):
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.Table.from_pylist([{**FORMS["explicit text"], "sure": 1.0}, {**FORMS["explicit text"], "sure": math.nan}]),
        path,
    )
    with pytest.raises(DataError, match=r"row 2: field 'sure' is nan \(a number\); expected a finite number"):
        read(path, strength_field="sure")
    for value in ('"high"', "true", "[1]"):
        line = f'{{"prompt": "Q?", "chosen": "a", "rejected": "b", "sure": {value}}}'
        with pytest.raises(DataError, match="row 1: field 'sure' is"):
            read(write_lines("y.jsonl", [line]), strength_field="sure")
    with pytest.raises(DataError, match="field 'margin' is missing"):
        read(write_lines("z.jsonl", [FORMS["explicit text"]]), strength_field="margin")


def test_csv_cells_are_converted_where_a_number_is_asked_for(read, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("prompt,chosen,rejected,sure,split,id\nQ?,a,b,0.5,dev,1\nR?,a,b,,,2\n")
    pairs, _ = read(path, strength_field="sure")
    assert [(pair.strength, pair.split) for pair in pairs] == [(0.5, "validation"), (None, "train")]


def test_a_file_may_name_splits_in_a_column_and_a_folder_by_file_name(read, write_lines, tmp_path):
    rows = [
        {"prompt": f"Q{split}?", "chosen": "a", "rejected": "b", "split": split}
        for split in ("train", "val", "test", "hard")
    ]
    assert [pair.split for pair in read(write_lines("one.jsonl", rows))[0]] == ["train", "validation", "test", "hard"]
    for name in (
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
        "data/valid.jsonl.gz",
        "notes.jsonl",
    ):
        write_lines(f"many/{name}", [{"prompt": name, "chosen": "a", "rejected": "b", "split": "ignored"}])
    pairs, report = read(tmp_path / "many")
    assert [pair.split for pair in pairs] == ["train", "train", "validation"]
    assert len(report["files"]) == 3
    assert any("Not read" in note and note.endswith(": notes.jsonl.") for note in report["notes"])


def test_options_are_checked_with_the_nearest_name(read, write_lines):
    path = write_lines("x.jsonl", [FORMS["explicit text"]])
    with pytest.raises(ConfigError) as caught:
        read(path, strenght_field="x", chosen_field=3, score_fields=["one"])
    assert len(caught.value.problems) == 3
    assert "data.options.strenght_field: unknown key. Did you mean 'strength_field'?" in str(caught.value)
    assert "data.options.chosen_field: is 3; expected text" in str(caught.value)
    with pytest.raises(ConfigError, match="not both"):
        read(path, strength_field="x", score_fields=["a", "b"])


def test_other_column_names_can_be_given(read, write_lines):
    path = write_lines("x.jsonl", [{"question": "Q?", "better": "a", "worse": "b"}])
    (pair,), _ = read(path, prompt_field="question", chosen_field="better", rejected_field="worse")
    assert (pair.prompt[0]["content"], pair.chosen, pair.rejected) == ("Q?", "a", "b")


def test_transcripts_of_hh_rlhf_are_recognized(read, write_lines):
    path = write_lines(
        "x.jsonl", [{"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi?\n\nAssistant: No"}]
    )
    assert any("hh_rlhf" in note for note in read(path)[1]["notes"])


def as_json(row):
    return {name: json.dumps(value) for name, value in row.items()}


def as_python(row):
    return {name: repr(value) for name, value in row.items()}


def wrapped(row):
    return {name: json.dumps({"messages": value}) for name, value in row.items()}


@pytest.mark.parametrize("stored", [as_json, as_python, wrapped])
@pytest.mark.parametrize(
    "form", ["explicit conversation", "implicit conversation", "prompt messages repeated in conversations"]
)
def test_a_conversation_stored_as_text_is_parsed_and_said(read, write_lines, stored, form):
    row = stored(FORMS[form])
    (pair,), report = read(write_lines("x.jsonl", [row]))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], "It is blue.", "It is green.")
    assert report["changed"]["conversation stored as text: parsed (a column each)"]["count"] == len(row)


def test_a_conversation_stored_as_text_in_csv_is_parsed(read, tmp_path):
    path = tmp_path / "x.csv"
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerow(as_python(FORMS["explicit conversation"]))
    (pair,), _ = read(path)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], "It is blue.", "It is green.")


@pytest.mark.parametrize(
    "answer",
    [
        '{"answer": 42}',
        "[1, 2]",
        '[{"name": "Ada"}]',
        "{'role': 'queen'}",
        "[{ role: content }]",
        '{"role": "x", "content": ',
    ],
)
def test_an_answer_that_only_looks_like_a_conversation_stays_text(read, write_lines, answer):
    (pair,), _ = read(write_lines("x.jsonl", [{"prompt": "Q?", "chosen": answer, "rejected": "b"}]))
    assert pair.chosen == answer


def test_a_content_of_one_text_part_is_its_text(read, write_lines):
    parts = [{"type": "text", "text": BLUE["content"]}]
    (pair,), _ = read(
        write_lines("x.jsonl", [{"prompt": [USER], "chosen": [{**BLUE, "content": parts}], "rejected": [GREEN]}])
    )
    assert pair.chosen == "It is blue."


@pytest.mark.parametrize("option", ["prompt_field", "id_field", "split_field", "system_field"])
def test_a_column_that_is_named_must_be_there(read, write_lines, option):
    path = write_lines("x.jsonl", [{**FORMS["explicit text"], "fold": "test"}])
    expected = (
        rf"x\.jsonl: data\.options\.{option} is 'folds', but no row has that column\. "
        r"Did you mean 'fold'\? Found: chosen, fold,"
    )
    with pytest.raises(DataError, match=expected):
        read(path, **{option: "folds"})


def test_a_named_column_may_be_absent_or_empty_in_some_rows(read, write_lines):
    path = write_lines(
        "x.jsonl", [{**FORMS["explicit text"], "fold": None}, {"prompt": "Q?", "chosen": "a", "rejected": "b"}]
    )
    pairs, report = read(path, split_field="fold")
    assert [pair.split for pair in pairs] == ["train", "train"]
    assert report["changed"]["no split given: taken as train"]["count"] == 1
    path = write_lines("y.jsonl", [{"q": None, "chosen": "The a", "rejected": "The b"}])
    pairs, report = read(path, prompt_field="q")
    assert not pairs
    assert report["dropped"]["no prompt, in a file with prompts"]["count"] == 1


def test_splits_are_not_asked_for_where_files_name_them(read, write_lines, tmp_path):
    write_lines("d/train.jsonl", [FORMS["explicit text"]])
    (pair,), _ = read(tmp_path / "d", split_field="fold")
    assert pair.split == "train"


@pytest.mark.parametrize("column", ["question", "instruction", "query", "Input", "prompts", "promt", "messages"])
def test_texts_without_a_prompt_beside_a_column_that_may_hold_it_are_refused(read, write_lines, column):
    rows = [
        {"chosen": "The oak is big.", "rejected": "The rock is big."},
        {column: "Name a tree.", "chosen": "Oak.", "rejected": "Rock."},
    ]
    path = write_lines("x.jsonl", rows)
    with pytest.raises(
        DataError, match=rf"x\.jsonl: no row has a prompt .*set data\.options\.prompt_field: {column}\."
    ):
        read(path)
    pairs, report = read(path, prompt_field=None)
    assert [pair.prompt[0]["content"] for pair in pairs] == ["The"]
    assert report["unread"] == {str(path): {column: 1}}


def test_columns_and_keys_of_messages_that_are_not_read_are_counted(read, write_lines):
    thought = {"reasoning_content": "Rayleigh", "name": "", "weight": None}
    rows = [
        {
            "prompt": [USER],
            "chosen": [{**BLUE, **thought}],
            "rejected": [{**GREEN, **thought}],
            "shade": ["f"],
            "note": "",
        },
        {
            "prompt": [USER],
            "chosen": [BLUE],
            "rejected": [{**GREEN, "content": "Red.", **thought}],
            "shade": None,
            "id": 3,
        },
        {"prompt": "Q?", "chosen": "", "rejected": "b", "shade": ["f"]},
    ]
    path = write_lines("x.jsonl", rows)
    _, report = read(path)
    assert report["unread"] == {
        str(path): {"shade": 2, "chosen[].reasoning_content": 1, "rejected[].reasoning_content": 2}
    }
    assert read(write_lines("y.jsonl", [FORMS["explicit text"]]))[1]["unread"] == {}


def test_a_system_column_is_the_system_turn(read, write_lines):
    rows = [
        {**FORMS["explicit text"], "system": "Be kind."},
        {**FORMS["implicit conversation"], "system": " "},
        {"prompt": [SYSTEM, USER], "chosen": "a", "rejected": "b", "system": "Be kind."},
        {**FORMS["explicit conversation"], "system": None},
    ]
    path = write_lines("x.jsonl", rows)
    pairs, report = read(path)
    assert [pair.prompt for pair in pairs] == [[SYSTEM, USER], [USER], [SYSTEM, USER], [USER]]
    assert report["changed"]["the column 'system' became the system turn"]["count"] == 1
    assert [pair.prompt for pair in read(path, system_field=None)[0]] == [[USER], [USER], [SYSTEM, USER], [USER]]
    with pytest.raises(
        DataError, match=r"row 1: field 'system' is 7 \(a whole number\).*data\.options\.system_field: null"
    ):
        read(write_lines("y.jsonl", [{**FORMS["explicit text"], "system": 7}]))


@pytest.mark.parametrize("text", ["turn 1", " turn\n3 ", "turn 0 turn 1 turn 2 turn 3"])
def test_a_prompt_text_may_be_the_first_or_the_last_user_turn_or_all_turns(read, write_lines, text):
    prompt = conversation("system", "user", "assistant", "user")
    (pair,), _ = read(
        write_lines("x.jsonl", [{"prompt": text, "chosen": [*prompt, BLUE], "rejected": [*prompt, GREEN]}])
    )
    assert pair.prompt == prompt


def test_splits_are_recognized_whatever_their_case_and_others_are_noted(read, write_lines):
    names = ("Train", "train ", "TRAINING", "Dev", " test", "Hard", "")
    rows = [{"prompt": f"Q{name}?", "chosen": "a", "rejected": "b", "split": name} for name in names]
    pairs, report = read(write_lines("x.jsonl", rows))
    assert [pair.split for pair in pairs] == ["train", "train", "train", "validation", "test", "Hard", "train"]
    assert any("nothing is trained on" in note and note.endswith(": Hard.") for note in report["notes"])


def test_an_id_or_split_column_can_be_left_unread(read, write_lines):
    rows = [
        {**FORMS["explicit text"], "id": 1, "split": "x"},
        {"prompt": "Q?", "chosen": "a", "rejected": "b", "id": 1, "split": "y"},
    ]
    pairs, _ = read(write_lines("x.jsonl", rows), id_field=None, split_field=None)
    assert [(pair.split, pair.meta) for pair in pairs] == [("train", {}), ("train", {})]


def test_a_strength_beyond_all_floats_is_refused(read, write_lines):
    path = write_lines("x.jsonl", [{**FORMS["explicit text"], "good": 1.7e308, "bad": -1.7e308}])
    with pytest.raises(DataError, match="row 1: the difference of the scores"):
        read(path, score_fields=["good", "bad"])
