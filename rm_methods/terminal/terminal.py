"""What the terminal shows of a workflow, from the records of Snakemake's logger.

The records come one after the other from a thread of Snakemake; a second thread redraws the progress.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TextIO

from snakemake_interface_logger_plugins.common import LogEvent

from rm_methods.system.progress import clock
from rm_methods.terminal.dry_run import PlannedJob, dry_run_text
from rm_methods.terminal.failures import Failure, failure_of, failure_text
from rm_methods.terminal.jobs import Jobs
from rm_methods.terminal.mistakes import explained, how_to_continue
from rm_methods.terminal.screen import LiveScreen, PlainScreen, stages_text

_SECONDS_BETWEEN_UPDATES = 1.0
_KEPT_COMMANDS = 20
_LOG_FILE = "Complete log(s):"
_RESTARTED = "Trying to restart job "
# Snakemake's messages that the display says better, or that nobody needs.  Its log file keeps them.
_NOISE = (
    "Assuming unrestricted shared filesystem",
    "Building DAG of jobs",
    "Using shell:",
    "Select jobs to execute",
    "Shutting down, this might take some time",
    "Exiting because a job execution failed",
    _LOG_FILE,
    "Elapsed time:",
    "Reasons:",
    "This was a dry-run",
    _RESTARTED,
    "Removing output files of failed job",
)


class Terminal:
    """Shows progress, failures and mistakes.

    Args:
        settings: Snakemake's output settings.  With `--printshellcmds`, `--verbose` or `--debug-dag`, Snakemake's own
            text is printed in place of the progress.
        stream: to print to; default stderr, stdout in a dry run.
    """

    def __init__(self, settings: Any, stream: TextIO | None = None):
        self.settings = settings
        self.stream = stream or (sys.stdout if settings.stdout else sys.stderr)
        quiet = {str(getattr(entry, "name", entry)).lower() for entry in settings.quiet or ()}
        self.is_silent = "all" in quiet
        self.shows_progress = not quiet & {"all", "progress", "rules"}
        self.is_raw = bool(settings.printshellcmds or settings.verbose or settings.debug_dag)
        self.jobs = Jobs()
        self.screen: PlainScreen | LiveScreen = PlainScreen(self.stream)
        self.failures: dict[int, Failure] = {}
        self.commands: deque[str] = deque(maxlen=_KEPT_COMMANDS)
        self.planned: list[PlannedJob] = []
        self.table = ""
        self.folder = Path(".")
        self.log_file = ""
        self.on_cluster = False
        self.was_stopped = False
        self.ended_text_was_written = False
        self.filter = _snakemakes_filter(settings) if self.is_raw else None
        self.lock = threading.RLock()
        self.ended = threading.Event()
        self.ticker: threading.Thread | None = None

    def receive(self, record: logging.LogRecord, formatted: Callable[[logging.LogRecord], str]) -> None:
        """Take a record.

        Args:
            formatted: gives Snakemake's own text of a record.
        """
        with self.lock:
            take = self._HANDLERS.get(getattr(record, "event", None), Terminal._message)
            take(self, record, formatted)
            if self.filter is not None and self.filter.filter(record):
                self._write(formatted(record))

    def close(self) -> None:
        """Say how the workflow ended.  This is the last thing on the screen."""
        self.ended.set()
        if self.ticker is not None:
            self.ticker.join(timeout=5)
        with self.lock:
            if self.ended_text_was_written:
                return
            self.ended_text_was_written = True
            self.screen.close()
            if text := self._end():
                self._write(text)

    def release(self) -> None:
        """Leave the terminal as it was, because the display failed."""
        self.ended.set()
        self.screen.close()

    def _write(self, text: str | None) -> None:
        if text and text != "None":
            self.screen.write(text)

    def _say(self, text: str) -> None:
        """Print, unless Snakemake's own text is shown."""
        if not self.is_raw and not self.is_silent:
            self._write(text)

    def _end(self) -> str:
        if self.settings.dryrun:
            shows_plan = self.table and not self.is_raw and not self.is_silent
            return dry_run_text(self.table, self.planned) if shows_plan else ""
        if self.was_stopped and not self.failures:
            return (
                f"Stopped after {self.jobs.done} of {self.jobs.total} jobs, {clock(self.jobs.elapsed)}. "
                + how_to_continue()
            )
        if self.failures:
            log = f"\nSnakemake's log: {self.log_file}" if self.log_file else ""
            return "\n" + failure_text(list(self.failures.values()), self.jobs.done, self.jobs.total) + log
        if self.is_silent or not self.jobs.total:
            return ""
        if self.jobs.done < self.jobs.total:
            return f"Ended after {self.jobs.done} of {self.jobs.total} jobs, {clock(self.jobs.elapsed)}."
        plural = "" if self.jobs.done == 1 else "s"
        return f"{self.jobs.done} job{plural} done in {clock(self.jobs.elapsed)}."

    def _workflow(self, record: Any, _formatted: Any) -> None:
        snakefile = getattr(record, "snakefile_main", None) or getattr(record, "snakefile", None)
        if snakefile:
            self.folder = Path(str(snakefile)).parent

    def _resources(self, record: Any, _formatted: Any) -> None:
        self.on_cluster = self.on_cluster or hasattr(record, "nodes")

    def _plan(self, record: Any, formatted: Any) -> None:
        self.table = formatted(record)
        self.jobs.plan(record.stats)
        if not self.settings.dryrun and self.shows_progress and not self.is_raw:
            self._start_screen()

    def _start_screen(self) -> None:
        is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        count = self.jobs.total
        self._write(f"{count} job{'s' if count != 1 else ''}: {stages_text(self.jobs).replace('0/', '')}")
        if is_terminal:
            self.screen = LiveScreen(self.stream, color=not self.settings.nocolor)
        self.ticker = threading.Thread(target=self._tick, name="rm-methods progress", daemon=True)
        self.ticker.start()

    def _tick(self) -> None:
        """Redraw the progress until the end; an error ends the drawing and nothing else."""
        try:
            while not self.ended.wait(_SECONDS_BETWEEN_UPDATES):
                with self.lock:
                    self.jobs.look()
                    self.screen.update(self.jobs)
        except Exception:
            with self.lock:
                self.release()

    def _job(self, record: Any, _formatted: Any) -> None:
        title = record.rule_msg or record.rule_name
        if self.settings.dryrun:
            self.planned.append(PlannedJob(record.rule_name, title, record.reason))
            return
        self.failures.pop(record.jobid, None)  # of an earlier attempt
        may_wait = self.on_cluster and not record.local
        self.jobs.start(record.jobid, record.rule_name, title, _paths(record.log), may_wait=may_wait)

    def _finished(self, record: Any, _formatted: Any) -> None:
        self.jobs.finish(record.job_id)
        if self.jobs.done >= self.jobs.total:
            # The tables of the workflow follow.
            self.ended.set()
            self.screen.close()

    def _failed(self, record: Any, _formatted: Any) -> None:
        job = self.jobs.drop(record.jobid)
        if self.was_stopped:
            return  # the user ended it
        title = job.title if job is not None else f"{record.rule_name} (job {record.jobid})"
        failure = failure_of(title, _paths(record.log), record.rule_msg, self.commands)
        self.failures[record.jobid] = failure
        log = f"  Log: {failure.log}" if failure.log else ""
        self._say(f"FAILED: {title}: {failure.reason[0]}{log}")

    def _error(self, record: Any, formatted: Any) -> None:
        text = formatted(record)
        exception = getattr(record, "exception", "")
        if exception == "CalledProcessError" or "CalledProcessError" in text:
            self.commands.append(text)
            return
        self.was_stopped = self.was_stopped or exception == "KeyboardInterrupt"
        if (explanation := explained(exception, text, self.folder)) and not self.is_raw:
            self._write(explanation)

    def _message(self, record: Any, formatted: Any) -> None:
        text = formatted(record)
        if not text or self.is_raw:
            return
        if text.startswith(_LOG_FILE):
            self.log_file = text.removeprefix(_LOG_FILE).strip()
        if text.startswith(_RESTARTED):
            self._say("It is tried again.")
        if "user request" in text:
            self.was_stopped = True
        is_detail = record.levelno < logging.INFO or text.strip().startswith(_NOISE)
        if not is_detail and (record.levelno >= logging.WARNING or not self.is_silent):
            self._write(text)

    def _ignore(self, record: Any, formatted: Any) -> None:
        """The display tells this in another way."""

    _HANDLERS: ClassVar[dict[Any, Callable[..., None]]] = {
        LogEvent.WORKFLOW_STARTED: _workflow,
        LogEvent.RESOURCES_INFO: _resources,
        LogEvent.RUN_INFO: _plan,
        LogEvent.JOB_INFO: _job,
        LogEvent.JOB_STARTED: _ignore,
        LogEvent.JOB_FINISHED: _finished,
        LogEvent.JOB_ERROR: _failed,
        LogEvent.ERROR: _error,
        LogEvent.SHELLCMD: _ignore,
        LogEvent.DEBUG_DAG: _ignore,
        LogEvent.PROGRESS: _ignore,
        LogEvent.RULEGRAPH: _ignore,
        LogEvent.GROUP_INFO: _ignore,
    }


def _paths(files: Any) -> list[Path]:
    return [Path(str(file)) for file in files or ()]


def _snakemakes_filter(settings: Any) -> logging.Filter:
    from snakemake.logging import DefaultFilter

    return DefaultFilter(settings.quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds)
