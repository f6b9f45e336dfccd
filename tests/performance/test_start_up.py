"""performance/start_up.py: a short run, and what it subtracts."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.performance.test_gpu_script import script


@pytest.mark.process
def test_the_script_measures_the_help():
    command = [sys.executable, REPOSITORY / "performance" / "start_up.py", "--runs", "2", "--only", "help"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    name, runs, *seconds = done.stdout.splitlines()[1].split()
    assert (name, runs) == ("help", "2")
    assert all(float(value) > 0 for value in seconds)


def test_the_loop_is_subtracted(tmp_path):
    start_up = script("start_up")
    (tmp_path / "loop.json").write_text(json.dumps([5.0, 6.0]))
    assert start_up.without_loop(start_up.Cost(7.0, 9.0), tmp_path / "loop.json") == start_up.Cost(2.0, 3.0)


def test_a_command_that_fails_is_shown(tmp_path):
    with pytest.raises(RuntimeError, match="no such reason"):
        script("start_up").cost_of([sys.executable, "-c", "raise SystemExit('no such reason')"], tmp_path)
