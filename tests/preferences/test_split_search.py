"""Whether a data set has a split, before anything is read."""

from __future__ import annotations

import pandas as pd
import pytest

from rm_methods.preferences.cards import card_for
from rm_methods.preferences.readers import resolve_reader_options
from rm_methods.preferences.split_search import has_split

ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}


def search(dataset, split="test", **options):
    card, root = card_for(str(dataset))
    return has_split(card, root, resolve_reader_options(card, options), split)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
@pytest.mark.parametrize("value", ["test", "TEST ", "testing"])
def test_a_column_names_the_split_in_json_lines(write_lines, name, value):
    path = write_lines(name, [ROW, ROW | {"split": value}])
    assert search(path) is True
    assert search(path, "validation") is False
    assert search(path, split_field=None) is False


def test_other_values_and_words_of_responses_are_no_split(write_lines):
    rows = [ROW | {"split": "train"}, ROW | {"chosen": 'write "split": "test" in JSON'}, ROW | {"set": "test"}]
    path = write_lines("x.jsonl", rows)
    assert search(path) is False
    assert search(path, split_field="set") is True


def test_an_escaped_spelling_is_found_by_reading_the_rows(write_lines):
    path = write_lines("x.jsonl", [r'{"prompt": "a", "chosen": "b", "rejected": "c", "\u0073plit": "t\u0065st"}'])
    assert search(path) is True


def test_the_split_is_found_across_two_chunks(write_lines, monkeypatch):
    import rm_methods.preferences.split_search as module

    path = write_lines("x.jsonl", [ROW | {"split": "test"}])
    monkeypatch.setattr(module, "_CHUNK", 7)
    monkeypatch.setattr(module, "_OVERLAP", 40)
    assert module._text_has_split(path, "split", "test")


def test_tables(tmp_path):
    frame = pd.DataFrame([ROW, ROW | {"split": "test"}])
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    frame[["prompt", "chosen", "rejected"]].to_csv(tmp_path / "y.csv", index=False)
    frame[["prompt", "chosen", "rejected"]].to_parquet(tmp_path / "y.parquet")
    assert [search(tmp_path / name) for name in ("x.csv", "x.parquet", "y.csv", "y.parquet")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_folders_and_cards_tell_by_their_files(write_lines):
    folder = write_lines("folder/train.jsonl", [ROW | {"split": "test"}]).parent
    assert search(folder) is False
    write_lines("folder/test.jsonl", [ROW])
    assert search(folder) is True
    assert search("hh_rlhf") is True
    assert search("hh_rlhf", "validation") is False
    assert search("alpaca_eval") is None
    assert search("world") is False


def test_a_damaged_file_is_left_to_prepare(write_lines):
    assert search(write_lines("x.jsonl", ["{"])) is None
