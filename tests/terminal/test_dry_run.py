"""A dry run in one screen."""

from __future__ import annotations

import pytest

from rm_methods.terminal.dry_run import PlannedJob, dry_run_text, short_reason

MISSING = "Missing output files: results/x/a, results/x/b; Input files updated by another job: results/x/c"


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        (MISSING, ("no result yet", "results/x/a")),
        ("Input files updated by another job: results/x/c", ("its input is made first", "results/x/c")),
        (
            "Input files updated by another job: c; Updated input files: results/x/config/asked/a_made_with.12.json",
            ("settings or code changed", ""),
        ),
        (
            "Updated input files: data/train.jsonl, results/x/config/asked/a.1.json",
            ("input changed", "data/train.jsonl"),
        ),
        ("Forced execution", ("forced", "")),
        ("Code has changed since last execution", ("rule changed", "")),
        ("A reason of a later Snakemake", ("A reason of a later Snakemake", "")),
    ],
)
def test_a_reason_in_a_few_words(reason, short):
    assert short_reason(reason) == short


def test_few_jobs_are_listed():
    jobs = [PlannedJob("train", "Train x, seed 0", MISSING), PlannedJob("all", "all", "x")]
    assert dry_run_text("Job stats:\nTABLE\n", jobs).splitlines() == [
        "Job stats:",
        "TABLE",
        "",
        "Why:",
        "  Train x, seed 0: no result yet (results/x/a)",
        "",
        "Nothing was run (-n). Add -p to see every job with its reason and its command.",
    ]


def test_many_jobs_are_grouped_by_reason():
    jobs = [PlannedJob("train", f"Train {seed}", MISSING) for seed in range(200)]
    jobs += [PlannedJob("score", "Score", "Forced execution")]
    lines = dry_run_text("TABLE", jobs).splitlines()
    assert "  no result yet: train" in lines
    assert "  forced: score" in lines
    assert len(lines) < 10
