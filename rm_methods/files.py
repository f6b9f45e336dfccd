"""Files that are either whole or absent.

Every artefact is written beside its target under a temporary name and moved into place with ``os.replace``: a full disk
or a killed process leaves the temporary file behind, never half an artefact under the final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError, UserError


@contextmanager
def written_atomically(target: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success move it there, on any error remove it.

    The caller may create a file or a folder at the path it is given.  An existing target is replaced.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def check_outputs(
    outputs: Mapping[str, Iterable[str | os.PathLike]], inputs: Mapping[str, Iterable[str | os.PathLike]]
) -> None:
    """Refuse to write one file twice, or over a file that is read.  Links and relative forms are followed to the file itself.

    Args:
        outputs, inputs: files by the option that names them.

    Raises:
        UserError: naming both options and the file.
    """
    reads = {os.path.realpath(path): option for option, paths in inputs.items() for path in paths}
    writes: dict[str, str] = {}
    for option, paths in outputs.items():
        for path in paths:
            file = os.path.realpath(path)
            if file in writes:
                raise UserError(
                    f"{option} {path}: {writes[file]} writes the same file. Give each output a file for itself."
                )
            if file in reads:
                raise UserError(
                    f"{option} {path}: this is the file of {reads[file]}, which would be overwritten. Name another file."
                )
            writes[file] = f"{option} {path}"


def write_text(target: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with written_atomically(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given.  NaN and infinity are refused: they are not JSON."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(source: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        UserError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{source}: no such file.") from None
    except ValueError as error:
        raise UserError(f"{source}: not valid JSON ({error}).") from None


def read_json_lines(source: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file that is written line by line: a last line that a kill cut off is left out; no file has no lines.

    Raises:
        UserError: a whole line is not JSON.
    """
    source = Path(source)
    if not source.exists():
        return []
    lines = source.read_text(encoding="utf-8").split("\n")
    try:
        # What stands behind the last line break was not written to its end, even if it happens to be JSON.
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise UserError(f"{source}: a line is not valid JSON ({error}). Remove the file; it is written anew.") from None


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces.  Equal values give equal texts, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any, length: int = 16) -> str:
    """Hexadecimal SHA-256 (first `length` digits) of a JSON-like value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()[:length]


def file_hash(*sources: str | os.PathLike, length: int = 16) -> str:
    """Hexadecimal SHA-256 (first `length` digits) of the bytes of one or more files, in the order given."""
    digest = hashlib.sha256()
    for source in sources:
        with open(source, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()[:length]


def named_file_hash(name: str | None) -> str | None:
    """Hash of a file that a setting names; None where it names none."""
    return file_hash(name) if name else None


def parquet_columns(source: str | os.PathLike) -> list[str]:
    """Names of the columns of a Parquet file.

    Raises:
        DataError: it is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(source).names
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: not a readable Parquet file ({error}).") from None


def read_parquet(source: str | os.PathLike, columns: Iterable[str], what: str, stage: str):
    """Read these columns of a Parquet file as a pyarrow table.

    Args:
        what: the file should be, for the message.
        stage: that writes it.

    Raises:
        DataError: the file is missing, is not Parquet, or lacks columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(columns)
    try:
        table = pq.read_table(source)
    except FileNotFoundError:
        raise DataError(f"{source}: no such file. Run the {stage} stage first.") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: not a readable Parquet file ({error}).") from None
    missing = set(columns) - set(table.column_names)
    if missing:
        raise DataError(f"{source}: not {what}: columns {sorted(missing)} are missing, found {table.column_names}.")
    return table.select(columns)
