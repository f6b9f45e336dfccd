"""What the log of a job says: how far it is, and why it failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 4096
_FAILURE_BYTES = 262_144
_LONGEST_LINES = 12  # of a message, such as a list of problems
# "bradley_terry seed 0: 12/39 steps  loss 0.61  elapsed 0:04  ETA 0:09": rm_methods/system/progress.py.
_PROGRESS = re.compile(r"(\d+)/(\d+)\s*(\w*).*?ETA ((?:\d+:)?\d+:\d\d)")
_OUR_MESSAGE = re.compile(r"^(?:\[rank\d+\]:\s*)?rm-methods: ")
_EXCEPTION = re.compile(r"^(?:\[rank\d+\]:\s*)?(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b")
# Of the launcher of several processes, which follow the error itself.
_OF_LAUNCHER = ("ChildFailedError", "SignalException", "torch.distributed.elastic")
_KILLED = re.compile(r"oom[-_ ]kill|out of memory|CANCELLED|DUE TO TIME LIMIT|Killed", re.IGNORECASE)


@dataclass(frozen=True)
class LogProgress:
    """Units of work done and in all, their name, and the seconds left that the job itself expects."""

    done: int
    total: int
    unit: str
    seconds_left: float

    def __str__(self) -> str:
        return f"{self.unit.removesuffix('s')} {self.done}/{self.total}".strip()


def log_progress(log: Path) -> LogProgress | None:
    """The last progress in a job's log; None if it has none, or cannot be read."""
    lines = _end_of(log, _TAIL_BYTES).splitlines()
    for line in reversed(lines):
        if match := _PROGRESS.search(line):
            done, total, unit, left = match.groups()
            seconds = 0
            for part in left.split(":"):
                seconds = 60 * seconds + int(part)
            return LogProgress(int(done), int(total), unit, float(seconds))
    return None


def failure_reason(logs: Sequence[Path]) -> list[str]:
    """The lines that say why a job failed: the message of rm-methods, an exception, or the last line of a log.

    Args:
        logs: of the job, then those of the cluster; the first that says something counts.
    """
    texts = [_end_of(log, _FAILURE_BYTES) for log in logs]
    for find in (_our_message, _exception, _kill, _last_line):
        for text in texts:
            if lines := find(text.splitlines()):
                return lines[:_LONGEST_LINES]
    return []


def _our_message(lines: Sequence[str]) -> list[str]:
    """The last `rm-methods: ...` line, and the indented list below it."""
    starts = [index for index, line in enumerate(lines) if _OUR_MESSAGE.match(line)]
    if not starts:
        return []
    first = starts[-1]
    message = [_OUR_MESSAGE.sub("", lines[first])]
    for line in lines[first + 1 :]:
        if not line.startswith("  "):
            break
        message.append(line.rstrip())
    return message


def _exception(lines: Sequence[str]) -> list[str]:
    for line in reversed(lines):
        if _EXCEPTION.match(line) and not any(word in line for word in _OF_LAUNCHER):
            return [line.strip()]
    return []


def _kill(lines: Sequence[str]) -> list[str]:
    return next(([line.strip()] for line in reversed(lines) if _KILLED.search(line)), [])


def _last_line(lines: Sequence[str]) -> list[str]:
    return next(([line.strip()] for line in reversed(lines) if line.strip() and not _PROGRESS.search(line)), [])


def _end_of(path: Path, size: int) -> str:
    """The last bytes of a file as text; empty if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - size))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
