"""The controlled world: generated preferences in simple English, whose gold quality is computed (docs/world.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.read_report import ReadReport
from rm_methods.preferences.world.generator import (
    OPTIONS,
    TEST_SPLITS,
    conflicts,
    generate,
    option_warnings,
    splits_of,
)
from rm_methods.preferences.world.gold import assess, flaws, gold, requirements, statements

__all__ = [
    "OPTIONS",
    "TEST_SPLITS",
    "assess",
    "conflicts",
    "flaws",
    "generate",
    "gold",
    "read",
    "requirements",
    "splits_of",
    "statements",
]


def read(card: DatasetCard, root: Path | None, options: dict[str, Any], report: ReadReport) -> Iterator[PreferencePair]:
    """The reader of the data set "world": generates the pairs and reads no files.

    Args:
        root: not used; the report says so if one is given.
        options: any of `OPTIONS`.

    Raises:
        ConfigError: for options that are unknown or out of range.
    """
    if root is not None:
        report.note(f"{card.name} is generated: the folder {root} was not read.")
    for warning in option_warnings(options):
        report.note(warning)
    for pair in generate(**options):
        report.count_row(pair.split)
        yield pair
