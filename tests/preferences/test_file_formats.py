"""Files as they come: every format, and every kind of damage named with file and row."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.errors import DataError
from rm_methods.preferences.file_formats import file_rows

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
        (b'{"a": 1}\n[1, 2]\n', r"row 2: \[1, 2\] \(a list\) is not a row"),
        (b"[" * 100_000, "row 1: not valid JSON"),
        (b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', "row 2: the key 'a' occurs 2 times in one object"),
        (b'{"a": [{"b": {"c": 1, "c": 1}}]}\n', "row 1: the key 'c' occurs 2 times"),
        (b'{"a": 1e400}\n', "row 1: the number 1e400 is beyond all floats"),
        (b'{"a": [-' + b"9" * 401 + b"]}\n", r"row 1: the number -9+\.\.\. is beyond all floats"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", r"row 1: the number 9+\.\.\. is beyond all floats"),
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
        ("a,b\n1,2\n3,\0\0\n", "row 2: not valid CSV in UTF-8 .it holds a NUL character"),
        ("a\0b\n1\n", "row 1: not valid CSV in UTF-8 .it holds a NUL character"),
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


def test_the_largest_numbers_are_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1.7e308, "b": 12345678901234567890, "c": -0.5, "d": 1E-400}\n')
    assert list(file_rows(path)) == [(1, {"a": 1.7e308, "b": 12345678901234567890, "c": -0.5, "d": 0.0})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1}, {"a": 1, "a": 2}]', "row 2: the key 'a' occurs 2 times"),
        ('[{"a": 1}, {"a": 1e999}]', "row 2: the number 1e999 is beyond all floats"),
        ('[{"a": 1}, {"a": NaN}]', "row 2: not valid JSON: NaN"),
        ('[{"a": 1}, {"a": ]', "row 2: not valid JSON"),
        ('[{"a": 1}, ]', "row 2: not valid JSON"),
        ('[{"a": 1} {"a": 2}]', "after row 1: not valid JSON"),
        ('[{"a": 1}', "after row 1: not valid JSON"),
        ('[{"a": 1}] [', "after row 1: not valid JSON"),
        ("[1]", r"row 1: 1 \(a whole number\) is not a row"),
        ("[" * 100_000, "row 1: not valid JSON"),
    ],
)
def test_a_broken_array_is_named_with_the_row(tmp_path, text, expected):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"x\.json, {expected}"):
        list(file_rows(path))


def test_an_array_is_read_whatever_its_white_space(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf \n[\t{"a": 1}\r\n , {"a": 2} ]\n')
    assert list(file_rows(path)) == [(1, {"a": 1}), (2, {"a": 2})]
    path.write_text(" [ ] ")
    assert list(file_rows(path)) == []


def test_a_column_that_occurs_twice_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match=r"x\.csv, header: the column 'a' occurs 2 times"):
        list(file_rows(tmp_path / "x.csv"))
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, header: the column 'a' occurs 2 times"):
        list(file_rows(tmp_path / "x.parquet"))


def test_values_of_parquet_that_python_cannot_hold_are_named(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pq.write_table(pa.table({"a": text}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": pa.array([2**60], pa.timestamp("us"))}), tmp_path / "date.parquet")
    for name in ("text", "date"):
        with pytest.raises(DataError, match=rf"{name}\.parquet, after row 0: not a readable Parquet file"):
            list(file_rows(tmp_path / f"{name}.parquet"))


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(DataError, match=r"x\.jsonl: cannot be read \(Is a directory\)"):
        list(file_rows(tmp_path / "x.jsonl"))
