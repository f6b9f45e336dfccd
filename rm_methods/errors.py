"""Errors a user can act on.  The command line prints their text and exits with 2: no traceback as the interface."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong.  The text says what, the value seen, what is allowed, and what to do."""


class DataError(UserError):
    """A data file or row is wrong.  The text names the file and the row (counted from 1)."""


class ConfigError(UserError):
    """One or more configuration values are wrong; all of them are reported together.

    Args:
        problems: one sentence each, beginning with the key path (``training.epochs: ...``).
        source: where the configuration came from, for the first line.
    """

    def __init__(self, problems: Iterable[str], source: str = "the configuration"):
        self.problems = [_on_one_line(problem) for problem in problems]
        count = len(self.problems)
        lines = [f"{count} problem{'s' if count != 1 else ''} in {source}:", *(f"  - {p}" for p in self.problems)]
        super().__init__("\n".join(lines))


def _on_one_line(text: str) -> str:
    """A text of the user's with line breaks and control characters escaped: it must not look like another problem or reach the terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def shortened(text: str, longest_line: int = 2000) -> str:
    """The text with the middle left out of lines that are longer: a message may quote a value of any length.

    >>> shortened("x" * 5000, 20)
    'xxxxxxxxxx [4,980 characters left out] xxxxxxxxxx'
    """
    half = longest_line // 2
    return "\n".join(
        line
        if len(line) <= longest_line
        else f"{line[:half]} [{len(line) - 2 * half:,} characters left out] {line[-half:]}"
        for line in text.split("\n")
    )


def nearest(name: str, allowed: Iterable[str], heading: str = "Allowed") -> str:
    """A sentence for an unknown name: the nearest match if there is one, then everything that is allowed (or what `heading` says).

    >>> nearest("bradly_terry", ["bradley_terry", "longest"])
    "Did you mean 'bradley_terry'? Allowed: bradley_terry, longest."
    """
    allowed = sorted(allowed)
    close = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}{heading}: {', '.join(allowed) or 'nothing'}."
