"""The sources of benchmark items: local files in the public format, or the hub. And the report of what was read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.errors import DataError
from rm_methods.files import file_hash
from rm_methods.preferences.read_report import Columns
from rm_methods.validation import kind_of

# Name of the file, "file, row N" for messages, and the row.
SourceRow = tuple[str, str, dict[str, Any]]

EXAMPLES_KEPT = 5
HUB_PATIENCE = 10  # seconds that one request to the hub may take
_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<total>\d{5})")  # as the hub names the parts of a split


@dataclass
class ItemReport:
    """Counts of the rows read, excluded and noticed. Each row gives an item or is excluded: rows = items + excluded.

    Attributes:
        rows: rows of the source.
        sources: one entry per file (with its SHA-256) or hub split.
        excluded: reason -> {"count", "examples"} for rows that give no item.
        counted: remark -> {"count", "examples"} for unusual rows that are kept (before any `limit` is applied).
        notes: other remarks for the readers of the numbers.
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
    """The files of a card below `root`, by their names in the card; several for one name that is stored in parts.

    Args:
        names: the files needed. By default all that exist, at least one.

    Raises:
        DataError: no folder, a missing file or part, or a glob that matches several files that are not parts of one.
    """
    where = f"benchmarks.{card.name}.root: {root}"
    if not root.is_dir():
        raise DataError(f"{where}: no such folder. It must hold the public files of {card.title} ({card.url}).")
    matches = {name: sorted(path for path in root.glob(glob) if path.is_file()) for name, glob in card.files.items()}
    for name, paths in matches.items():
        _check_is_one_file(paths, f"{where}: {card.files[name]!r}")
    needed = list(card.files if names is None else names)
    missing = [name for name in needed if not matches[name]]
    if missing and (names is not None or len(missing) == len(needed)):
        patterns = ", ".join(card.files[name] for name in missing)
        present = ", ".join(sorted(ascii(path.name)[1:-1] for path in root.iterdir())[:8]) or "nothing"
        raise DataError(f"{where}: no file {patterns} is here. Found: {present}. The public files are at {card.url}.")
    return {name: matches[name] for name in needed if matches[name]}


def _check_is_one_file(paths: Sequence[Path], where: str) -> None:
    """Refuse several files that are not all the parts of one.

    Args:
        paths: sorted.
    """
    parts = [part for part in (_PART.search(path.name) for path in paths) if part]
    names = ", ".join(path.name for path in paths)
    if not parts:
        if len(paths) > 1:
            raise DataError(f"{where} matches {len(paths)} files ({names}). Keep one of them.")
        return
    total = max(int(part["total"]) for part in parts)
    if len(parts) < len(paths) or [int(part["number"]) for part in parts] != list(range(total)):
        raise DataError(
            f"{where} matches {names}: not the parts 0 to {total - 1} of one file. Keep these, and nothing beside them."
        )


def local_rows(files: dict[str, list[Path]], report: ItemReport) -> Iterator[SourceRow]:
    """Every row of the files; the report counts files and rows.

    Raises:
        DataError: a file is damaged or a row is not a JSON object.
    """
    from rm_methods.preferences.file_formats import file_rows, readable

    for name, paths in files.items():
        for path in paths:
            file = readable(path)
            report.sources.append({"file": file, "sha256": file_hash(path, length=64)})
            for number, row in file_rows(path):
                where = f"{file}, row {number}"
                report.row()
                yield name, where, _checked_row(row, file, where, report)


def _checked_row(row: dict[str, Any], source: str, where: str, report: ItemReport) -> dict[str, Any]:
    """The row, with its columns counted in the report.

    Raises:
        DataError: text that is not Unicode, or a row nested too deeply.
    """
    from rm_methods.preferences.file_rows import Unusable, check_unicode

    try:
        check_unicode(row)
    except Unusable as problem:
        details = f" ({problem.why})" if problem.why else ""
        raise DataError(f"{where}: {problem.reason}{details}.") from None
    return report.columns[source].of_row(row)


# Checks that all benchmarks share


def text_of(row: dict[str, Any], key: str, where: str, may_be_empty: bool = False) -> str:
    """A text of a row.

    Raises:
        DataError: it is missing, is not text, is a whole conversation stored as text, or is empty.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: `{key}` must be a text, found {kind_of(value)}.")
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


def unique_id(item_id: str, where: str, seen: Counter[str], report: ItemReport) -> str:
    """The id, or for its second and later use the id with a number; for sources whose ids may repeat.

    Args:
        seen: how often each id occurred, updated.
    """
    seen[item_id] += 1
    if seen[item_id] == 1:
        return item_id
    report.count("id occurs more than once, kept under another", where)
    return f"{item_id}#{seen[item_id]}"


# The hub


def hub_rows(card: BenchmarkCard, report: ItemReport, name: str, /, **load_arguments: Any) -> Iterator[SourceRow]:
    """Rows of one split of the card's hub repository at its pinned revision, as `local_rows` gives them.

    Args:
        name: stored with the rows as the name of their file.
        load_arguments: of `datasets.load_dataset`; a `revision` among them overrides the card's.

    Raises:
        DataError: the card has no hub repository, or the hub cannot be reached or read.
    """
    advice = (
        f"Without the network, put the public files of {card.title} ({card.url}) into a folder and name it. For "
        f"`rm-methods benchmark`: --root {card.name}=/folder/with/the/files. In a configuration:\n    benchmarks:\n"
        f"      {card.name}:\n        root: /folder/with/the/files"
    )
    if card.hub_id is None:
        raise DataError(f"Benchmark {card.name!r} is not on a hub. {advice}")
    import datasets

    arguments = {"revision": card.revision} | load_arguments
    unreachable = hub_problem()
    try:
        with _offline() if unreachable else nullcontext():
            rows = datasets.load_dataset(card.hub_id, **arguments)
    except Exception as error:  # network, cache and parsers raise errors of many kinds; the user reads their text
        if unreachable:
            reason = f"could not be loaded: {unreachable}, and its local cache does not hold this data"
        else:
            reason = f"could not be loaded from the hub ({type(error).__name__}: {error})"
        raise DataError(
            f"Benchmark {card.name!r}: {card.hub_id} ({load_arguments}, revision {card.revision or 'not pinned'}) "
            f"{reason}.\n{advice}"
        ) from error
    if card.revision is None:
        report.notes.append(f"Not pinned: the card names no revision of {card.hub_id}, so the data may change.")
    if unreachable:
        report.notes.append(f"From the local cache: {unreachable}.")
    report.sources.append({"hub": card.hub_id, "revision": card.revision} | load_arguments)
    source = f"{card.hub_id} {load_arguments}"
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        report.row()
        yield name, where, _checked_row(row, source, where, report)


def hub_problem() -> str | None:
    """Why the hub is not asked or does not answer, in words; None if it answers.

    One request, which takes at most `HUB_PATIENCE` seconds. `datasets` itself asks six times and waits in between.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return "offline mode is on (HF_HUB_OFFLINE)"
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_PATIENCE)
    except Exception as error:  # its class depends on the HTTP library of the version of huggingface_hub
        return f"{constants.ENDPOINT} cannot be reached ({str(error) or type(error).__name__})"
    return None


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's libraries use their cache only, as with HF_HUB_OFFLINE=1, which they read when they are imported."""
    import datasets
    from huggingface_hub import constants

    before = (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
