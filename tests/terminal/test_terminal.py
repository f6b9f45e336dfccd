"""What the terminal shows of a workflow, from records as Snakemake 9.27 sends them."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from snakemake.persistence.file import FilePersistence
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.tests import MockOutputSettings, TestLogHandlerBase

import snakemake_logger_plugin_rm_methods as plugin
from rm_methods.terminal import terminal as module
from rm_methods.terminal.screen import LiveScreen, PlainScreen
from rm_methods.terminal.terminal import Terminal


class TestPlugin(TestLogHandlerBase):
    """The tests that the interface brings for every plugin."""

    __test__ = True

    def get_log_handler_cls(self):
        return plugin.LogHandler

    def get_log_handler_settings(self):
        return None


def settings(**changes):
    given = MockOutputSettings()
    given.printshellcmds = False
    for name, value in changes.items():
        setattr(given, name, value)
    return given


class Snakemake:
    """Sends records to a terminal that writes to `stream`."""

    def __init__(self, stream=None, **changes):
        self.stream = stream or io.StringIO()
        self.terminal = Terminal(settings(**changes), self.stream)

    def send(self, event=None, msg="", level=logging.INFO, **extra):
        record = logging.LogRecord("snakemake", level, "x.py", 1, msg, (), None)
        record.__dict__.update(extra)
        if event is not None:
            record.event = event
        self.terminal.receive(record, lambda record: record.msg)

    def plan(self, **stats):
        total = sum(stats.values())
        self.send(LogEvent.RUN_INFO, "Job stats:\nTABLE\n", stats={**stats, "all": 1, "total": total + 1})

    def start(self, number, rule="train", title=None, log=(), reason=""):
        self.send(
            LogEvent.JOB_INFO, jobid=number, rule_name=rule, rule_msg=title or f"{rule} {number}", log=list(log),
            local=True, reason=reason,
        )  # fmt: skip

    def finish(self, number):
        self.send(LogEvent.JOB_FINISHED, job_id=number)

    def fail(self, number, rule="train", log=(), message=None):
        self.send(
            LogEvent.JOB_ERROR, level=logging.ERROR, jobid=number, rule_name=rule, rule_msg=message, log=list(log)
        )

    def end(self):
        self.terminal.close()
        return self.stream.getvalue()


@pytest.fixture
def log(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_a_workflow_that_ends_well_is_a_few_plain_lines():
    workflow = Snakemake()
    workflow.send(msg="Building DAG of jobs...")
    workflow.plan(prepare=1, train=2)
    for number, rule in enumerate(("prepare", "train", "train")):
        workflow.start(number, rule)
        workflow.finish(number)
    workflow.send(msg="Complete log(s): /x/y.log")
    assert workflow.end().splitlines() == ["3 jobs: prepare 1, train 2", "3 jobs done in 0:00."]


def test_a_failure_is_told_at_once_and_again_as_the_last_thing(log):
    workflow = Snakemake()
    workflow.plan(train=3)
    path = log("a.log", "rm-methods: the loss is NaN.\n")
    workflow.start(1, title="Train x, seed 1", log=[path])
    workflow.send(LogEvent.ERROR, f"CalledProcessError: > {path}", logging.ERROR, exception="CalledProcessError")
    workflow.fail(1, log=[path])
    workflow.send(msg="Exiting because a job execution failed. Look above", level=logging.ERROR)
    workflow.send(
        LogEvent.ERROR, "WorkflowError:\nAt least one job did not complete successfully.", logging.ERROR,
        exception="WorkflowError",
    )  # fmt: skip
    lines = workflow.end().splitlines()
    assert lines[1] == f"FAILED: Train x, seed 1: the loss is NaN.  Log: {path}"
    assert lines[2:] == [
        "",
        "1 job failed; 0 of 3 are done.",
        "",
        "Train x, seed 1",
        "    the loss is NaN.",
        f"  Log: {path}",
        "",
        "When the cause is gone, run the same command again: finished jobs stay, and trainings continue from their "
        "last checkpoint.",
    ]


def test_a_failure_without_a_log_names_none():
    workflow = Snakemake()
    workflow.plan(train=1)
    workflow.start(1, title="Train x, seed 1")
    workflow.fail(1)
    text = workflow.end()
    assert "FAILED: Train x, seed 1: The job has no log.\n" in text
    assert "Log:" not in text


def test_failures_with_the_same_reason_are_grouped(log):
    workflow = Snakemake()
    workflow.plan(train=9)
    for number in range(8):
        path = log(f"{number}.log", "ValueError: same\n" if number else "ValueError: other\n")
        workflow.start(number, log=[path])
        workflow.fail(number, log=[path])
    text = workflow.end()
    end = text[text.index("8 jobs failed") :]
    assert end.count("ValueError: same") == 1
    assert end.count("ValueError: other") == 1
    assert "and 2 more" in end


def test_a_killed_job_is_told_from_one_that_failed(log):
    workflow = Snakemake()
    workflow.plan(train=1)
    path = log("a.log", "loading\n")
    workflow.start(1, log=[path])
    workflow.send(
        LogEvent.ERROR, f"Command 'rm-methods train > {path}' died with <Signals.SIGKILL: 9>.", logging.ERROR,
        exception="CalledProcessError",
    )  # fmt: skip
    workflow.fail(1, log=[path])
    assert "The job was ended by SIGKILL; the kernel does so when memory runs out." in workflow.end()


def test_what_the_cluster_says_is_added(log):
    workflow = Snakemake()
    workflow.plan(train=1)
    workflow.start(1)
    workflow.fail(1, log=[log("a.log", "")], message="SLURM-job '7' failed, SLURM status is: 'TIMEOUT'. ")
    assert "SLURM status is: 'TIMEOUT'" in workflow.end()


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_job_that_is_tried_again_counts_as_failed_only_if_it_fails_again(ends_well):
    workflow = Snakemake()
    workflow.plan(train=1)
    workflow.start(4)
    workflow.fail(4)
    workflow.send(msg="Trying to restart job 4.")
    workflow.start(4)
    workflow.finish(4) if ends_well else workflow.fail(4)
    text = workflow.end()
    assert "It is tried again." in text
    assert ("1 job done" in text) == ends_well
    assert ("1 job failed" in text) != ends_well


def test_a_workflow_that_the_user_stopped_says_how_to_continue_and_has_no_failures():
    workflow = Snakemake()
    workflow.plan(train=2)
    workflow.start(1)
    workflow.finish(1)
    workflow.start(2)
    workflow.send(msg="Terminating processes on user request, this might take some time.")
    workflow.fail(2)
    text = workflow.end()
    assert text.splitlines()[-1] == "Stopped after 1 of 2 jobs, 0:00. Run the same command to continue."
    assert "FAILED" not in text


@pytest.mark.parametrize(
    ("marked", "is_left"),
    [("results/a/model", True), ("results/" + "long/" * 40 + "model", True), ("results/b", False), (None, False)],
)
def test_after_a_stop_results_of_jobs_that_ran_change_the_advice(marked, is_left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    persistence = FilePersistence(dag=None)
    if marked:
        persistence._mark_incomplete(marked, None)
    (tmp_path / ".snakemake" / "incomplete" / "migration_underway").touch()
    if is_left:
        Path(marked).mkdir(parents=True)
    workflow = Snakemake()
    workflow.plan(train=2)
    workflow.send(msg="Terminating processes on user request, this might take some time.")
    advice = "Run the same command to continue."
    if is_left:
        advice = "To continue, run the same command with --rerun-incomplete: jobs that ran left results."
    assert workflow.end().splitlines()[-1] == f"Stopped after 0 of 2 jobs, 0:00. {advice}"


def test_a_workflow_that_ends_early_does_not_claim_success():
    workflow = Snakemake()
    workflow.plan(train=2)
    workflow.start(1)
    workflow.finish(1)
    assert workflow.end().splitlines()[-1] == "Ended after 1 of 2 jobs, 0:00."


def test_mistakes_and_warnings_are_printed_and_details_are_not():
    workflow = Snakemake()
    for detail in (
        "Using shell: /bin/bash",
        "Select jobs to execute...",
        "Assuming unrestricted shared filesystem usage.",
    ):
        workflow.send(msg=detail)
    workflow.send(msg="Nothing to be done (all requested files are present and up to date).")
    workflow.send(msg="A warning", level=logging.WARNING)
    workflow.send(LogEvent.ERROR, "LockException:\nError", logging.ERROR, exception="LockException")
    lines = workflow.end().splitlines()
    assert lines[:2] == ["Nothing to be done (all requested files are present and up to date).", "A warning"]
    assert "snakemake --unlock" in lines[2]
    assert len(lines) == 3


def test_a_dry_run_is_a_table_and_reasons():
    workflow = Snakemake(dryrun=True)
    workflow.plan(train=1)
    workflow.start(1, title="Train x", reason="Missing output files: a")
    workflow.plan(train=1)
    text = workflow.end()
    assert text.count("TABLE") == 1
    assert "  Train x: no result yet (a)" in text


@pytest.mark.parametrize("quiet", [{"all"}, {Quietness.ALL}])
def test_quiet_leaves_only_failures(quiet, log):
    workflow = Snakemake(quiet=quiet)
    workflow.send(msg="Some information")
    workflow.plan(train=1)
    workflow.start(1)
    workflow.fail(1, log=[log("a.log", "rm-methods: no.\n")])
    text = workflow.end()
    assert text.startswith("\n1 job failed")


def test_on_request_snakemakes_own_text_is_printed():
    workflow = Snakemake(printshellcmds=True)
    workflow.plan(train=1)
    workflow.send(LogEvent.SHELLCMD, "rm-methods train ...")
    workflow.start(1)
    workflow.finish(1)
    text = workflow.end()
    assert "Job stats:\nTABLE" in text
    assert "rm-methods train ..." in text
    assert "1 job: " not in text


def test_progress_is_a_line_now_and_then_without_control_characters():
    workflow = Snakemake()
    workflow.plan(train=2)
    screen = workflow.terminal.screen
    assert isinstance(screen, PlainScreen)
    screen.interval = 0.0
    workflow.start(1, title="Train x, seed 0")
    screen.update(workflow.terminal.jobs)
    screen.update(workflow.terminal.jobs)
    text = workflow.end()
    assert "0:00  0 of 2 jobs  Train x, seed 0 (0:00)\n" in text
    assert "\x1b" not in text
    assert "\r" not in text


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_progress_is_redrawn_and_the_end_stays(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    workflow = Snakemake(FakeTerminal())
    workflow.plan(train=2)
    assert isinstance(workflow.terminal.screen, LiveScreen)
    workflow.start(1, title="Train x, seed 0")
    with workflow.terminal.lock:
        workflow.terminal.screen.update(workflow.terminal.jobs)
    for number in (1, 2):
        workflow.start(number)
        workflow.finish(number)
    text = workflow.end()
    assert "[..............................]  0:00  0 of 2 jobs" in text
    assert "> Train x, seed 0 (0:00)" in text
    assert text.rstrip().endswith("2 jobs done in 0:00.")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize(("columns", "bar"), [(150, 30), (100, 21), (80, 0)])
def test_the_bar_takes_what_the_numbers_leave(monkeypatch, columns, bar):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    workflow = Snakemake(FakeTerminal())
    numbers = "x" * 75
    monkeypatch.setattr("rm_methods.terminal.screen.count_text", lambda _: numbers)
    workflow.plan(train=1)
    with workflow.terminal.lock:
        workflow.terminal.screen.update(workflow.terminal.jobs)
    text = workflow.end()
    assert (f"[{'.' * bar}]  {numbers}" if bar else numbers) in text
    assert ("[." in text) == bool(bar)
    assert "…" not in text


def test_lines_that_are_longer_than_the_terminal_are_cut(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    workflow = Snakemake(FakeTerminal())
    workflow.plan(train=2)
    workflow.start(1, title="Train " + "x" * 100)
    with workflow.terminal.lock:
        workflow.terminal.screen.update(workflow.terminal.jobs)
    text = workflow.end()
    assert "x" * 20 in text
    assert "x" * 50 not in text
    assert "…" in text


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    workflow = Snakemake(FakeTerminal())
    workflow.plan(train=2)
    assert isinstance(workflow.terminal.screen, PlainScreen)
    workflow.end()


def record(msg):
    return logging.LogRecord("snakemake", logging.INFO, "x.py", 1, msg, (), None)


def test_an_error_of_the_display_leaves_snakemakes_text_and_raises_nothing(monkeypatch, capsys):
    handler = plugin.LogHandler(settings(), None)

    def broken(*_):
        raise RuntimeError("a fault of the display")

    monkeypatch.setattr(handler.terminal, "receive", broken)
    handler.emit(record("first"))
    handler.emit(record("second"))
    handler.close()
    errors = capsys.readouterr().err
    assert "the display of the progress failed (RuntimeError('a fault of the display')); the workflow goes on" in errors
    assert errors.splitlines()[1:] == ["first", "second"]


def test_a_display_that_cannot_start_leaves_snakemakes_text(monkeypatch, capsys):
    monkeypatch.setattr(module, "Terminal", None)
    handler = plugin.LogHandler(settings(), None)
    handler.emit(record("text"))
    handler.close()
    assert capsys.readouterr().err.splitlines()[1:] == ["text"]


def test_an_error_while_the_progress_is_drawn_ends_the_drawing_only(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_UPDATES", 0.01)
    workflow = Snakemake()
    monkeypatch.setattr(PlainScreen, "update", lambda *_: 1 / 0)
    workflow.plan(train=1)
    workflow.terminal.ticker.join(timeout=10)
    assert not workflow.terminal.ticker.is_alive()
    workflow.start(1)
    workflow.finish(1)
    assert workflow.end().endswith("1 job done in 0:00.\n")
