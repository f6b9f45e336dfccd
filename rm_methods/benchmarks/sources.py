"""Where benchmark items come from: local files in the public format or the hub; and the report of what was read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.errors import DataError
from rm_methods.files import file_hash
from rm_methods.preferences.read_report import Columns

EXAMPLES_KEPT = 5
_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<total>\d{5})")  # as the hub names the parts of a split


@dataclass
class ItemReport:
    """What was read, left out and noticed.  Every row becomes an item or is counted under `excluded`: rows = items + excluded.

    Attributes:
        rows: rows of the source.
        sources: one entry a file (with its SHA-256) or a hub split.
        excluded: reason -> {"count", "examples"} for rows that give no item.
        counted: remark -> {"count", "examples"} for unusual rows that are not excluded (before any `limit` is applied).
        notes: anything else a reader of the numbers must know.
        columns: the columns of each source, and which of them were read.
    """

    rows: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[str, dict[str, Any]] = field(default_factory=dict)
    counted: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    columns: dict[str, Columns] = field(default_factory=lambda: defaultdict(Columns))

    @property
    def unread(self) -> dict[str, dict[str, int]]:
        """By source, the columns that hold something and were not read, with the number of their rows."""
        return {source: columns.unread for source, columns in self.columns.items() if columns.unread}

    def row(self) -> None:
        """Count one row of the source."""
        self.rows += 1

    def exclude(self, reason: str, example: str) -> None:
        """Count one row that gives no item; `example` says which."""
        _tally(self.excluded, reason, example)

    def count(self, remark: str, example: str) -> None:
        """Count one unusual row that is kept; `example` says which."""
        _tally(self.counted, remark, example)


def _tally(table: dict[str, dict[str, Any]], reason: str, example: str) -> None:
    entry = table.setdefault(reason, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < EXAMPLES_KEPT:
        entry["examples"].append(example)


def local_files(card: BenchmarkCard, root: Path, names: Iterable[str] | None = None) -> dict[str, list[Path]]:
    """The files of a card below `root`, by the names that the card gives them; several for one name if it is stored in parts.

    Args:
        names: the files needed; by default those that are there, at least one.

    Raises:
        DataError: no folder, a file that is needed is not there, a part is missing, or a glob matches several that are not parts of one.
    """
    where = f"benchmarks.{card.name}.root: {root}"
    if not root.is_dir():
        raise DataError(f"{where}: no such folder. It must hold the public files of {card.title} ({card.url}).")
    found = {name: sorted(path for path in root.glob(glob) if path.is_file()) for name, glob in card.files.items()}
    for name, paths in found.items():
        parts = [_PART.search(path.name) for path in paths]
        if any(parts):
            total = max(int(part["total"]) for part in parts if part)
            if not all(parts) or [int(part["number"]) for part in parts] != list(range(total)):
                there = ", ".join(path.name for path in paths)
                raise DataError(
                    f"{where}: {card.files[name]!r} matches {there}: not the parts 0 to {total - 1} of one file. "
                    "Keep these, and nothing beside them."
                )
        elif len(paths) > 1:
            raise DataError(
                f"{where}: {card.files[name]!r} matches {len(paths)} files ({', '.join(p.name for p in paths)}). Keep one of them."
            )
    needed = list(card.files if names is None else names)
    missing = [name for name in needed if not found[name]]
    if missing and (names is not None or len(missing) == len(needed)):
        patterns = ", ".join(card.files[name] for name in missing)
        there = ", ".join(sorted(ascii(path.name)[1:-1] for path in root.iterdir())[:8]) or "nothing"
        raise DataError(f"{where}: no file {patterns} is here. Found: {there}. The public files are at {card.url}.")
    return {name: found[name] for name in needed if found[name]}


def local_rows(files: dict[str, list[Path]], report: ItemReport) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name of the file, "file, row N" for messages, row) of every row; files and rows are noted in the report.

    Raises:
        DataError: a file is damaged or a row is not a JSON object.
    """
    from rm_methods.preferences.file_formats import file_rows, readable

    for name, paths in files.items():
        for path in paths:
            file = readable(path)
            report.sources.append({"file": file, "sha256": file_hash(path, length=64)})
            for number, row in file_rows(path):
                report.row()
                yield name, f"{file}, row {number}", _checked_row(row, file, f"{file}, row {number}", report)


def _checked_row(row: dict[str, Any], source: str, where: str, report: ItemReport) -> dict[str, Any]:
    """The row, whose columns are counted in the report and whose texts can be stored.

    Raises:
        DataError: text that is not Unicode, or a row nested too deeply.
    """
    from rm_methods.preferences.file_rows import Unusable, check_unicode

    try:
        check_unicode(row)
    except Unusable as problem:
        raise DataError(f"{where}: {problem.reason}{f' ({problem.why})' if problem.why else ''}.") from None
    return report.columns[source].of_row(row)


# Checks that the readers share


def text_of(row: dict[str, Any], key: str, where: str, may_be_empty: bool = False) -> str:
    """A text of a row.

    Raises:
        DataError: it is missing, is not text, is a whole conversation stored as text, or is empty.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: `{key}` must be a text, found {type(value).__name__}.")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{where}: `{key}` must be a text that is not empty, found {value[:20]!r}.")
    check_plain(value, f"{where}: `{key}`")
    return value


def check_plain(text: str, where: str) -> None:
    """Refuse a conversation stored as text: it is neither a prompt nor an answer.

    Raises:
        DataError: the text begins as a list of messages.
    """
    from rm_methods.preferences.conversation_text import BrokenConversation, conversation_in_text

    try:
        messages = conversation_in_text(text)
    except BrokenConversation as error:
        raise DataError(f"{where} {error}; expected plain text.") from None
    if messages is not None:
        raise DataError(f"{where} is a conversation stored as text, {text[:40]!r}; expected plain text.")


def id_of(row: dict[str, Any], key: str, where: str) -> str:
    """An id of a row, as text.

    Raises:
        DataError: it is missing, empty, or neither text nor a whole number.
    """
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise DataError(f"{where}: `{key}` must be a text or a whole number, found {value!r:.60}.")
    return str(value)


def check_new(item_id: str, where: str, first_use: dict[str, str]) -> None:
    """Refuse an id that an earlier row has; `first_use` says which row has which.

    Raises:
        DataError: naming both rows.
    """
    if item_id in first_use:
        raise DataError(
            f"{where}: item id {item_id!r:.80} occurs twice, first in {first_use[item_id]}. "
            "Ids must be unique in a benchmark."
        )
    first_use[item_id] = where


# The hub


def hub_rows(
    card: BenchmarkCard, report: ItemReport, name: str, **load_arguments: Any
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Rows of one split of the card's hub repository at its pinned revision, in the form of `local_rows` under the given name.

    Raises:
        DataError: the card has no hub repository, or the hub cannot be reached or read.
    """
    instead = (
        f"Without the network, put the public files of {card.title} ({card.url}) into a folder and name it in the configuration:\n"
        f"    benchmarks:\n      {card.name}:\n        root: /folder/with/the/files"
    )
    if card.hub_id is None:
        raise DataError(f"Benchmark {card.name!r} is not on a hub. {instead}")
    import datasets

    try:
        rows = datasets.load_dataset(card.hub_id, revision=card.revision, **load_arguments)
    except (
        Exception
    ) as error:  # network, cache and parser layers below raise what they like; the text goes on to the user
        raise DataError(
            f"Benchmark {card.name!r}: {card.hub_id} ({load_arguments}, revision {card.revision or 'not pinned'}) could not be loaded "
            f"from the hub ({type(error).__name__}: {error}).\n{instead}"
        ) from error
    if card.revision is None:
        report.notes.append(f"Not pinned: the card names no revision of {card.hub_id}, so the data may change.")
    report.sources.append({"hub": card.hub_id, "revision": card.revision} | load_arguments)
    for number, row in enumerate(rows, start=1):
        report.row()
        source = f"{card.hub_id} {load_arguments}"
        yield name, f"{source}, row {number}", _checked_row(row, source, f"{source}, row {number}", report)
