"""Odd words in place of the value of an option, for every verb."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from tests.fuzz.changes import ODD_WORDS, Change
from tests.fuzz.subjects.base import Outcome, Subject, run, written


class Arguments(Subject):
    """Another subject whose files are valid, and one of whose options has an odd value.

    Attributes:
        inner: the other subject.
    """

    odd_folders = 0.0
    inner: Subject
    _changed: tuple[int, str] | None = None

    @property
    def is_slow(self) -> bool:  # type: ignore[override]
        return self.inner.is_slow

    def build(self, folder):
        self._changed = None
        self.inner.build(folder)

    def targets(self, folder):
        return self.inner.targets(folder)

    def arguments(self, folder):
        arguments = [str(argument) for argument in self.inner.arguments(folder)]
        if self._changed is not None:
            position, word = self._changed
            arguments[position] = word
        return arguments

    def run(self, folder: Path) -> Outcome:
        return run(self.arguments(folder), folder)  # an odd word may name a file to write

    def change(self, rng: Random, folder: Path) -> Change:
        arguments = self.arguments(folder)
        is_option = [argument.startswith("--") for argument in arguments]
        values = [k for k in range(1, len(arguments)) if is_option[k - 1] and not is_option[k]]
        position = rng.choice(values)
        word = rng.choice([*ODD_WORDS, "pipe"])
        if word == "pipe":
            os.mkfifo(folder / word)
        self._changed = (position, word)
        option = arguments[position - 1]
        return Change(f"{option} {word[:40]!r}", (option, *written(word)))

    def result(self, folder, outcome):
        return None
