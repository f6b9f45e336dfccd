"""Tools, tool calls, results of tools and contents in parts in rows of preference data."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.files import content_hash
from rm_methods.preferences.pair import read_pairs, write_pairs
from rm_methods.preferences.splits import drop_duplicates, longest_text
from rm_methods.preferences.tool_calls import calls_of, text_and_records

USER = {"role": "user", "content": "Weather in Graz?"}
NO = {"role": "assistant", "content": "I cannot know."}
YES = {"role": "assistant", "content": "It is 12 C."}
SCHEMA = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
FUNCTION = {"name": "weather", "arguments": {"city": "Graz"}}
STORED_CALL = '\x1e{"name":"weather","arguments":{"city":"Graz"}}\n'
IMAGE = {"type": "image", "url": "sky.png"}


def turn(*calls, **keys):
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls], **keys}


CALL = turn(FUNCTION)
RESULT = {"role": "tool", "name": "weather", "content": "12 C"}


def row(chosen=CALL, prompt=(USER,), rejected=NO, **columns):
    return {"prompt": list(prompt), "chosen": [chosen], "rejected": [rejected], **columns}


def as_older_format(function):
    return {
        "role": "assistant",
        "content": None,
        "function_call": function | {"arguments": json.dumps(FUNCTION["arguments"])},
    }


@pytest.mark.parametrize(
    "chosen",
    [
        CALL,
        CALL | {"content": None},
        CALL | {"content": ""},
        CALL | {"content": []},
        {"role": "assistant", "tool_calls": [FUNCTION]},
        {"role": "assistant", "tool_calls": json.dumps([FUNCTION])},
        turn(FUNCTION | {"arguments": '{"city": "Graz"}'}),
        turn(FUNCTION | {"arguments": {"city": "Graz", "unit": None}}),
        as_older_format(FUNCTION),
    ],
    ids=[
        "missing",
        "null",
        "empty",
        "no parts",
        "bare",
        "calls as text",
        "arguments as text",
        "nulls",
        "function_call",
    ],
)
def test_every_form_of_a_call_is_stored_alike(read, write_lines, chosen):
    (pair,), report = read(write_lines("x.jsonl", [row(chosen)]))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], STORED_CALL, NO["content"])
    assert not report["dropped"]
    assert not report["unread"]


def test_a_conversation_in_text_may_be_nothing_but_a_call(read, write_lines):
    stored = {name: json.dumps(value) for name, value in row().items()}
    assert read(write_lines("x.jsonl", [stored]))[0][0].chosen == STORED_CALL


def test_text_calls_ids_and_results_are_kept_in_their_order(read, write_lines):
    calls = {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {"z": 1, "a": [None, "ü"]}}},
            {"id": "b", "type": "function", "function": {"name": "time", "arguments": {}}},
        ],
    }
    results = [{"role": "tool", "tool_call_id": "b", "content": "noon"}, {"role": "tool", "content": ""}]
    (pair,), report = read(write_lines("x.jsonl", [row(YES, [USER, calls, *results])]))
    assert not report["changed"]
    stored = pair.prompt[1]
    assert text_and_records(stored)[0] == "I look."
    assert calls_of(stored) == [
        {"name": "weather", "arguments": {"z": 1, "a": [None, "ü"]}, "id": "a"},
        {"name": "time", "arguments": {}, "id": "b"},
    ]
    assert list(calls_of(stored)[0]["arguments"]) == ["z", "a"]
    assert text_and_records(pair.prompt[2]) == ("noon", [{"tool_call_id": "b"}])
    assert pair.prompt[3] == {"role": "tool", "content": ""}


@pytest.mark.parametrize("tools", [[SCHEMA], json.dumps([SCHEMA]), [json.dumps(SCHEMA)]])
def test_tools_become_the_first_message(read, write_lines, tools):
    (pair,), report = read(write_lines("x.jsonl", [row(tools=tools, system="Be brief.")]))
    assert [message["role"] for message in pair.prompt] == ["tools", "system", "user"]
    assert json.loads(pair.prompt[0]["content"]) == [SCHEMA]
    assert not report["unread"]


@pytest.mark.parametrize("tools", [None, [], "", " ", "[]"])
def test_no_tools_is_no_message(read, write_lines, tools):
    (pair,), _ = read(write_lines("x.jsonl", [row(tools=tools)]))
    assert pair.prompt == [USER]


def test_another_column_has_the_tools_or_none(read, write_lines):
    path = write_lines("x.jsonl", [row(functions=[SCHEMA], tools=["hammer"])])
    assert read(path, tools_field="functions")[0][0].prompt[0]["role"] == "tools"
    assert read(path, tools_field=None)[0][0].prompt == [USER]


def test_arrow_fills_missing_keys_with_null_and_they_are_left_out(read, tmp_path):
    other = turn({"name": "time", "arguments": {"zone": "CET"}})
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([row(tools=[SCHEMA]), row(other, tools=[SCHEMA])]), path)
    assert pq.read_table(path)["chosen"][0].as_py()[0]["tool_calls"][0]["function"]["arguments"]["zone"] is None
    pairs, report = read(path)
    assert pairs[0].chosen == STORED_CALL
    assert pairs[1].chosen == '\x1e{"name":"time","arguments":{"zone":"CET"}}\n'
    assert report["changed"]["keys with null left out of calls or tools (a column each)"]["count"] == 2


def test_an_older_result_is_a_tool_turn(read, write_lines):
    result = {"role": "function", "name": "weather", "content": "12 C"}
    (pair,), report = read(write_lines("x.jsonl", [row(YES, [USER, as_older_format(FUNCTION), result])]))
    assert [message["role"] for message in pair.prompt] == ["user", "assistant", "tool"]
    assert set(report["changed"]) == {
        "'function_call' became a tool call (a column each)",
        "the role 'function' became 'tool' (a column each)",
    }


def test_keys_that_are_not_read_are_counted(read, write_lines):
    call = {"index": 0, "type": "function", "function": FUNCTION | {"strict": True}}
    user = USER | {"name": "Ann"}
    _, report = read(write_lines("x.jsonl", [row({"role": "assistant", "tool_calls": [call, call]}, [user])]))
    (unread,) = report["unread"].values()
    assert unread == {
        "prompt[].name": 1,
        "chosen[].tool_calls[].index": 1,
        "chosen[].tool_calls[].strict": 1,
    }


def test_text_parts_are_joined(read, write_lines):
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "12 C."}]
    (pair,), report = read(write_lines("x.jsonl", [row(YES | {"content": parts})]))
    assert pair.chosen == "It is 12 C."
    assert report["changed"]["content in several text parts: joined (a column each)"]["count"] == 1


BAD_CALLS = "tool calls that cannot be read"
BAD_TOOLS = "tools are not JSON schemas of functions"
TEXT_ONLY = "content that is not text"


@pytest.mark.parametrize(
    ("bad", "reason", "why"),
    [
        (row({"role": "assistant", "tool_calls": {"name": "weather"}}), BAD_CALLS, "expected a list"),
        (row({"role": "assistant", "tool_calls": "weather()"}), BAD_CALLS, "'weather()'; expected a list"),
        (row({"role": "assistant", "tool_calls": ["weather"]}), BAD_CALLS, "expected an object with a function"),
        (row({"role": "assistant", "tool_calls": [{"id": "a"}]}), BAD_CALLS, "call 1 is {'id': 'a'}"),
        (row(turn({"arguments": {}})), BAD_CALLS, "call 1 has the name None; expected text"),
        (row(turn(FUNCTION, FUNCTION | {"name": " "})), BAD_CALLS, "call 2 has the name ' '"),
        (row(turn(FUNCTION | {"arguments": "city=Graz"})), BAD_CALLS, "'city=Graz'; expected a JSON object"),
        (row(turn(FUNCTION | {"arguments": '{"a": 1, "a": 2}'})), BAD_CALLS, "expected a JSON object"),
        (row(turn(FUNCTION | {"arguments": ["Graz"]})), BAD_CALLS, "['Graz']; expected a JSON object"),
        (row({"role": "assistant", "tool_calls": [{"type": "custom", "function": FUNCTION}]}), BAD_CALLS, "'custom'"),
        (row({"role": "assistant", "tool_calls": [{"id": 1, "function": FUNCTION}]}), BAD_CALLS, "the id 1"),
        (row({"role": "assistant", "function_call": "weather"}), BAD_CALLS, "expected an object with a function"),
        (row(YES, [CALL | {"role": "user"}]), BAD_CALLS, "calls in a turn of the role user"),
        (row(YES, [USER, CALL, RESULT | {"name": 5}]), BAD_CALLS, "name is 5; expected text"),
        (row(YES, [RESULT, USER]), "tool turn without a call", "roles tool, user"),
        (row(YES, [USER, YES, RESULT]), "tool turn without a call", "roles user, assistant, tool"),
        (row(YES, [USER, CALL, RESULT, RESULT]), "tool turn without a call", "more results than calls"),
        (row(YES, [USER, CALL]), "prompt does not end with a user turn", "roles user, assistant"),
        (row(YES, [USER, CALL, USER]), "turns do not alternate", "roles user, assistant, user"),
        (row(YES, [USER, CALL, RESULT, USER]), "turns do not alternate", ""),
        (row(YES, [USER, CALL, RESULT | {"content": None}]), "message without text", "message 3"),
        (
            row(CALL | {"content": "a\x1eb"}),
            "control character (record separator) in the text of a message with calls",
            "",
        ),
        (row(turn(FUNCTION | {"arguments": '{"a": "\\ud800"}'})), "text is not Unicode", ""),
        (row({"role": "assistant", "tool_calls": []}), "message without text", ""),
        (row(CALL, rejected=CALL), "chosen equals rejected", ""),
        (row(tools={"name": "weather"}), BAD_TOOLS, "data.options.tools_field: null"),
        (row(tools=["hammer"]), BAD_TOOLS, "tool 1 is 'hammer'; expected a function with a name"),
        (row(tools=[{"type": "function"}]), BAD_TOOLS, "expected a function with a name"),
        (row(tools="a hammer"), BAD_TOOLS, "expected a list of schemas"),
        (row(tools=5), BAD_TOOLS, "is 5"),
        (row(YES | {"content": [{"type": "text", "text": "See:"}, IMAGE]}), TEXT_ONLY, "a part of type 'image'"),
        (row(YES | {"content": [{"type": "input_audio", "data": "UklG"}]}), TEXT_ONLY, "'input_audio'"),
        (row(YES | {"content": ["It is"]}), TEXT_ONLY, ""),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_with_its_reason(read, tmp_path, bad, reason, why):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (row(), bad)))
    pairs, report = read(path)
    assert len(pairs) == 1
    assert {name: entry["count"] for name, entry in report["dropped"].items()} == {reason: 1}
    (example,) = report["dropped"][reason]["examples"]
    assert example.startswith(f"{path}, row 2")
    assert why in example


def test_a_result_must_have_the_id_of_a_call_before_it(read, write_lines):
    calls = {"role": "assistant", "tool_calls": [{"id": "a", **FUNCTION}, {"id": "b", **FUNCTION}]}
    both = [{"role": "tool", "tool_call_id": name, "content": name} for name in ("b", "a")]
    other = {"role": "tool", "tool_call_id": "c", "content": "x"}
    rows = [row(YES, [USER, calls, *both]), row(YES, [USER, calls, other]), row(YES, [USER, calls, both[0], both[0]])]
    pairs, report = read(write_lines("x.jsonl", rows))
    assert len(pairs) == 1
    assert report["dropped"]["tool turn without a call"]["count"] == 2


def test_prepared_pairs_with_tools_are_read_as_they_were_written_also_as_a_data_set(read, write_lines, tmp_path):
    lines = [row(tools=[SCHEMA]), row(YES, [USER, CALL, RESULT], tools=[SCHEMA]), row(YES)]
    pairs, _ = read(write_lines("x.jsonl", lines))
    path = tmp_path / "pairs.parquet"
    write_pairs(pairs, path)
    fields = ("pair_id", "prompt", "chosen", "rejected", "group")
    written = [[getattr(pair, name) for name in fields] for pair in pairs]
    assert [[getattr(pair, name) for name in fields] for pair in read_pairs(path)] == written
    again, report = read(path)
    assert [[getattr(pair, name) for name in fields] for pair in again] == written
    assert not report["changed"]


def test_ids_groups_and_duplicates_take_calls_and_tools_into_account(read, write_lines):
    vienna = turn(FUNCTION | {"arguments": {"city": "Wien"}})
    lines = [
        row(),
        row(vienna),
        row(),
        row(tools=[SCHEMA]),
        row(CALL | {"content": "I look."}),
        row(NO, rejected=vienna),
    ]
    pairs, _ = read(write_lines("x.jsonl", lines))
    assert len({pair.pair_id for pair in pairs}) == 5
    assert pairs[0].pair_id == pairs[2].pair_id == content_hash([[USER], STORED_CALL, NO["content"]])
    assert len({pair.group for pair in pairs}) == 2
    kept, counts = drop_duplicates(pairs)
    assert counts == {"exact": 1, "contradictory": 2}
    assert len(kept) == 3


def test_the_length_of_a_call_is_that_of_its_record(read, write_lines):
    (pair,), _ = read(write_lines("x.jsonl", [row()]))
    record = '{"name":"weather","arguments":{"city":"Graz"}}'
    assert len(pair.chosen) == len(record) + 2
    assert longest_text(pair) == len(USER["content"]) + len(record) + 2
