"""The controlled world: generated preference pairs whose true quality is computed from the text alone (docs/world.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.world.generator import OPTIONS, SPLITS, TEST_SPLITS, generate
from rm_methods.preferences.world.gold import gold

__all__ = ["OPTIONS", "SPLITS", "TEST_SPLITS", "generate", "gold", "read"]


def read(card: Any, root: Path | None, options: dict[str, Any], report: Any) -> Iterator[PreferencePair]:
    """The world as a data set: the reader contract of `rm_methods.preferences.readers` over `generate`."""
    for pair in generate(**options):
        report.count_row("generated")
        yield pair
