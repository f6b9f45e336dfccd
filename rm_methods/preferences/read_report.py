"""Counts of the rows that a reader read and dropped; every row is counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from rm_methods.preferences.pairing import PairingCounts

EXAMPLES_KEPT = 3
NOTHING: tuple[Any, ...] = (None, "", [], {})  # values that a column without a value may have, by format


class Fields(dict):
    """The columns of one row. It records, for the whole file, which of them a reader asks for by `[]` or `get`."""

    def __init__(self, values: dict[str, Any], read: set[str]):
        super().__init__(values)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)


@dataclass
class Columns:
    """The columns of one file, over all its rows.

    Attributes:
        values: column -> rows in which it has a value (0 for an empty column).
        read: columns that the reader asked for.
        message_keys: "column[].key" -> rows in which a message has a value under a key that is neither role nor
            content.
    """

    values: Counter[str] = field(default_factory=Counter)
    read: set[str] = field(default_factory=set)
    message_keys: Counter[str] = field(default_factory=Counter)

    def of_row(self, values: dict[str, Any]) -> Fields:
        """Count the columns of a row.  Null and empty values, as CSV has them, hold nothing."""
        for name, value in values.items():
            self.values[name] += value not in NOTHING
        return Fields(values, self.read)

    @property
    def unread(self) -> dict[str, int]:
        """The columns and keys of messages that hold something and were not read, with the number of their rows."""
        columns = {name: count for name, count in self.values.items() if count and name not in self.read}
        return columns | dict(self.message_keys)


@dataclass
class ReadReport:
    """Counts of one reading of a data set.

    Attributes:
        files: rows read, by file (or hub split).
        pairs: pairs made.
        dropped: rows that gave no pair, by reason: {"count": int, "examples": ["file, row N: why", ...]}.
        changed: repairs in rows that were kept (merged turns, ...), in the same form.
        notes: other remarks for the readers of the report.
        forms: the form of the rows (`readers.preference_rows`), by data set.
        pairing: counts of the pairs made of judged responses; None where the rows are pairs.
        columns: the columns of each file, and which of them were read.
    """

    files: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)
    pairing: PairingCounts | None = None
    columns: dict[str, Columns] = field(default_factory=lambda: defaultdict(Columns))

    def count_row(self, file: str) -> None:
        """Count one row read from `file`."""
        self.files[file] = self.files.get(file, 0) + 1

    def drop(self, reason: str, file: str, row: int | None, why: str = "") -> None:
        """Count one row that gives no pair. `why` is the detail of this row, for the examples."""
        _tally(self.dropped, reason, file, row, why)

    def change(self, what: str, file: str, row: int | None, why: str = "") -> None:
        """Count one repair in a row that is kept."""
        _tally(self.changed, what, file, row, why)

    def note(self, text: str) -> None:
        """Keep a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def rows(self) -> int:
        """Rows read from all files."""
        return sum(self.files.values())

    @property
    def refused(self) -> int:
        """Rows that gave no pair."""
        return sum(entry["count"] for entry in self.dropped.values())

    @property
    def unread(self) -> dict[str, dict[str, int]]:
        """By file, the columns that hold something and were not read, with the number of their rows."""
        return {file: columns.unread for file, columns in self.columns.items() if columns.unread}

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON-like value."""
        return {
            "files": self.files,
            "rows": self.rows,
            "pairs": self.pairs,
            "forms": self.forms,
            "pairing": None if self.pairing is None else self.pairing.to_json(),
            "dropped": self.dropped,
            "changed": self.changed,
            "unread": self.unread,
            "notes": self.notes,
        }


def _tally(table: dict[str, dict[str, Any]], reason: str, file: str, row: int | None, why: str) -> None:
    entry = table.setdefault(reason, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < EXAMPLES_KEPT:
        example = f"{file}, row {row}"
        entry["examples"].append(f"{example}: {why}" if why else example)


def tally_lines(heading: str, table: dict[str, dict[str, Any]]) -> list[str]:
    """Counted rows as lines for a terminal, the most frequent reason first, each with an example.

    Args:
        heading: what happened to the rows.
        table: reason -> {"count", "examples"}.
    """
    lines = []
    for reason, entry in sorted(table.items(), key=lambda item: -item[1]["count"]):
        lines.append(f"  {entry['count']:>9,} {heading}: {reason}")
        lines.append(f"            e.g. {entry['examples'][0]}")
    return lines


def form_text(forms: dict[str, str]) -> str:
    """The forms of the rows as words for a heading; nothing where all are pairs.

    >>> form_text({"a.jsonl": "ranked", "b.jsonl": "pairs"})
    ' (rows: pairs, ranked)'
    """
    names = sorted(set(forms.values()))
    return "" if names in ([], ["pairs"]) else f" (rows: {', '.join(names)})"


def unread_columns(columns: dict[str, int], most: int = 12) -> str:
    """The columns of a file that were not read, for a terminal: the most frequent first, each with its rows."""
    names = [f"{name} ({count:,} rows)" for name, count in sorted(columns.items(), key=lambda item: -item[1])]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def unread_notes(unread: dict[str, dict[str, int]]) -> list[str]:
    """One sentence a file with columns that were not read."""
    return [f"Not read from {file}: {unread_columns(columns)}." for file, columns in unread.items()]
