"""performance/start_up.py: a start is measured, and what is subtracted."""

from __future__ import annotations

import json
import sys

import pytest

from performance import start_up
from performance.harness.benchmark import Work
from performance.harness.stopwatch import Stopwatch


@pytest.mark.process
def test_the_help_is_proved_and_measured(tmp_path):
    work = Work(case="help", side="ours", options={}, folder=tmp_path, shared=tmp_path)
    start_up.prepare(work)
    assert start_up.prove(work).difference == 0
    measured = start_up.measure(work)
    assert measured.seconds > 0
    assert measured.cpu_seconds > 0


def test_the_loop_is_subtracted(tmp_path):
    watch = Stopwatch()
    watch.seconds = 9.0
    watch.cpu_seconds = 7.0
    (tmp_path / "loop.json").write_text(json.dumps([5.0, 6.0]))
    measured = start_up.without_loop(watch, tmp_path / "loop.json")
    assert (measured.cpu_seconds, measured.seconds) == (2.0, 3.0)


def test_a_command_that_fails_is_shown(tmp_path):
    with pytest.raises(RuntimeError, match="no such reason"):
        start_up.run_command([sys.executable, "-c", "raise SystemExit('no such reason')"], tmp_path)


def test_a_forked_training_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(start_up, "train", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="status 1"):
        start_up.train_forked(tmp_path, tmp_path)
