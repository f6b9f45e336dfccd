"""What is read from the end of a log: progress and the reason of a failure."""

from __future__ import annotations

import pytest

from rm_methods.system.progress import Progress
from rm_methods.terminal.log_file import LogProgress, failure_reason, log_progress


def written(tmp_path, text, name="job.log"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_last_progress_line_counts(tmp_path):
    log = written(
        tmp_path,
        "start\nbradley_terry: 3/39 steps  loss 0.6  elapsed 0:01  ETA 0:12\n"
        "bradley_terry: 24/39 steps  loss 0.5  elapsed 1:00:04  ETA 1:02:03\nSaved.\n",
    )
    assert log_progress(log) == LogProgress(24, 39, "steps", 3723.0)
    assert str(log_progress(log)) == "step 24/39"


def test_the_lines_of_the_progress_of_this_project_are_understood(tmp_path, capsys):
    progress = Progress("train", 10, unit="steps", interval=0.0)
    progress.advance(4, "loss 0.31")
    log = written(tmp_path, capsys.readouterr().err)
    assert (log_progress(log).done, log_progress(log).total) == (4, 10)


@pytest.mark.parametrize("text", ["", "no numbers\n", "read 3/4 of it\n"])
def test_a_log_without_progress_has_none(tmp_path, text):
    assert log_progress(written(tmp_path, text)) is None


def test_a_log_that_does_not_exist_has_neither_progress_nor_reason(tmp_path):
    assert log_progress(tmp_path / "absent") is None
    assert failure_reason([tmp_path / "absent"]) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("loading\nrm-methods: the loss is NaN at step 3.\n", ["the loss is NaN at step 3."]),
        (
            "rm-methods: 2 problems in x.yaml:\n  - a: wrong\n  - b: wrong\nmore\n",
            ["2 problems in x.yaml:", "  - a: wrong", "  - b: wrong"],
        ),
        ("rm-methods: first.\n... again\nrm-methods: second.\n", ["second."]),
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x\nValueError: my fault\n',
            ["ValueError: my fault"],
        ),
        ("ValueError: a Warning is no number\nlast\n", ["ValueError: a Warning is no number"]),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.\n", ["torch.cuda.OutOfMemoryError: CUDA out of memory."]),
        (
            "[rank1]: RuntimeError: size mismatch\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
            "train FAILED\nRoot Cause (first observed failure):\n",
            ["[rank1]: RuntimeError: size mismatch"],
        ),
        ("[rank0]: rm-methods: rank 0 says it.\nChildFailedError: x\n", ["rank 0 says it."]),
        ("UserWarning: something\nslurmstepd: error: Detected 1 oom_kill event\n",
         ["slurmstepd: error: Detected 1 oom_kill event"]),
        ("one\ntwo\n\ntrain: 3/9 steps  elapsed 0:01  ETA 0:02\n", ["two"]),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure(tmp_path, text, reason):
    assert failure_reason([written(tmp_path, text)]) == reason


def test_the_clusters_log_is_asked_when_the_jobs_log_is_silent(tmp_path):
    own = written(tmp_path, "", "own.log")
    cluster = written(tmp_path, "slurmstepd: error: *** JOB 3 CANCELLED DUE TO TIME LIMIT ***\n", "slurm.log")
    assert failure_reason([own, cluster]) == ["slurmstepd: error: *** JOB 3 CANCELLED DUE TO TIME LIMIT ***"]


def test_a_long_list_and_bytes_that_are_no_text_are_shortened(tmp_path):
    log = tmp_path / "job.log"
    log.write_bytes(b"\xff\xfe\nrm-methods: many:\n" + b"".join(b"  - problem\n" for _ in range(50)))
    assert len(failure_reason([log])) == 12
