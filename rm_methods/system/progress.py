"""A line on stderr every few seconds, with the time that is left."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts the work that is done and prints it.

    Args:
        label: starts every line.
        total: units of work in all.
        done: units that an earlier part of a resumed run has done.
        unit: name of the units in the plural, printed after the numbers.
        interval: seconds between two lines.
        print_end: print a line when the work is complete, however short the interval was.
    """

    def __init__(
        self, label: str, total: int, done: int = 0, *, unit: str = "", interval: float = 5.0, print_end: bool = True
    ):
        self.label = label
        self.total = total
        self.done = done
        self.done_before = done
        self.unit = unit
        self.interval = interval
        self.print_end = print_end
        self.started = time.monotonic()
        self.printed = self.started

    def advance(self, amount: int, text: str = "") -> None:
        """Count `amount` more units.  `text` is printed in the line."""
        self.done += amount
        now = time.monotonic()
        is_end = self.done >= self.total and self.print_end
        if now - self.printed < self.interval and not is_end:
            return
        self.printed = now
        elapsed = now - self.started
        remaining = elapsed / max(self.done - self.done_before, 1) * (self.total - self.done)
        count = f"{self.done}/{self.total} {self.unit}".rstrip()
        parts = [f"{self.label}: {count}", text, f"elapsed {clock(elapsed)}", f"ETA {clock(remaining)}"]
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds, from one hour on with hours: 2:05, 1:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
