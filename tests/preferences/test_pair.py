"""Prepared pairs: groups of near-identical prompts, and files that are not what they should be."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.errors import DataError
from rm_methods.files import content_hash
from rm_methods.preferences.pair import make_pair, prompt_group, read_pairs, write_pairs


def group(text):
    return prompt_group([{"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("café", "cafe\u0301"),  # one character, or a letter and its accent
        ("ﬁne", "fine"),  # a ligature
        ("\uff37\uff48\uff59?", "Why?"),  # full-width letters
        ("Wie groß?", "WIE GROSS?"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("two words", "\ufefftwo\u00a0\u200b words\u3000\n"),
        ("co\u00adoperate", "cooperate"),
        ("and so on…", "And  so on..."),
    ],
)
def test_prompts_that_differ_in_form_only_are_one_group(text, same):
    assert group(text) == group(same)


@pytest.mark.parametrize(("text", "other"), [("café", "cafe"), ("2+2?", "2-2?"), ("ab", "a b"), ("你好", "您好")])
def test_prompts_that_differ_in_what_they_say_are_two_groups(text, other):
    assert group(text) != group(other)


def test_the_group_of_an_ascii_prompt_is_the_hash_of_its_small_letters():
    """Splits are drawn by this hash: another value would move prompts between the splits of data that is in use."""
    assert group("Name  a Fruit.\n") == content_hash([["user", "name a fruit."]]) == "29c461c1a1bdc30e"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("chosen", None, "'chosen' is None; expected text"),
        ("chosen", 5, "'chosen' is 5; expected text"),
        ("group", None, "'group' is None; expected text"),
        ("prompt", None, "'prompt' is None; expected a list of messages"),
        ("prompt", [], r"'prompt' is \[\]; expected a list of messages"),
        ("prompt", [{"role": "user", "content": None}], "'prompt' is .*; expected a list of messages"),
        ("prompt", "Why?", "'prompt' is 'Why\\?'; expected a list of messages"),
        ("strength", "high", "'strength' is 'high'; expected a finite number or null"),
        ("meta", "{", "'meta' is '{'; expected a JSON object"),
        ("meta", "[1]", r"'meta' is '\[1\]'; expected a JSON object"),
    ],
)
def test_a_prepared_pair_of_another_kind_is_named_with_its_row(tmp_path, field, value, expected):
    path = tmp_path / "pairs.parquet"
    pair = make_pair([{"role": "user", "content": "Why?"}], "a", "b", split="train", source="x")
    write_pairs([pair, pair], path)
    assert read_pairs(path) == [pair, pair]
    rows = pq.read_table(path).to_pylist()
    if field in ("chosen", "prompt", "strength") and value is not None and not isinstance(value, list):
        rows = rows[1:]  # one kind a column
    rows[-1][field] = value
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=rf"pairs\.parquet, row {len(rows)}: {expected}\. Run the prepare stage again"):
        read_pairs(path)
