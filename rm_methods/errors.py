"""Errors that a user can act on. The command line prints their text and exits with status 2, without a traceback."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

_MANY = 8  # names; more are cut where one of them is very near to the name given
_SHOWN = 3
_NEAR = 0.5  # ratio of difflib
_VERY_NEAR = 0.75


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


class UserError(Exception):
    """The user's input is wrong. The text says what is wrong, the value seen, what is allowed, and what to do."""


class DataError(UserError):
    """A data file or row is wrong. The text names the file and the row (counted from 1)."""


class ConfigError(UserError):
    """One or more configuration values are wrong; all of them are reported together.

    Args:
        problems: one sentence each, beginning with the key path (``training.epochs: ...``).
        source: the file with the problems, or "the configuration", for the first line.
    """

    def __init__(self, problems: Iterable[str], source: str = "the configuration"):
        self.source = source
        self.problems = [_on_one_line(problem) for problem in problems]
        count = len(self.problems)
        heading = f"{count} problem{'s' if count != 1 else ''} in {source}:"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))

    def problems_with_file(self, reported_for: str = "") -> list[str]:
        """The problems, to be reported with others for a configuration; those of another file, a card, begin with it.

        Args:
            reported_for: the source that the new heading names.
        """
        if self.source == reported_for or not os.path.isfile(self.source):
            return self.problems
        return [f"{self.source}: {problem}" for problem in self.problems]


def _on_one_line(text: str) -> str:
    """The text with line breaks and control characters escaped.

    A message may quote the user's text. It must not look like another problem, and must not control the terminal.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def shortened(text: str, longest_line: int = 2000) -> str:
    """The text, with the middle of long lines left out: a message may quote a value of any length.

    >>> shortened("x" * 5000, 20)
    'xxxxxxxxxx [4,980 characters left out] xxxxxxxxxx'
    """
    return "\n".join(_shortened_line(line, longest_line) for line in text.split("\n"))


def _shortened_line(line: str, longest: int) -> str:
    if len(line) <= longest:
        return line
    half = longest // 2
    return f"{line[:half]} [{len(line) - 2 * half:,} characters left out] {line[-half:]}"


class ListsFields:
    """Base of dataclasses that a user's method receives: the error for an attribute they lack lists their fields."""

    # Hidden from type checkers, which would take it as a sign that every attribute exists.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            kind = type(self)
            fields = [entry.name for entry in dataclasses.fields(kind)]
            properties = [key for key, value in vars(kind).items() if isinstance(value, property)]
            raise AttributeError(
                f"{kind.__name__} has no `{name}`. It has {', '.join([*fields, *properties])}; see "
                "docs/adding-a-method.md (What a loss receives).",
                name=name,
            )


def nearest(name: str, allowed: Iterable[str], heading: str = "Allowed") -> str:
    """A sentence for an unknown name: the nearest match, if any, and then the allowed names.

    Of many names, only the nearest are listed if one is very near: a long list would hide the answer.

    Args:
        heading: introduces the names, such as "Found" for names that a file has.

    >>> nearest("bradly_terry", ["bradley_terry", "longest"])
    "Did you mean 'bradley_terry'? Allowed: bradley_terry, longest."
    >>> nearest("bradly_terry", ["bradley_terry", "longest", *"abcdefgh"])
    "Did you mean 'bradley_terry'? Allowed: b, bradley_terry, longest and 7 more."
    """
    allowed = sorted(allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1, cutoff=_NEAR)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    if not allowed and heading == "Allowed":
        return "No name can be given here; leave it out."
    if len(allowed) > _MANY and difflib.get_close_matches(str(name), close, cutoff=_VERY_NEAR):
        shown = sorted(difflib.get_close_matches(str(name), allowed, n=_SHOWN, cutoff=0))
        return f"{hint}{heading}: {', '.join(shown)} and {len(allowed) - _SHOWN} more."
    return f"{hint}{heading}: {', '.join(allowed) or 'nothing'}."


def nearest_path(path: str | os.PathLike, *, folders_only: bool = False) -> str:
    """A sentence that names the file or folder with the nearest name beside a missing one, after a blank; "" if none is
    near.

    If a folder of the path is missing, the nearest name of that folder is given.
    """
    missing = Path(path)
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    try:
        names = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir() or not folders_only]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, sorted(names), n=1, cutoff=0.75)
    return f" Did you mean '{missing.parent / close[0]}'?" if close else ""
