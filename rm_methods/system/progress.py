"""A line on stderr every few seconds, with the time that is left."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts what is done and prints it.

    Args:
        label: starts every line.
        total: units of work in all.
        done: units that were done before (a resumed run).
        every: seconds between lines; the last unit always prints one.
    """

    def __init__(self, label: str, total: int, done: int = 0, every: float = 5.0):
        self.label, self.total, self.done, self.before, self.every = label, total, done, done, every
        self.started = self.printed = time.monotonic()

    def advance(self, amount: int, text: str = "") -> None:
        """Count `amount` more units; `text` stands in the line."""
        self.done += amount
        now = time.monotonic()
        if now - self.printed < self.every and self.done < self.total:
            return
        self.printed = now
        elapsed = now - self.started
        remaining = elapsed / max(self.done - self.before, 1) * (self.total - self.done)
        text = f"  {text}" if text else ""
        print(
            f"{self.label}: {self.done}/{self.total}{text}  elapsed {clock(elapsed)}  ETA {clock(remaining)}",
            file=sys.stderr,
            flush=True,
        )


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 2:05, 1:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
