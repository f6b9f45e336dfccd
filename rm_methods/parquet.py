"""Parquet files: written with checksums, and checked column by column where they are read.

The columns of a file are a mapping from name to kind. It says how `write_rows` stores a column, and what `read_parquet`
allows in it. A `?` after the kind allows nulls.

| kind | values | stored as |
|---|---|---|
| `text`, `boolean` | one of these | string, bool |
| `integer`, `int32` | a whole number | int64, int32 |
| `number`, `float32` | a number; NaN and infinity are allowed | float64, float32 |
| `finite` | a number that is neither NaN nor infinite | float64 |
| `json`, `json object` | a text that is JSON; a text that is a JSON object | string |
| `texts`, `integers`, `int32s`, `numbers` | a list of these | list |
| `messages` | a list of {role, content}, at least one | list of struct |

A reader takes whole numbers and numbers of any width.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rm_methods.errors import DataError, nearest_path
from rm_methods.files import check_regular, parse_json, written_atomically

if TYPE_CHECKING:
    import pyarrow

Row = TypeVar("Row")
_JSON = {"json": object, "json object": dict}
_MESSAGE = ("role", "content")
_WORDS = {
    "text": "text",
    "integer": "a whole number",
    "boolean": "true or false",
    "number": "a number",
    "finite": "a finite number",
    "json": "JSON",
    "json object": "a JSON object",
    "texts": "a list of texts",
    "integers": "a list of whole numbers",
    "numbers": "a list of numbers",
    "messages": "a list of messages",
}
_ROWS_PER_GROUP = 2**20  # the default of pyarrow's `write_table`
_BYTES_PER_GROUP = 2**30  # in memory
_LISTS = {"texts": "text", "integers": "integer", "int32s": "int32", "numbers": "number"}
_ANY_WIDTH = {"int32": "integer", "int32s": "integers", "float32": "number"}  # kind -> the kind that a reader checks
_STORED_AS = {
    "text": "string",
    "json": "string",
    "json object": "string",
    "boolean": "bool",
    "integer": "int64",
    "int32": "int32",
    "number": "float64",
    "finite": "float64",
    "float32": "float32",
}


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    target: str | os.PathLike,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write rows to Parquet as `write_parquet` does.

    Args:
        columns: name -> kind (see above). Other keys of the rows are left out; a missing key is null.
        metadata: texts that the file keeps beside its rows.
    """
    write_parquet(table_of_rows(rows, columns).replace_schema_metadata(metadata), target)


def table_of_rows(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pyarrow.Table:
    """The table that `write_rows` writes."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=_schema(columns))


def table_of_columns(values: Mapping[str, Sequence[Any]], columns: Mapping[str, str]) -> pyarrow.Table:
    """The same table from the values of each column."""
    import pyarrow as pa

    return pa.Table.from_pydict({name: values[name] for name in columns}, schema=_schema(columns))


def _schema(columns: Mapping[str, str]) -> pyarrow.Schema:
    import pyarrow as pa

    return pa.schema([(name, _stored_type(kind.removesuffix("?"))) for name, kind in columns.items()])


def _stored_type(kind: str) -> pyarrow.DataType:
    import pyarrow as pa

    if kind == "messages":
        return pa.list_(pa.struct([(name, pa.string()) for name in _MESSAGE]))
    if kind in _LISTS:
        return pa.list_(_stored_type(_LISTS[kind]))
    return pa.type_for_alias(_STORED_AS[kind])


def write_parquet(table: pyarrow.Table, target: str | os.PathLike) -> None:
    """Write a table atomically, with a checksum of every page: `read_parquet` notices bytes that change later."""
    parts = (table.slice(start, _ROWS_PER_GROUP) for start in range(0, max(1, table.num_rows), _ROWS_PER_GROUP))
    write_tables(parts, table.schema, target)


def in_groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in lists of the size of a row group."""
    remaining = iter(rows)
    while group := list(itertools.islice(remaining, _ROWS_PER_GROUP)):
        yield group


def write_tables(tables: Iterable[pyarrow.Table], schema: pyarrow.Schema, target: str | os.PathLike) -> None:
    """Write tables to one file as `write_parquet` does, one after the other.

    Args:
        tables: each becomes a row group, or several if it is large; of an iterator, only one is in memory at a time.
        schema: of the file, with its metadata.
    """
    import pyarrow.parquet as pq

    with written_atomically(target) as path, pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for table in tables:
            for group in _row_groups(table):
                writer.write_table(group)


def _row_groups(table: pyarrow.Table) -> list[pyarrow.Table]:
    """Parts of a table of at most 1 GiB each, or of one larger row.

    pyarrow cannot read a row group with 2 GiB in a list of texts.
    """
    if table.nbytes <= _BYTES_PER_GROUP or table.num_rows < 2:
        return [table]
    half = table.num_rows // 2
    return [*_row_groups(table.slice(0, half)), *_row_groups(table.slice(half))]


def read_parquet(
    source: str | os.PathLike, columns: Mapping[str, str], what: str, stage: str, unique: Sequence[str] = ()
) -> pyarrow.Table:
    """Read columns of a Parquet file and check every value.

    Args:
        columns: name -> kind (see above), in the order of the result.
        what: what the file should be, for the message.
        stage: the stage that writes the file, for the message.
        unique: columns that together identify a row; no two rows may agree in all of them.

    Raises:
        DataError: the file is missing, is damaged, lacks a column, has a value of the wrong kind, or has a row twice.
            The text names file and field.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = f"Run the {stage} stage again"
    try:
        with pq.ParquetFile(_file(source, stage), page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            _check_names(source, names, columns, what)
            parts = [file.read_row_group(number, columns=list(columns)) for number in range(file.num_row_groups)]
            table = pa.concat_tables(parts or [file.read(columns=list(columns))]).select(list(columns))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{source}: not a readable Parquet file ({reason:.200}). {again}, or give the whole file."
        ) from None
    for name, kind in columns.items():
        checked_kind = _ANY_WIDTH.get(kind.removesuffix("?"), kind.removesuffix("?"))
        may_be_null = kind.endswith("?")
        if row := _wrong_row(table[name], checked_kind, may_be_null):
            value = table[name][row - 1].as_py()
            expected = _WORDS[checked_kind] + (" or null" if may_be_null else "")
            raise DataError(f"{source}, row {row}: '{name}' is {value!r:.60}; expected {expected}. {again}.")
    if unique and (repeated := _repeated_row(table.select(list(unique)))):
        row, first, key = repeated
        shown = ", ".join(f"{name} {value!r}" for name, value in zip(unique, key, strict=True))
        raise DataError(f"{source}, row {row}: {shown} occurs twice, first in row {first}. {again}.")
    return table


def read_metadata(source: str | os.PathLike, key: str, stage: str) -> Any:
    """A JSON value in a Parquet file's metadata, None if the file has none of that name.

    Raises:
        DataError: the file is missing or damaged, or the value is not JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = (pq.read_schema(_file(source, stage)).metadata or {}).get(key.encode())
        return None if stored is None else parse_json(stored.decode("utf-8"))
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: not a readable Parquet file ({error!s:.200}). Run the {stage} stage again."
        ) from None


def parquet_columns(source: str | os.PathLike) -> list[str]:
    """Names of the columns of a Parquet file.

    Raises:
        DataError: it is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular(source)
    try:
        return pq.read_schema(source).names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{source}: not a readable Parquet file ({error!s:.200}).") from None


def _file(source: str | os.PathLike, stage: str) -> Path:
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{source}: is a folder, not a Parquet file.")
    if not path.exists():
        raise DataError(f"{source}: no such file. Run the {stage} stage first.{nearest_path(source)}")
    check_regular(path)
    return path


def _check_names(source: str | os.PathLike, names: Sequence[str], columns: Mapping[str, str], what: str) -> None:
    if missing := [name for name in columns if name not in names]:
        raise DataError(f"{source}: not {what}: columns {missing} are missing, found {list(names)}.")
    if twice := [name for name in columns if names.count(name) > 1]:
        raise DataError(f"{source}: not {what}: the column {twice[0]!r} occurs twice.")


def _wrong_row(column: pyarrow.ChunkedArray, kind: str, may_be_null: bool) -> int | None:
    """Row (from 1) of the first value that is not of a kind; None if all are."""
    import pyarrow.compute as pc

    if may_be_null and column.null_count == len(column):
        return None
    if not _has_type(column.type, kind):
        return 1 if len(column) else None
    if column.null_count and not may_be_null:
        return _first(pc.is_null(column))
    if kind == "finite" and not pc.all(pc.is_finite(column), min_count=0).as_py():
        return _first(pc.invert(pc.fill_null(pc.is_finite(column), True)))
    if kind == "messages":
        is_empty = pc.equal(pc.list_value_length(column), 0)
        if pc.any(is_empty).as_py():
            return _first(is_empty)
    if kind in _LISTS or kind == "messages":
        return _row_with_null_inside(column, kind)
    return _row_without_json(column, kind) if kind in _JSON else None


def _has_type(stored: pyarrow.DataType, kind: str) -> bool:
    import pyarrow as pa

    types = pa.types
    if kind in _LISTS or kind == "messages":
        if not (types.is_list(stored) or types.is_large_list(stored)):
            return False
        return _is_message(stored.value_type) if kind == "messages" else _has_type(stored.value_type, _LISTS[kind])
    if kind == "text" or kind in _JSON:
        return types.is_string(stored) or types.is_large_string(stored)
    if kind == "integer":
        return types.is_integer(stored)
    if kind == "boolean":
        return types.is_boolean(stored)
    return types.is_floating(stored) or types.is_integer(stored)


def _is_message(stored: pyarrow.DataType) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(stored):
        return False
    fields = [stored.field(position) for position in range(stored.num_fields)]
    return {field.name for field in fields} == set(_MESSAGE) and all(_has_type(field.type, "text") for field in fields)


def _row_with_null_inside(column: pyarrow.ChunkedArray, kind: str) -> int | None:
    import pyarrow.compute as pc

    before = 0
    for chunk in column.chunks:
        values = pc.list_flatten(chunk)
        parts = [values]
        if kind == "messages":
            parts += [pc.struct_field(values, name) for name in _MESSAGE]
        for part in parts:
            if part.null_count:
                rows = pc.list_parent_indices(chunk)
                return before + rows[_first(pc.is_null(part)) - 1].as_py() + 1
        before += len(chunk)
    return None


def _row_without_json(column: pyarrow.ChunkedArray, kind: str) -> int | None:
    import pyarrow.compute as pc

    before = 0
    for chunk in column.chunks:
        # Labels repeat, so each text is parsed once.  `unique` keeps the order of the first rows.
        for text in pc.unique(chunk).to_pylist():
            try:
                is_right = text is None or isinstance(parse_json(text), _JSON[kind])
            except (ValueError, RecursionError):
                is_right = False
            if not is_right:
                return before + pc.index(chunk, text).as_py() + 1
        before += len(chunk)
    return None


def _first(mask: pyarrow.ChunkedArray) -> int:
    """Row of the first true value, from 1."""
    import pyarrow.compute as pc

    return pc.index(mask, True).as_py() + 1


def _repeated_row(keys: pyarrow.Table) -> tuple[int, int, tuple] | None:
    """The first row whose key an earlier row has, that earlier row (both from 1), and the key."""
    rows: dict[tuple, int] = {}
    columns = [column.to_pylist() for column in keys.columns]
    for row, key in enumerate(zip(*columns, strict=True), start=1):
        if key in rows:
            return row, rows[key], key
        rows[key] = row
    return None
