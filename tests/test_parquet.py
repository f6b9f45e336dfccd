"""Every way in which a Parquet file can be wrong ends in one sentence that names file and field."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.errors import DataError
from rm_methods.parquet import (
    parquet_columns,
    read_metadata,
    read_parquet,
    table_of_columns,
    write_parquet,
    write_rows,
)

KINDS = {
    "name": "text",
    "place": "integer",
    "score": "number",
    "weight": "finite",
    "cut": "boolean",
    "label": "json",
    "texts": "texts",
}
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def table(rows: int = 300, **columns) -> pa.Table:
    whole = {
        "name": [f"item {k}" for k in range(rows)],
        "place": pa.array(range(rows), pa.int32()),
        "score": [float("nan"), *map(float, range(1, rows))],
        "weight": [0.5] * rows,
        "cut": [False] * rows,
        "label": ["[1, 2]"] * rows,
        "texts": [["a", "b"]] * rows,
    }
    return pa.table(whole | columns)


def read(path: Path, **changes):
    return read_parquet(path, KINDS | changes, "a table of this test", "make", unique=("name",))


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(table().replace_schema_metadata({"notes": '["one"]'}), path)
    assert read(path).num_rows == 300
    assert parquet_columns(path) == list(KINDS)
    assert read_metadata(path, "notes", "make") == ["one"]
    assert read_metadata(path, "other", "make") is None


def test_every_damaged_byte_is_noticed(tmp_path):
    """Zeroed or cut anywhere: refused, or (bytes that nothing reads, such as statistics) the same table."""
    whole, damaged = tmp_path / "whole.parquet", tmp_path / "damaged.parquet"
    write_parquet(table(), whole)
    content, expected, refused = whole.read_bytes(), table(), []
    for start in range(0, len(content), 97):
        for changed in (content[:start], content[:start] + bytes(64) + content[start + 64 :]):
            damaged.write_bytes(changed)
            try:
                assert read(damaged).slice(1).equals(expected.slice(1))
            except DataError as error:
                refused.append(str(error))
    assert len(refused) > len(content) // 97
    assert all("damaged.parquet" in message and "\n" not in message for message in refused)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": [None, *["x"] * 299]}, "row 1: 'name' is None; expected text"),
        ({"name": list(range(300))}, "row 1: 'name' is 0; expected text"),
        ({"place": [0.5] * 300}, "row 1: 'place' is 0.5; expected a whole number"),
        ({"score": ["1"] * 300}, "row 1: 'score' is '1'; expected a number"),
        ({"weight": [1.0, float("inf"), *[1.0] * 298]}, "row 2: 'weight' is inf; expected a finite number"),
        ({"cut": [0] * 300}, "row 1: 'cut' is 0; expected true or false"),
        ({"label": ["{", *["1"] * 299]}, "row 1: 'label' is '{'; expected JSON"),
        ({"texts": [["a"], ["b", None], *[["c"]] * 298]}, r"row 2: 'texts' is \['b', None\]; expected a list of texts"),
        ({"texts": ["a"] * 300}, "row 1: 'texts' is 'a'; expected a list of texts"),
        ({"name": ["x", "y", "x", *map(str, range(297))]}, "row 3: name 'x' occurs twice, first in row 1"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, changes, message):
    pq.write_table(table(**changes), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / "a.parquet")
    assert "a.parquet" in str(caught.value)


def test_messages_and_objects_are_checked(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"prompt": "messages", "meta": "json object"}
    good = [{"role": "user", "content": "hello"}]
    for prompt, meta, message in (
        (
            [good, [*good, {"role": "user", "content": None}]],
            ["{}", "{}"],
            "row 2: 'prompt' is .*; expected a list of messages",
        ),
        ([good, good], ["{}", "[1]"], r"row 2: 'meta' is '\[1\]'; expected a JSON object"),
    ):
        pq.write_table(pa.table({"prompt": pa.array(prompt, MESSAGES), "meta": meta}), path)
        with pytest.raises(DataError, match=message):
            read_parquet(path, columns, "a table", "make")


def test_nulls_are_allowed_where_a_kind_says_so(tmp_path):
    pq.write_table(table(weight=[None, *[1.0] * 299]), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", weight="finite?").num_rows == 300


def test_missing_columns_files_and_folders_are_named(tmp_path):
    pq.write_table(table().drop_columns(["score"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"columns \['score'\] are missing"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no such file\. Run the make stage first"):
        read(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["name", "name"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="'name' occurs twice"):
        read_parquet(tmp_path / "twice.parquet", {"name": "text"}, "a table", "make")


EVERY_KIND = {
    "text": ("a", pa.string()),
    "boolean": (True, pa.bool_()),
    "integer": (2**40, pa.int64()),
    "int32": (3, pa.int32()),
    "number": (float("inf"), pa.float64()),
    "finite": (0.5, pa.float64()),
    "float32": (0.25, pa.float32()),
    "json": ("[1]", pa.string()),
    "json object": ('{"a": 1}', pa.string()),
    "texts": (["a", "b"], pa.list_(pa.string())),
    "integers": ([1, 2], pa.list_(pa.int64())),
    "int32s": ([1, 2], pa.list_(pa.int32())),
    "numbers": ([1.5], pa.list_(pa.float64())),
    "messages": ([{"role": "user", "content": "Why?"}], MESSAGES),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_kind_is_stored_as_its_type_and_read_again(kind, tmp_path):
    value, stored = EVERY_KIND[kind]
    columns = {"plain": kind, "sometimes": f"{kind}?"}
    rows = [{"plain": value, "sometimes": value, "other": 1}, {"plain": value}]
    write_rows(rows, columns, tmp_path / "a.parquet", metadata={"notes": '["one"]'})
    back = read_parquet(tmp_path / "a.parquet", columns, "a table of this test", "make")
    assert back.to_pylist() == [{"plain": value, "sometimes": value}, {"plain": value, "sometimes": None}]
    assert back.schema.types == [stored, stored]
    assert read_metadata(tmp_path / "a.parquet", "notes", "make") == ["one"]
    values = {"other": [1, 2], "sometimes": [value, None], "plain": [value, value]}
    assert table_of_columns(values, columns).equals(back)
    with pytest.raises(DataError, match="row 2: 'sometimes' is None; expected"):
        read_parquet(tmp_path / "a.parquet", {"sometimes": kind}, "a table of this test", "make")


def test_row_groups_are_limited_in_bytes_and_read_one_by_one(tmp_path, monkeypatch):
    columns = {"texts": "texts", "label": "json"}
    rows = [{"texts": ["x" * 100, str(number)], "label": "1"} for number in range(40)]
    monkeypatch.setattr("rm_methods.parquet._BYTES_PER_GROUP", 1000)
    write_rows(rows, columns, tmp_path / "a.parquet")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups > 4
    assert read_parquet(tmp_path / "a.parquet", columns, "x", "score").to_pylist() == rows
    for change, message in (({"texts": ["a", None]}, "row 36: 'texts'"), ({"label": "{"}, "row 36: 'label'")):
        write_rows([*rows[:35], rows[35] | change, *rows[36:]], columns, tmp_path / "b.parquet")
        with pytest.raises(DataError, match=message):
            read_parquet(tmp_path / "b.parquet", columns, "x", "score")


def test_a_small_table_is_one_row_group_as_pyarrow_writes_it(tmp_path):
    table = pa.table({"a": list(range(1000))})
    write_parquet(table, tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet", write_page_checksum=True)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
