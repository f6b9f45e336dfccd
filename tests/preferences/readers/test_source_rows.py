"""Files as they come: every format, and every kind of damage named with file and row."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.errors import DataError
from rm_methods.preferences.file_rows import file_rows

ROWS = [
    {"prompt": "Q?", "chosen": "a b", "rejected": "c,\nd"},
    {"prompt": "Q2?", "chosen": "ä", "rejected": 'say "no"'},
]
CSV = 'prompt,chosen,rejected\nQ?,a b,"c,\nd"\nQ2?,ä,"say ""no"""\n'


def write(path, name):
    path = path / name
    if "parquet" in name:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    text = {"csv": CSV, "jsonl": lines, "json": json.dumps(ROWS)}[name.split(".")[1]]
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz", "x.csv", "x.csv.gz", "x.parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    assert list(file_rows(write(tmp_path, name))) == [(1, ROWS[0]), (2, ROWS[1])]


def test_json_lines_named_json_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}\n\n{"a": 2}\n')
    assert list(file_rows(path)) == [(1, {"a": 1}), (3, {"a": 2})]


def test_lines_end_at_newline_only(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "one\u2028two\u0085three\x0bfour"}\n'.replace("\x0b", ""), encoding="utf-8")
    assert list(file_rows(path)) == [(1, {"a": "one\u2028two\u0085threefour"})]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}\n{"a": \n', "row 2: not valid JSON"),
        (b'{"a": 1}\n{"a": NaN}\n', "row 2: not valid JSON.*NaN"),
        (b'{"a": "\xff"}\n', "row 1: not valid JSON in UTF-8"),
        (b'{"a": 1}\n[1, 2]\n', r"row 2: \[1, 2\] \(list\) is not a row"),
        (b"[" * 100_000, "row 1: not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, expected):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.jsonl, {expected}"):
        list(file_rows(path))


@pytest.mark.parametrize("damage", ["cut", "noise", "not gzip", "checksum"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    path = tmp_path / "x.jsonl.gz"
    whole = gzip.compress(b"".join(b'{"a": %d}\n' % (i * 7919) for i in range(5000)))
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "noise": whole[:middle] + b"\xff\x00" * 20 + whole[middle + 40 :],
            "not gzip": b'{"a": 1}\n',
            "checksum": whole[:-8] + b"\x00" * 8,
        }[damage]
    )
    with pytest.raises(DataError, match=r"x\.jsonl\.gz, (after )?row \d+"):
        list(file_rows(path))


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = write(tmp_path, "x.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x\.parquet, after row 0: not a readable Parquet file"):
        list(file_rows(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n1\n", "row 2: it has more or fewer fields"),
        ("a,b\n1,2,3\n", "row 1: it has more or fewer fields"),
        ('a,b\n1,"2\n', "row 1: not valid CSV"),
    ],
)
def test_a_broken_csv_row_is_named(tmp_path, text, expected):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=expected):
        list(file_rows(path))


def test_a_csv_cell_may_be_longer_than_the_modules_default_limit(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a\n" + "x" * 200_000 + "\n")
    assert len(next(file_rows(path))[1]["a"]) == 200_000


def test_missing_files_say_what_was_expected_and_what_is_there(read, write_lines, tmp_path):
    write_lines("other.jsonl", [{"chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"no file of 'ultrafeedback_binarized'.*train-\*.*Found: other\.jsonl"):
        read("ultrafeedback_binarized", tmp_path)
    with pytest.raises(DataError, match=r"no such folder\. data\.root must be the folder"):
        read("ultrafeedback_binarized", tmp_path / "none")


@pytest.mark.parametrize("name", ["hh_rlhf", "ultrafeedback_binarized"])
def test_without_the_hub_the_error_says_how_to_use_a_local_folder(read, monkeypatch, tmp_path, name):
    # Set on the module, too: it has read the variable if an earlier test imported it.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=rf"could not be loaded from the hub(.|\n)*data:\n +dataset: {name}\n +root: "):
        read(name)


def test_a_data_set_without_a_hub_says_how_to_get_its_files(read):
    with pytest.raises(DataError, match=r"'alpaca_eval' is not on a hub: set data\.root.*git clone"):
        read("alpaca_eval")


def test_rows_of_the_hub_are_read_like_local_ones(read, monkeypatch):
    import datasets

    asked = []

    def load_dataset(hub_id, config, data_dir, split, revision):
        asked.append((hub_id, config, data_dir, split, revision))
        messages = [{"role": "user", "content": f"Q {split}?"}]
        answer = [{"role": "assistant", "content": text} for text in ("good", "bad")]
        row = {
            "chosen": messages + answer[:1],
            "rejected": messages + answer[1:],
            "score_chosen": 9.0,
            "score_rejected": 5.5,
        }
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pairs, report = read("ultrafeedback_binarized")
    assert asked == [("trl-lib/ultrafeedback_binarized", None, None, split, None) for split in ("train", "test")]
    assert [(pair.split, pair.prompt[0]["content"], pair.chosen, pair.strength) for pair in pairs] == [
        ("train", "Q train?", "good", 3.5),
        ("test", "Q test?", "good", 3.5),
    ]
    assert any("Unpinned" in note for note in report["notes"])


def test_pairs_keep_the_file_and_row_they_came_from(read, write_lines):
    """A blank line counts, a row that is dropped too, and a repetition stays."""
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = write_lines("x.jsonl", [good, "", good | {"chosen": ""}, good])
    assert [(pair.file, pair.row) for pair in read(path)[0]] == [(str(path), 1), (str(path), 4)]
