"""What a fuzzed verb is: a small valid input, its command line, and what must be true of an answer to a changed one."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import shlex
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from click.testing import CliRunner

from rm_methods.cli import main
from tests.fuzz.changes import Change, change_file

SECONDS = int(os.environ.get("RM_METHODS_FUZZ_SECONDS", "120"))  # for one verb; a shared machine may be slow
MEMORY = 6 * 2**30  # bytes of the whole test process
LONGEST_MESSAGE = 6000  # characters: a message that quotes a whole file is no message


@dataclass(frozen=True)
class Outcome:
    """What a verb answered.

    Attributes:
        code: exit status.
        output: stdout.
        text: stdout and stderr.
        error: the exception that the command line let through, if any.
    """

    code: int
    output: str
    text: str
    error: BaseException | None


class Hang(BaseException):
    """A verb did not answer in time. Not an `Exception`, so that no handler of the verb takes it for an error."""


def run(arguments: list, folder: Path | None = None) -> Outcome:
    """Run a verb in this process.

    Args:
        folder: working directory of the verb; None stays in the current one.
    """
    with _limited(), contextlib.chdir(folder or Path.cwd()):
        try:
            result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        except Hang as hang:
            return Outcome(-1, "", "", hang)
    error = None if isinstance(result.exception, SystemExit) else result.exception
    return Outcome(result.exit_code, result.stdout, result.output, error)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise `Hang` after `SECONDS`, and `MemoryError` beyond `MEMORY` (a device has no end).

    If the verb waits in a library that ignores the signal, the process ends with a traceback.
    """

    def stop(*_):
        raise Hang(f"no answer within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, limits[1]))
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Subject(ABC):
    """One verb on one kind of input.

    Attributes:
        name: "<verb>/<kind of input>".
        seeds: folder of the finished experiments that inputs are taken from.
        unchanged: what the verb makes of the valid input.
        input_name: what a message may name instead of the file, as a model's folder is one thing to its user.
        has_checksums: a harmless change of a file may be refused, because its bytes are not those that were written.
    """

    name: str
    seeds: Path
    unchanged: Any = field(default=None, init=False)
    study: ClassVar[str] = "finished"  # the fixture that gives `seeds`
    weight: ClassVar[float] = 1.0  # inputs, relative to other subjects
    is_slow: ClassVar[bool] = False  # starts a process; one input is enough for the short run
    odd_folders: ClassVar[float] = 0.08  # share of inputs in which only the name of their folder is odd
    has_checksums: ClassVar[bool] = False
    input_name: ClassVar[str] = ""

    @property
    def valid_folder(self) -> Path:
        """Folder with the valid input."""
        return self.seeds / "valid" / self.name.replace("/", "_")

    @abstractmethod
    def build(self, folder: Path) -> None:
        """Write a valid input into `folder`."""

    @abstractmethod
    def targets(self, folder: Path) -> list[Path]:
        """The files that may be changed."""

    @abstractmethod
    def arguments(self, folder: Path) -> list:
        """The command line."""

    def change(self, rng: Random, folder: Path) -> Change:
        """Change the input in `folder`."""
        files = self.targets(folder)
        file = rng.choice(files)
        return change_file(rng, file, [other for other in files if other != file])

    def command(self, folder: Path) -> str:
        """The command line for a shell."""
        return f"rm-methods {shlex.join(map(str, self.arguments(folder)))}"

    def run(self, folder: Path) -> Outcome:
        """Run the verb on the input in `folder`."""
        return run(self.arguments(folder))

    def outputs(self, folder: Path) -> list[Path]:
        """Files that must not be there after a refusal."""
        return [folder / "out"]

    @abstractmethod
    def result(self, folder: Path, outcome: Outcome) -> Any:
        """What the verb made, so that two runs can be compared; paths of the folder are left out."""

    def wrong(self, folder: Path, change: Change, outcome: Outcome, result: Any) -> str | None:
        """What is wrong with a result that the verb gave for a changed input; None if nothing is."""
        return None

    def judge(self, folder: Path, change: Change, outcome: Outcome) -> str | None:
        """What is wrong with the answer to a changed input."""
        if isinstance(outcome.error, Hang):
            return f"hang: {outcome.error}"
        if outcome.error is not None or "Traceback (most recent call last)" in outcome.text:
            return f"traceback: {type(outcome.error).__name__}: {str(outcome.error)[:300]}"
        if outcome.code == 2:
            return self._wrong_refusal(folder, change, outcome)
        if outcome.code != 0:
            return f"exit status {outcome.code}: {outcome.text[-300:]}"
        try:
            result = self.result(folder, outcome)
            if change.harmless and result != self.unchanged:
                return f"a harmless change gives another result: {str(result)[:300]} {str(self.unchanged)[:300]}"
            return self.wrong(folder, change, outcome, result)
        except Exception as error:
            return f"what was accepted cannot be judged: {type(error).__name__}: {str(error)[:300]}"

    def _wrong_refusal(self, folder: Path, change: Change, outcome: Outcome) -> str | None:
        message = outcome.text.replace(str(folder), "")
        if change.harmless and not (self.has_checksums and ("SHA256SUMS" in message or "SHA-256" in message)):
            return f"a harmless change is refused: {message[-300:]}"
        if len(message) > LONGEST_MESSAGE:
            return f"a message of {len(message)} characters: {message[:300]}"
        names = [*change.names, Path(change.names[0]).stem.replace("_", " "), change.folder, self.input_name]
        if not any(name in message for name in names if name):
            return f"the message names none of {change.names}: {message[-600:]}"
        if left := [path.name for path in self.outputs(folder) if path.exists() and any(path.rglob("*"))]:
            return f"refused, but {left} was written"
        return None


def written(word: str) -> list[str]:
    """How a message may write the beginning of a word; nothing for an empty one, which only its option can name."""
    start = word[:20]
    ways = (start, repr(start)[1:-1], start.encode("unicode_escape").decode("ascii"), json.dumps(start)[1:-1])
    return [way for way in ways if way.strip()]


def without_paths(value: Any, folder: Path) -> Any:
    """A JSON-like value with the folder's path left out of its texts."""
    return json.loads(json.dumps(value).replace(json.dumps(str(folder))[1:-1], ""))


def values_of(key: str, value: Any) -> list:
    """Every value that stands under a key of this name anywhere in a JSON-like value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    here = [value[key]] if isinstance(value, dict) and key in value else []
    return here + [hit for child in inner for hit in values_of(key, child)]


def texts_of(value: Any) -> list[str]:
    """Every text inside a JSON-like value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for child in inner for text in texts_of(child)]


def same(first: Any, second: Any) -> bool:
    """Whether two JSON-like values are equal, and of one type: True is not 1."""
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
