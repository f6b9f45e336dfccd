"""Rows of one file: JSON lines, JSON arrays, CSV, Parquet. Ambiguous or damaged content is refused by file and row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from rm_methods.errors import DataError
from rm_methods.files import check_regular
from rm_methods.validation import kind_of

FORMATS = (".jsonl", ".json", ".csv", ".parquet")  # each but Parquet also with .gz


def data_format(path: Path) -> str | None:
    """ ".jsonl", ".json", ".csv" or ".parquet" for a file that can be read, otherwise None."""
    name = path.name.lower()
    if name.endswith(".parquet.gz"):
        return None
    return next((suffix for suffix in FORMATS if name.removesuffix(".gz").endswith(suffix)), None)


def check_data_format(path: Path) -> None:
    """Refuse a file whose name has none of the known suffixes.

    Raises:
        DataError: with the allowed formats.
    """
    _known_format(path)


def _known_format(path: Path) -> str:
    suffix = data_format(path)
    if suffix is None:
        raise DataError(
            f"{readable(path)}: unknown format. Allowed: {', '.join(FORMATS)}; all but Parquet also with .gz."
        )
    return suffix


def readable(path: Path) -> str:
    """The path as text for any file and terminal: bytes of a name that are not UTF-8 are written as \\x.. ."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(value: Any) -> str:
    """A value and its type for a message, cut short."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind_of(value)})"


def file_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of one file with their numbers from 1.

    Raises:
        DataError: the file cannot be read to its end, a key or column occurs twice, or a number is beyond all floats.
            The text names file and row.
    """
    read_rows = _READERS[_known_format(path)]
    name = readable(path)
    check_regular(path)
    number = 0
    try:
        for number, fields in read_rows(path):
            if not isinstance(fields, dict):
                raise DataError(
                    f"{name}, row {number}: {shown(fields)} is not a row; each must be a JSON object with named fields."
                )
            yield number, fields
    except (OSError, EOFError, zlib.error) as error:  # gzip and Parquet report damage through all three
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{name}: cannot be read ({error.strerror}).") from None
        raise DataError(
            f"{name}, after row {number}: the file is damaged or cut short ({type(error).__name__}: {error}). "
            "Fetch it again."
        ) from None


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


# JSON


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    # Binary lines end only at \n. str.splitlines would also cut at U+2028 and U+0085, which occur inside JSON strings.
    name = readable(path)
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _json_row(line, name, number)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """A JSON array of rows, or JSON lines: hubs name both .json."""
    with _open(path) as stream:
        first = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first != b"[":
        yield from _json_lines(path)
        return
    with _open(path) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{readable(path)}: not valid JSON in UTF-8 ({error}).") from None
    del content
    yield from _array_elements(text, readable(path))


def _array_elements(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, each with its number from 1, so that a message can name it."""
    position = _skip_blanks(text, text.index("[") + 1)
    number = 0
    if text[position : position + 1] != "]":
        while True:
            number += 1
            try:
                value, position = _STRICT_JSON.raw_decode(text, position)
            except (ValueError, RecursionError) as error:
                raise _not_json(f"{name}, row {number}", error) from None
            yield number, value
            position = _skip_blanks(text, position)
            if text[position : position + 1] != ",":
                break
            position = _skip_blanks(text, position + 1)
    end = position
    if text[position : position + 1] == "]":
        end = _skip_blanks(text, position + 1)
        if end == len(text):
            return
    seen = text[end : end + 20]
    raise DataError(
        f"{name}, after row {number}: not valid JSON (the array does not end here, but continues with {seen!r})."
    )


def _skip_blanks(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\n", "\r"):
        position += 1
    return position


def _json_row(line: bytes, name: str, number: int) -> Any:
    try:
        return strict_json(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _not_json(f"{name}, row {number}", error) from None


def _not_json(where: str, error: Exception) -> DataError:
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, RecursionError)):
        return DataError(f"{where}: not valid JSON in UTF-8 ({error}).")
    return DataError(f"{where}: {error}")


def strict_json(text: str) -> Any:
    """The value of an unambiguous JSON text.

    Raises:
        ValueError: not JSON (JSONDecodeError), an object with a key twice, NaN or infinity, or a number beyond all
            floats.
        RecursionError: nested too deeply.
    """
    return _STRICT_JSON.decode(text)


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(
            f"the key {key!r} occurs {count} times in one object, so it is unclear which value is meant. Keep one."
        )
    return fields


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"not valid JSON: {name} is no JSON number; write null for a missing number.")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _beyond_floats(text)
    return value


def _integer(text: str) -> int:
    if len(text) > 300 and math.isinf(float(text)):
        raise _beyond_floats(text)
    return int(text)


def _beyond_floats(text: str) -> ValueError:
    shortened = text if len(text) <= 30 else f"{text[:27]}..."
    return ValueError(f"the number {shortened} is beyond all floats (largest {sys.float_info.max:.3g}).")


_STRICT_JSON = json.JSONDecoder(
    object_pairs_hook=_object_of_unique_keys, parse_constant=_refuse_constant, parse_float=_float, parse_int=_integer
)


# CSV and Parquet


def _check_columns(columns: Sequence[str], name: str) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(
            f"{name}, header: the column {twice[0]!r} occurs {columns.count(twice[0])} times. "
            "Keep one, or rename the others."
        )


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # the default limit of 131,072 characters is shorter than some answers
    name = readable(path)
    number = 0
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as stream:
        try:
            reader = csv.DictReader(_lines_without_nul(stream), strict=True)
            _check_columns(reader.fieldnames or [], name)
            for number, fields in enumerate(reader, start=1):
                if None in fields or None in fields.values():
                    raise DataError(f"{name}, row {number}: it has more or fewer fields than the header.")
                yield number, fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{name}, row {number + 1}: not valid CSV in UTF-8 ({error}).") from None


def _lines_without_nul(lines: Iterable[str]) -> Iterator[str]:
    """The lines, unchanged. A NUL is an error: no text has one, and a lost block of a disk is full of them."""
    for line in lines:
        if "\0" in line:
            raise csv.Error("it holds a NUL character: a part of the file is lost")
        yield line


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = readable(path)
    number = 0
    try:
        with pq.ParquetFile(path) as parquet:
            _check_columns(parquet.schema_arrow.names, name)
            for batch in parquet.iter_batches(batch_size=1024):
                # Values that Python cannot hold (text that is not UTF-8, dates beyond its calendar) raise here.
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{name}, after row {number}: not a readable Parquet file ({error}).") from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
