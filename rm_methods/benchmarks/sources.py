"""Where benchmark items come from: local files in the public format or the hub; and the report of what was read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.errors import DataError
from rm_methods.files import file_hash

EXAMPLES_KEPT = 5
_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<total>\d{5})")  # as the hub names the parts of a split


@dataclass
class ReadReport:
    """What was read, left out and noticed.  Every row becomes an item or is counted under `excluded`: rows = items + excluded.

    Attributes:
        rows: rows of the source.
        sources: one entry a file (with its SHA-256) or a hub split.
        excluded: reason -> {"count", "examples"} for rows that give no item.
        counted: remark -> {"count", "examples"} for unusual rows that are not excluded (before any `limit` is applied).
        notes: anything else a reader of the numbers must know.
    """

    rows: int = 0
    sources: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[str, dict[str, Any]] = field(default_factory=dict)
    counted: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise DataError(f"{where}: no file {patterns} is here. Found: {there}. The public files are at {card.url}.")
    return {name: found[name] for name in needed if found[name]}


def local_rows(files: dict[str, list[Path]], report: ReadReport) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name of the file, "file, row N" for messages, row) of every row; files and rows are noted in the report.

    Raises:
        DataError: a file is damaged or a row is not a JSON object.
    """
    from rm_methods.preferences.file_formats import file_rows

    for name, paths in files.items():
        for path in paths:
            report.sources.append({"file": str(path), "sha256": file_hash(path, length=64)})
            for number, row in file_rows(path):
                report.row()
                yield name, f"{path}, row {number}", row


def hub_rows(
    card: BenchmarkCard, report: ReadReport, name: str, **load_arguments: Any
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
        yield name, f"{card.hub_id} {load_arguments}, row {number}", row
