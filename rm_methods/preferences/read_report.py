"""What a reader read and what it left out: no row disappears without being counted here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXAMPLES_KEPT = 3


@dataclass
class ReadReport:
    """Counts of one reading of a data set.

    Attributes:
        files: rows read, by file (or hub split).
        pairs: pairs made.
        dropped: rows that gave no pair, by reason: {"count": int, "examples": ["file, row N: why", ...]}.
        changed: things put right in rows that were kept (merged turns, ...), in the same form.
        notes: anything else a reader of the report must know.
    """

    files: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count_row(self, file: str) -> None:
        """Count one row read from `file`."""
        self.files[file] = self.files.get(file, 0) + 1

    def drop(self, reason: str, file: str, row: int, why: str = "") -> None:
        """Count one row that gives no pair.  `why` is what is particular to this row, for the examples."""
        _tally(self.dropped, reason, file, row, why)

    def change(self, what: str, file: str, row: int, why: str = "") -> None:
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

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON-like value."""
        return {
            "files": self.files,
            "rows": self.rows,
            "pairs": self.pairs,
            "dropped": self.dropped,
            "changed": self.changed,
            "notes": self.notes,
        }


def _tally(table: dict[str, dict[str, Any]], reason: str, file: str, row: int, why: str) -> None:
    entry = table.setdefault(reason, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < EXAMPLES_KEPT:
        entry["examples"].append(f"{file}, row {row}" + (f": {why}" if why else ""))
