"""Where the progress is shown: a few lines that are redrawn on a terminal, or a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

from rm_methods.system.progress import clock
from rm_methods.terminal.jobs import Estimate, Job, Jobs

_SHOWN_JOBS = 6
_SECONDS_BETWEEN_LINES = 30.0
_BAR_WIDTH = 30
_SHORTEST_BAR = 5


class PlainScreen:
    """A line every 30 seconds, without control characters."""

    def __init__(self, stream: TextIO, interval: float = _SECONDS_BETWEEN_LINES):
        self.stream = stream
        self.interval = interval
        self.printed: float | None = None

    def update(self, jobs: Jobs) -> None:
        now = time.monotonic()
        if self.printed is None:
            self.printed = now
        elif now - self.printed >= self.interval:
            self.printed = now
            self.write("  ".join(part for part in (count_text(jobs), left_text(jobs), *running_texts(jobs, 2)) if part))

    def write(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing is left on the screen."""


class LiveScreen:
    """Lines at the bottom of the terminal, redrawn; what is printed goes above them."""

    def __init__(self, stream: TextIO, color: bool):
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=stream, no_color=not color, highlight=False)
        self.live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )

    def update(self, jobs: Jobs) -> None:
        from rich.text import Text

        numbers = f"{count_text(jobs)}  {left_text(jobs)}".rstrip()
        # The bar takes what the numbers leave: two brackets and two spaces are around it.
        width = min(_BAR_WIDTH, self.console.width - len(numbers) - 4)
        bar = f"{_bar(jobs, width)}  " if width >= _SHORTEST_BAR else ""
        lines = [Text(bar + numbers, style="bold")]
        lines.append(Text("  " + stages_text(jobs)))
        lines += [Text(f"  > {text}", style="dim") for text in running_texts(jobs, _SHOWN_JOBS)]
        if not self.live.is_started:
            self.live.start()
            # A terminal whose Snakemake was killed keeps its cursor.
            self.console.show_cursor(True)
        # A line that is too long is cut: a wrapped one would leave traces when it is redrawn.
        self.live.update(Text("\n", no_wrap=True, overflow="ellipsis").join(lines), refresh=True)

    def write(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        if self.live.is_started:
            self.live.stop()


def count_text(jobs: Jobs) -> str:
    return f"{clock(jobs.elapsed)}  {jobs.done} of {jobs.total} jobs"


def stages_text(jobs: Jobs) -> str:
    """Done and planned jobs of each stage: "prepare 4/4, train 3/53"."""
    return ", ".join(f"{stage} {done}/{total}" for stage, (done, total) in jobs.stages().items())


def left_text(jobs: Jobs) -> str:
    """The time that is left, or nothing while too little is known."""
    if jobs.done >= jobs.total:
        return ""
    estimate = jobs.estimate()
    return "" if estimate is None else estimate_text(estimate)


def estimate_text(estimate: Estimate) -> str:
    """ "about 3 min left", "about 3 to 5 min left", "at least 3 min left", and how many rules are only guessed."""
    if estimate.most is not None:
        text = f"about {_span(estimate.least, estimate.most)} left"
    else:
        text = f"at least {_at_least(estimate.least)} left"
    if len(estimate.not_timed) > 1:
        text += f" ({len(estimate.not_timed)} kinds of jobs not timed yet)"
    elif estimate.not_timed:
        text += f" (not timed yet: {estimate.not_timed[0]})"
    return text


def _at_least(seconds: float) -> str:
    """A duration rounded down: to ten seconds, from one minute on to minutes, from one hour on to ten minutes."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 60:
        return f"{10 * int(seconds // 10)} s"
    step = 10 if seconds >= 3600 else 1
    return _minutes(step * int(seconds // 60 // step))


def _span(least: float, most: float) -> str:
    """Two durations in whole minutes, or in steps of ten minutes from one hour on."""
    if most < 60:
        return "a minute"
    step = 10 if most >= 3600 else 1
    low = max(step, step * round(least / 60 / step))
    high = max(step, step * math.ceil(most / 60 / step - 0.5))
    return _minutes(high) if low >= high else f"{_minutes(low, high)} to {_minutes(high)}"


def _minutes(minutes: int, beside: int = 0) -> str:
    """Minutes in words; the unit is left out beside a number with the same unit."""
    if minutes < 60:
        return str(minutes) if 0 < beside < 60 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def running_texts(jobs: Jobs, most: int) -> list[str]:
    """The running jobs, those that run longest first, each with its progress, and the number of queued ones."""
    running = sorted((job for job in jobs.running.values() if not job.queued), key=lambda job: job.started)
    queued = sum(job.queued for job in jobs.running.values())
    texts = [_job_text(jobs, job) for job in running[:most]]
    if len(running) > most:
        texts.append(f"and {len(running) - most} more running")
    if queued:
        texts.append(f"{queued} queued")
    return texts


def _job_text(jobs: Jobs, job: Job) -> str:
    progress = jobs.progress(job)
    details = [clock(jobs.clock() - job.started)]
    if progress is not None:
        details.insert(0, str(progress))
    return f"{job.title} ({', '.join(details)})"


def _bar(jobs: Jobs, width: int) -> str:
    filled = width * jobs.done // max(1, jobs.total)
    return "[" + "#" * filled + "." * (width - filled) + "]"
