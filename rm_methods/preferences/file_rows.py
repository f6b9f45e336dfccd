"""Rows of a data set with the file and row they came from, from local files or from the hub; and the checks every reader shares."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rm_methods.errors import DataError
from rm_methods.preferences.pair import Message, PreferencePair, make_pair
from rm_methods.preferences.read_report import ReadReport

if TYPE_CHECKING:
    from rm_methods.preferences.cards import DatasetCard, SplitSource

FORMATS = (".jsonl", ".json", ".csv", ".parquet")  # each but Parquet also with .gz
ROLES = ("system", "user", "assistant")
SPLIT_SYNONYMS = {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Row:
    """One row as the source holds it.

    Attributes:
        split: our split that the card gives the file, "" if the card leaves it open.
        file: path (or hub name) for messages.
        number: row counted from 1; in JSON lines and CSV the header is not counted, blank lines are.
        fields: the columns.
    """

    split: str
    file: str
    number: int
    fields: dict[str, Any]


class Unusable(Exception):
    """This row cannot become a pair although the file is sound: it is dropped and counted under `reason`."""

    def __init__(self, reason: str, why: str = ""):
        super().__init__(reason)
        self.reason, self.why = reason, why


# Where rows come from


def source_rows(card: DatasetCard, root: Path | None, report: ReadReport, data_dir: str | None = None) -> Iterator[Row]:
    """All rows of a card's splits, counted in the report: from files below `root`, or from the hub if `root` is None.

    Args:
        data_dir: a folder inside the hub repository (local callers pass that folder as `root`).

    Raises:
        DataError: if no file is there, a file is broken, or the hub cannot be reached.
    """
    rows = _hub_rows(card, data_dir, report) if root is None else _local_rows(card, root, report)
    for row in rows:
        report.count_row(row.file)
        yield row


def _local_rows(card: DatasetCard, root: Path, report: ReadReport) -> Iterator[Row]:
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder. data.root must be the folder with the files of '{card.name}'. {card.local_files}".strip()
        )
    files = {split: find_files(root, source) for split, source in card.splits.items()}
    if not any(files.values()):
        wanted = "; ".join(f"{split or 'any split'}: {source.describe()}" for split, source in card.splits.items())
        there = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{root}: no file of '{card.name}' is here. Expected {wanted}. Found: {there}. {card.local_files}".strip()
        )
    if not any(source.files for source in card.splits.values()):
        read = {path for paths in files.values() for path in paths}
        if left := sorted(
            str(path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and data_format(path) and path not in read
        ):
            more = f" and {len(left) - 8} more" if len(left) > 8 else ""
            report.note(
                f"Not read, because their names are of no split (train, validation, test): {', '.join(left[:8])}{more}."
            )
    for split, paths in files.items():
        if not paths and not card.splits[split].optional:
            report.note(f"No local file for split '{split}' ({card.splits[split].describe()}).")
        for path in paths:
            for number, fields in file_rows(path):
                yield Row(split, str(path), number, fields)


def find_files(root: Path, source: SplitSource) -> list[Path]:
    """The files of one split below `root`, sorted: by the card's patterns, else those named like a hub split (train-0-of-2.parquet)."""
    if source.files:
        return sorted({path for pattern in source.files for path in root.glob(pattern) if path.is_file()})
    return sorted(
        path for path in root.rglob("*") if path.is_file() and data_format(path) and _names_split(path, source.hub)
    )


def _names_split(path: Path, split: str) -> bool:
    """Whether the hub would take this file for that split, by its name."""
    stem = path.name.split(".")[0].split("-")[0]
    return SPLIT_SYNONYMS.get(stem, stem) == split


def _hub_rows(card: DatasetCard, data_dir: str | None, report: ReadReport) -> Iterator[Row]:
    if card.hub_id is None:
        raise DataError(
            f"Data set '{card.name}' is not on a hub: set data.root to a local folder with its files. {card.local_files}".strip()
        )
    if card.revision is None:
        report.note(
            f"Unpinned: the card of '{card.name}' names no revision of {card.hub_id}, so the data may change under you."
        )
    for split, source in card.splits.items():
        if source.hub is None:
            continue
        name = f"{card.hub_id}{f'/{data_dir}' if data_dir else ''} ({source.hub})"
        for number, fields in enumerate(_load_from_hub(card, source.hub, data_dir), start=1):
            yield Row(split, name, number, fields)


def _load_from_hub(card: DatasetCard, hub_split: str, data_dir: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            card.hub_id, card.hub_config, data_dir=data_dir, split=hub_split, revision=card.revision
        )
    except (
        Exception
    ) as error:  # network, cache and parser layers below raise what they like; the text goes on to the user
        raise DataError(
            f"Data set '{card.name}': {card.hub_id}, split {hub_split}, revision {card.revision or 'unpinned'} could not be loaded "
            f"from the hub ({type(error).__name__}: {error}).\n"
            "Without the network, put its files into a folder and name that folder in the configuration:\n"
            f"    data:\n      dataset: {card.name}\n      root: /folder/with/the/files\n{card.local_files}".rstrip()
        ) from error


# Rows of one file


def data_format(path: Path) -> str | None:
    """ ".jsonl", ".json", ".csv" or ".parquet" for a file that can be read, else None."""
    name = path.name.lower().removesuffix(".gz")
    suffix = next((suffix for suffix in FORMATS if name.endswith(suffix)), None)
    return None if suffix == ".parquet" and path.name.lower().endswith(".gz") else suffix


def file_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of one file with their numbers from 1.

    Raises:
        DataError: if the file cannot be read to its end; the text names the file and the row.
    """
    suffix = data_format(path)
    if suffix is None:
        raise DataError(f"{path}: unknown format. Allowed: {', '.join(FORMATS)}; all but Parquet also with .gz.")
    number = 0
    try:
        if suffix == ".parquet":
            rows = _parquet_rows(path)
        else:
            rows = {".jsonl": _json_lines, ".json": _json_rows, ".csv": _csv_rows}[suffix](path)
        for number, fields in rows:
            if not isinstance(fields, dict):
                raise DataError(
                    f"{path}, row {number}: {_shown(fields)} is not a row; each must be a JSON object with named fields."
                )
            yield number, fields
    except (OSError, EOFError, zlib.error) as error:  # gzip reports damage through all three
        raise DataError(
            f"{path}, after row {number}: the file is damaged or cut short ({type(error).__name__}: {error}). Fetch it again."
        ) from None


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    # Binary lines end at \n only; str.splitlines would also cut at U+2028 and U+0085, which occur inside JSON strings.
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _parse_json(line, f"{path}, row {number}")


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """A JSON array of rows; or JSON lines, which hubs also name .json."""
    with _open(path) as stream:
        first = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first != b"[":
        yield from _json_lines(path)
        return
    with _open(path) as stream:
        yield from enumerate(_parse_json(stream.read(), str(path)), start=1)


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON in UTF-8 ({error}).") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null for a missing number")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # the default limit of 131,072 characters is shorter than some answers
    number = 0
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as stream:
        try:
            for number, fields in enumerate(csv.DictReader(stream, strict=True), start=1):
                if None in fields or None in fields.values():
                    raise DataError(f"{path}, row {number}: it has more or fewer fields than the header.")
                yield number, fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, row {number + 1}: not valid CSV in UTF-8 ({error}).") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
    except pa.ArrowException as error:
        raise DataError(f"{path}, after row {number}: not a readable Parquet file ({error}).") from None


# Checks that every reader shares


def text_field(row: Row, name: str) -> str:
    """A text column of a row.

    Raises:
        DataError: if it is missing or is not text.
        Unusable: if it is not Unicode.
    """
    value = field(row, name)
    if not isinstance(value, str):
        raise DataError(f"{row.file}, row {row.number}: field '{name}' is {_shown(value)}; expected text.")
    check_unicode(value)
    return value


def check_unicode(text: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell but no file can store.

    Raises:
        Unusable: with the place in the text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable("text is not Unicode", str(error)) from None


def number_field(row: Row, name: str) -> float | None:
    """A numeric column of a row, None where it is null; CSV cells are converted.

    Raises:
        DataError: if it is missing, not a number, NaN or infinite.
    """
    value = field(row, name)
    if isinstance(value, str) and row.file.lower().removesuffix(".gz").endswith(".csv"):
        with contextlib.suppress(ValueError):  # what is not a number is reported below, as it stands
            value = float(value) if value.strip() else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{row.file}, row {row.number}: field '{name}' is {_shown(value)}; expected a finite number.")
    return float(value)


def field(row: Row, name: str) -> Any:
    """Any column of a row.

    Raises:
        DataError: if it is missing.
    """
    if name not in row.fields:
        raise DataError(
            f"{row.file}, row {row.number}: field '{name}' is missing. Found: {', '.join(map(str, row.fields)) or 'no fields'}."
        )
    return row.fields[name]


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def checked_pair(
    row: Row,
    prompt: Sequence[Message],
    chosen: str,
    rejected: str,
    *,
    source: str,
    split: str | None = None,
    strength: float | None = None,
    meta: dict[str, Any] | None = None,
) -> PreferencePair:
    """A pair from one row, if the row can be one.

    Raises:
        Unusable: empty response or prompt, chosen equal to rejected, turns that do not alternate.
    """
    if not chosen.strip() or not rejected.strip():
        raise Unusable("empty response")
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    check_prompt(prompt)
    split = row.split if split is None else split
    pair = make_pair(prompt, chosen, rejected, split=split, source=source, strength=strength, meta=meta)
    return replace(pair, file=row.file, row=row.number)


def check_prompt(prompt: Sequence[Message]) -> None:
    """Refuse what a strict chat template refuses: the turns must be [system,] user, assistant, user, ... and end with a user turn.

    Raises:
        Unusable: with the reason.
    """
    roles = [message["role"] for message in prompt]
    if not roles or not prompt[-1]["content"].strip():
        raise Unusable("empty prompt")
    turns = roles[1:] if roles[0] == "system" else roles
    if turns[-1:] != ["user"]:
        raise Unusable("prompt does not end with a user turn", f"roles {', '.join(roles)}")
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise Unusable("turns do not alternate", f"roles {', '.join(roles)}")
