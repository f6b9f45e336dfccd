"""One writer per run folder: live writers are refused by name, dead ones are taken over from, whatever they died of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rm_methods.errors import UserError
from rm_methods.system import run_lock as module
from rm_methods.system.run_lock import ALIVE, DEAD, LOCK, UNCERTAIN, run_lock, writer_state

pytestmark = pytest.mark.process

HOLDER = """
import sys, time
from rm_methods.system.run_lock import run_lock
with run_lock(sys.argv[1]):
    print("holds", flush=True)
    time.sleep(60)
"""


def held_by_another_process(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    return process


def elsewhere(**more) -> dict:
    return {
        "token": "a",
        "process": 7,
        "started": 1,
        "host": "node7",
        "machine": "node7 other",
        "since": "2026-01-01 00:00:00",
    } | more


def write(folder: Path, writer: dict, age: float = 0.0) -> Path:
    lock = folder / LOCK
    lock.write_text(json.dumps(writer))
    os.utime(lock, (time.time() - age,) * 2)
    return lock


def test_the_lock_is_there_inside_and_gone_after(tmp_path):
    with run_lock(tmp_path / "new" / "folder"):
        assert json.loads((tmp_path / "new" / "folder" / LOCK).read_text())["process"] == os.getpid()
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_an_error_inside_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        _ = 1 / 0
    with run_lock(tmp_path):
        pass


def test_a_living_writer_is_refused_at_once_and_named(tmp_path, monkeypatch):
    process = held_by_another_process(tmp_path)
    try:
        started = time.monotonic()
        with (
            pytest.raises(UserError, match=rf"being written by process {process.pid} on .* since 20.*end it, then"),
            run_lock(tmp_path),
        ):
            pass
        assert time.monotonic() - started < 5
    finally:
        process.kill()
        process.wait()


def test_who_is_patient_waits_for_a_living_writer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    process = held_by_another_process(tmp_path)
    end = threading.Timer(1.0, process.kill)
    end.start()
    started = time.monotonic()
    with run_lock(tmp_path, patient=True):
        assert time.monotonic() - started > 0.9
    process.wait()
    assert capsys.readouterr().err.count(f"process {process.pid} on") == 2  # waits for it, takes over from it


def test_a_killed_writer_is_taken_over_from(tmp_path, capsys):
    process = held_by_another_process(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK).exists()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert f"takes over from process {process.pid}" in capsys.readouterr().err


def test_a_process_number_given_out_again_is_not_the_writer(tmp_path):
    with run_lock(tmp_path):
        writer = json.loads((tmp_path / LOCK).read_text())
    assert writer_state(writer, 0.0) == ALIVE
    assert writer_state(writer | {"started": writer["started"] - 1}, 0.0) == DEAD


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("RUNNING", ALIVE),
        ("SUSPENDED", ALIVE),
        ("GONE", DEAD),
        ("PENDING", DEAD),
        ("TIMEOUT", DEAD),
        ("NODE_FAIL", DEAD),
        ("COMPLETING", UNCERTAIN),
        (None, UNCERTAIN),
    ],
)
def test_on_another_machine_the_slurm_job_decides(monkeypatch, state, expected):
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    monkeypatch.setattr(module, "job_state", lambda job: state if job == "41" else pytest.fail("asked for another job"))
    assert writer_state(elsewhere(job="41", cluster="big"), 0.0) == expected


def test_jobs_of_other_clusters_and_the_own_job_on_a_former_node_are_judged_by_the_file(monkeypatch):
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setattr(module, "job_state", lambda job: pytest.fail("Slurm cannot know"))
    for writer in (elsewhere(job="41", cluster="small"), elsewhere(job="42", cluster="big"), elsewhere(job=None)):
        assert writer_state(writer, module.DEAD_AFTER_SECONDS - 1) == UNCERTAIN
        assert writer_state(writer, module.DEAD_AFTER_SECONDS + 1) == DEAD


def test_a_writer_elsewhere_that_touches_its_lock_is_alive(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    lock = write(tmp_path, elsewhere(job="41"), age=30)
    toucher = threading.Timer(0.3, os.utime, [lock])
    toucher.start()
    with pytest.raises(UserError, match=r"process 7 on node7, Slurm job 41.*scancel 41"), run_lock(tmp_path):
        pass
    toucher.join()
    assert "waits up to 90 s to see whether process 7 on node7" in capsys.readouterr().err
    assert json.loads(lock.read_text())["process"] == 7


def test_a_writer_elsewhere_that_is_silent_is_waited_for_and_then_taken_over_from(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(module, "DEAD_AFTER_SECONDS", 0.5)
    write(tmp_path, elsewhere())
    started = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - started > 0.4


def test_an_unreadable_lock_is_judged_by_its_age(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    (tmp_path / LOCK).write_text("{half")
    os.utime(tmp_path / LOCK, (time.time() - 3600,) * 2)
    with run_lock(tmp_path):
        pass


def test_the_lock_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    with run_lock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        time.sleep(0.3)
        assert (tmp_path / LOCK).stat().st_mtime > 0


def test_who_loses_the_lock_is_stopped_and_leaves_the_other_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    sent = []
    monkeypatch.setattr(module.os, "kill", lambda *what: sent.append(what))
    with run_lock(tmp_path):
        write(tmp_path, elsewhere())
        time.sleep(0.3)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert json.loads((tmp_path / LOCK).read_text())["process"] == 7


def test_taking_over_never_removes_a_newer_lock(tmp_path):
    lock = write(tmp_path, elsewhere(token="new"))
    module._remove(lock, elsewhere(token="judged"))
    assert json.loads(lock.read_text())["token"] == "new"
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]


def test_of_many_that_come_at_once_one_writes_at_a_time(tmp_path):
    write(tmp_path, elsewhere(), age=3600)
    code = (
        "import sys, time; from rm_methods.system.run_lock import run_lock; from rm_methods.errors import UserError\n"
        "try:\n    with run_lock(sys.argv[1]):\n        print('in', flush=True); sys.stdin.readline()\n"
        "except UserError: print('refused', flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    answers = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("go\n", timeout=20)
    assert sorted(answers) == ["in", "refused", "refused", "refused"]


@pytest.mark.parametrize(("state", "expected"), [("RUNNING", DEAD), ("SUSPENDED", ALIVE)])
def test_an_allocation_that_outlives_its_writer_does_not_hold_the_lock(monkeypatch, state, expected):
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    monkeypatch.setattr(module, "job_state", lambda job: state)
    assert writer_state(elsewhere(job="41", cluster="big"), module.DEAD_AFTER_SECONDS + 1) == expected
