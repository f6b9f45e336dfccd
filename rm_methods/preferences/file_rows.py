"""Rows of a data set with their file and number, from local files or the hub, and the checks that all readers share."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError, nearest
from rm_methods.preferences.conversation_text import BrokenConversation, conversation_in_text
from rm_methods.preferences.dataset_card import DatasetCard, SplitSource
from rm_methods.preferences.file_formats import data_format, file_rows, readable, shown
from rm_methods.preferences.pair import Message, PreferencePair, make_pair
from rm_methods.preferences.read_report import ReadReport
from rm_methods.preferences.tool_calls import calls_of, split_tools, text_and_records

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation", "test")
SPLIT_SYNONYMS = {
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "training": "train",
    "testing": "test",
}


@dataclass(frozen=True)
class Row:
    """One row as the source holds it.

    Attributes:
        split: the split that the card gives the file, "" if it gives none.
        file: path (or hub name) for messages.
        number: row counted from 1. Blank lines count in JSON lines, but not in CSV; the header of CSV does not count.
        fields: the columns; a `Columns` keeps a record of those that the reader asked for.
    """

    split: str
    file: str
    number: int
    fields: dict[str, Any]


class Unusable(Exception):
    """This row cannot become a pair although the file is sound: it is dropped and counted under `reason`."""

    def __init__(self, reason: str, why: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.why = why


# Sources of rows


def source_rows(card: DatasetCard, root: Path | None, report: ReadReport, data_dir: str | None = None) -> Iterator[Row]:
    """All rows of a card's splits, counted in the report: from files below `root`, or from the hub if `root` is None.

    Args:
        data_dir: a folder inside the hub repository (local callers pass that folder as `root`).

    Raises:
        DataError: no file exists, a file is broken, or the hub cannot be reached.
    """
    rows = _hub_rows(card, data_dir, report) if root is None else _local_rows(card, root, report)
    for row in rows:
        report.count_row(row.file)
        try:
            check_unicode(row.fields)
        except Unusable as problem:
            report.drop(problem.reason, row.file, row.number, problem.why)
            continue
        yield Row(row.split, row.file, row.number, report.columns[row.file].of_row(row.fields))


def _local_rows(card: DatasetCard, root: Path, report: ReadReport) -> Iterator[Row]:
    if not root.is_dir():
        message = f"{root}: no such folder. data.root must be the folder with the files of '{card.name}'."
        raise DataError(f"{message} {card.local_files}".strip())
    files = {split: find_files(root, source) for split, source in card.splits.items()}
    if not any(files.values()):
        expected = "; ".join(f"{split or 'any split'}: {source.describe()}" for split, source in card.splits.items())
        present = ", ".join(sorted(readable(Path(name)) for name in os.listdir(root))[:8]) or "nothing"
        message = f"{root}: no file of '{card.name}' is here. Expected {expected}. Found: {present}."
        raise DataError(f"{message} {card.local_files}".strip())
    if not any(source.files for source in card.splits.values()):
        _note_other_files(root, {path for paths in files.values() for path in paths}, report)
    for split, paths in files.items():
        if not paths and not card.splits[split].optional:
            report.note(f"No local file for split '{split}' ({card.splits[split].describe()}).")
        for path in paths:
            name = readable(path)
            for number, fields in file_rows(path):
                yield Row(split, name, number, fields)


def _note_other_files(root: Path, read: set[Path], report: ReadReport) -> None:
    """Note the data files below `root` that are not read because their names belong to no split."""
    others = sorted(readable(path.relative_to(root)) for path in _data_files(root) if path not in read)
    if others:
        report.note(f"Not read, because their names are of no split (train, validation, test): {first_names(others)}.")


def first_names(names: Sequence[str], most: int = 8) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def find_files(root: Path, source: SplitSource) -> list[Path]:
    """The files of one split below `root`, sorted.

    They match the card's patterns, or without patterns have a name like the hub's split (train-0-of-2.parquet).
    """
    if source.files:
        return sorted({path for pattern in source.files for path in root.glob(pattern) if path.is_file()})
    return sorted(path for path in _data_files(root) if _split_in_name(path) == source.hub)


def files_of_card(card: DatasetCard, root: Path) -> list[Path]:
    """The local files of all splits of a card, sorted."""
    return sorted({path for source in card.splits.values() for path in find_files(root, source)})


def _data_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and data_format(path)]


def _split_in_name(path: Path) -> str:
    """The split that the hub would take a file for, by its name."""
    return split_name(path.name.split(".")[0].split("-")[0])


def split_name(name: str) -> str:
    """A split's name in one spelling: without blanks; train, validation, test and their synonyms in lower case.

    >>> split_name("Train "), split_name("dev"), split_name("Hard")
    ('train', 'validation', 'Hard')
    """
    lower = name.strip().lower()
    split = SPLIT_SYNONYMS.get(lower, lower)
    return split if split in SPLITS else name.strip()


def _hub_rows(card: DatasetCard, data_dir: str | None, report: ReadReport) -> Iterator[Row]:
    if card.hub_id is None:
        message = f"Data set '{card.name}' is not on a hub: set data.root to a local folder with its files."
        raise DataError(f"{message} {card.local_files}".strip())
    if card.revision is None:
        report.note(
            f"Unpinned: the card of '{card.name}' names no revision of {card.hub_id}, so the data may change under you."
        )
    for split, source in card.splits.items():
        if source.hub is None:
            continue
        repository = f"{card.hub_id}/{data_dir}" if data_dir else card.hub_id
        name = f"{repository} ({source.hub})"
        for number, fields in enumerate(_load_from_hub(card, source.hub, data_dir), start=1):
            yield Row(split, name, number, fields)


def _load_from_hub(card: DatasetCard, hub_split: str, data_dir: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            card.hub_id, card.hub_config, data_dir=data_dir, split=hub_split, revision=card.revision
        )
    except Exception as error:  # network, cache and parsers raise errors of many kinds; the user reads their text
        raise DataError(
            f"Data set '{card.name}': {card.hub_id}, split {hub_split}, revision {card.revision or 'unpinned'} could "
            f"not be loaded from the hub ({type(error).__name__}: {error}).\n"
            "Without the network, put its files into a folder and name that folder in the configuration:\n"
            f"    data:\n      dataset: {card.name}\n      root: /folder/with/the/files\n{card.local_files}".rstrip()
        ) from error


# Checks that all readers share


def text_column(row: Row, name: str) -> str:
    """A text column of a row.

    Raises:
        DataError: if it is missing or is not text.
        Unusable: if it is null, or is a conversation stored as text, which is never an answer.
    """
    value = column(row, name)
    if value is None:
        raise Unusable(f"field '{name}' is null")
    if not isinstance(value, str):
        raise DataError(f"{row.file}, row {row.number}: field '{name}' is {shown(value)}; expected text.")
    if parsed_conversation(value, name) is not None:
        raise Unusable("conversation stored as text", f"field '{name}' is {shown(value)}")
    return value


def parsed_conversation(text: str, name: str) -> list[Any] | None:
    """The messages that the text of a column holds, None for plain text.

    Raises:
        Unusable: if it begins as a list of messages and cannot be parsed.
    """
    try:
        return conversation_in_text(text)
    except BrokenConversation as error:
        raise Unusable("conversation stored as text that cannot be parsed", f"field '{name}' {error}") from None


def check_unicode(value: Any) -> None:
    """Refuse half a surrogate pair in any text or name of a row: JSON can spell it, but no file can store it.

    Raises:
        Unusable: with the position in the text; also for a row that is nested too deeply to be checked.
    """
    try:
        members = [*value, *value.values()] if isinstance(value, dict) else [value]
        for member in members:
            if isinstance(member, str):
                member.encode("utf-8")
            # repr spells half a pair as \ud800. Only values with that spelling are walked through, because it is slow.
            elif isinstance(member, (dict, list)) and "\\ud" in repr(member):
                for text in _texts(member):
                    text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable("text is not Unicode", str(error)) from None
    except RecursionError:
        raise Unusable("nested too deeply") from None


def _texts(value: Any) -> Iterator[str]:
    """Every text of a JSON-like value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield from _texts(key)
            yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)


def number_column(row: Row, name: str) -> float | None:
    """A numeric column of a row, None where it is null; CSV cells are converted.

    Raises:
        DataError: if it is missing, not a number, NaN or infinite.
    """
    value = column(row, name)
    if isinstance(value, str) and row.file.lower().removesuffix(".gz").endswith(".csv"):
        with contextlib.suppress(ValueError):  # a text that is not a number is reported below
            value = float(value) if value.strip() else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{row.file}, row {row.number}: field '{name}' is {shown(value)}; expected a finite number.")
    return float(value)


def column(row: Row, name: str) -> Any:
    """Any column of a row.

    Raises:
        DataError: if it is missing.
    """
    if name not in row.fields:
        raise DataError(
            f"{row.file}, row {row.number}: field '{name}' is missing. {nearest(name, row.fields, 'Found')}"
        )
    return row.fields[name]


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
    return make_pair(
        prompt,
        chosen,
        rejected,
        split=row.split if split is None else split,
        source=source,
        strength=strength,
        meta=meta,
        file=row.file,
        row=row.number,
    )


def check_prompt(prompt: Sequence[Message]) -> None:
    """Refuse a prompt that a strict chat template refuses.

    The turns must be [tools, system,] user, assistant, user, ..., and the last one a user turn, or the result of a
    tool. Before the answer to a user turn, an assistant turn with calls and their results may come any number of times.

    Raises:
        Unusable: with the reason.
    """
    roles = [message["role"] for message in prompt]
    if not roles or (roles[-1] != "tool" and not prompt[-1]["content"].strip()):
        raise Unusable("empty prompt")
    _, turns = split_tools(prompt)
    if turns and turns[0]["role"] == "system":
        turns = turns[1:]
    kinds = "".join(_kind(message) for message in turns)
    if re.search(r"(^|[^ct])t", kinds):
        raise Unusable("tool turn without a call", f"roles {', '.join(roles)}")
    if kinds[-1:] not in ("u", "t"):
        raise Unusable("prompt does not end with a user turn", f"roles {', '.join(roles)}")
    if not re.fullmatch(r"(u(ct+)*a)*u(ct+)*", kinds):
        raise Unusable("turns do not alternate", f"roles {', '.join(roles)}")
    if "t" in kinds:
        _check_results(turns)


def _kind(message: Message) -> str:
    """A letter for a kind of turn: c for an assistant turn with calls, else the first of the role."""
    if message["role"] not in ("user", "assistant", "tool"):
        return "-"
    return "c" if calls_of(message) else message["role"][0]


def _check_results(turns: Sequence[Message]) -> None:
    """Refuse more results than calls, and a result with the id of another call."""
    ids: list[str | None] = []
    for message in turns:
        if message["role"] == "assistant":
            ids = [call.get("id") for call in calls_of(message)]
        elif message["role"] == "tool":
            _, records = text_and_records(message)
            call_id = records[0].get("tool_call_id") if records else None
            if not ids:
                raise Unusable("tool turn without a call", "more results than calls")
            if call_id is None or None in ids:
                ids.pop(0)
            elif call_id in ids:
                ids.remove(call_id)
            else:
                raise Unusable("tool turn without a call", f"no call before it has the id {call_id!r:.40}")
