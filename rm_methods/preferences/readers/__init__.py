"""Readers: each turns one public format into preference pairs.

A reader is a function ``read(card, root, options, report) -> Iterator[PreferencePair]``. Its module also has
``OPTIONS``: for each option a JSON-schema fragment with "default" and "description". `root` is a local folder, or None
for the hub. The `ReadReport` counts a row that cannot be a pair. A file that cannot be trusted raises `DataError` with
file and row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rm_methods.errors import ConfigError, nearest
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.read_report import ReadReport
from rm_methods.validation import schema_problems

# "module:function", imported on first use.
READERS = {
    "alpaca_eval": "rm_methods.preferences.readers.alpaca_eval:read",
    "hh_rlhf": "rm_methods.preferences.readers.hh_rlhf:read",
    "preference_rows": "rm_methods.preferences.readers.preference_rows:read",
    "pairs": "rm_methods.preferences.readers.pairs:read",
    "world": "rm_methods.preferences.world:read",
}
Reader = Callable[["DatasetCard", Path | None, dict[str, Any], ReadReport], Iterator[PreferencePair]]


def reader_module(name: str) -> str:
    """Name below `rm_methods` of a reader's module."""
    return READERS[name].partition(":")[0].removeprefix("rm_methods.")


def load_reader(name: str) -> tuple[Reader, dict[str, dict[str, Any]]]:
    """A reader's function and its OPTIONS.

    Raises:
        ConfigError: no reader has this name.
    """
    if name not in READERS:
        raise ConfigError([f"reader: unknown reader '{name}'. {nearest(name, READERS)}"])
    module_name, function = READERS[name].split(":")
    module = importlib.import_module(module_name)
    return getattr(module, function), module.OPTIONS


def option_problems(reader: str, options: dict[str, Any], where: str = "data.options") -> list[str]:
    """All problems of the options given to a reader, one sentence each."""
    _, fragments = load_reader(reader)
    schema = {"type": "object", "properties": fragments, "additionalProperties": False}
    return schema_problems(options, schema, where)


def resolve_reader_options(card: DatasetCard, user_options: dict[str, Any]) -> dict[str, Any]:
    """The options a reader runs with: its defaults, then the card's, then those given.

    Raises:
        ConfigError: naming every unknown option and every value of the wrong type or outside its range.
    """
    if problems := option_problems(card.reader, user_options):
        raise ConfigError(problems)
    _, fragments = load_reader(card.reader)
    defaults = {name: fragment["default"] for name, fragment in fragments.items()}
    return defaults | card.options | user_options


def read_dataset(
    card: DatasetCard, root: Path | None, options: dict[str, Any], report: ReadReport | None = None
) -> tuple[list[PreferencePair], dict[str, Any], ReadReport]:
    """Read a whole data set.

    Args:
        root: local folder, or None for the hub.
        options: what the user sets; the rest comes from the card and the reader.
        report: counts of data read before, which are added to; None: a new report.

    Returns:
        the pairs in reading order, the resolved options, and the report.
    """
    resolved = resolve_reader_options(card, options)
    report = ReadReport() if report is None else report
    read, _ = load_reader(card.reader)
    pairs = list(read(card, root, resolved, report))
    report.pairs += len(pairs)
    return pairs, resolved, report
