"""Counting the jobs of a workflow, and estimating the time that is left, by hand."""

from __future__ import annotations

import re

import pytest

from rm_methods.terminal.jobs import STAGES, Estimate, Jobs, stage_of
from rm_methods.terminal.screen import estimate_text, running_texts, stages_text
from tests.conftest import REPOSITORY


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def jobs_of(clock, **planned):
    jobs = Jobs(clock=clock)
    jobs.plan({**planned, "all": 1, "total": sum(planned.values()) + 1})
    return jobs


def run(jobs, clock, number, rule, seconds):
    jobs.start(number, rule, f"{rule} {number}", [], may_wait=False)
    clock.now += seconds
    jobs.finish(number)


def test_every_rule_of_the_workflow_has_the_stage_of_its_file():
    for file in (REPOSITORY / "workflow" / "rules").glob("*.smk"):
        for rule in re.findall(r"^rule (\w+):", file.read_text(), re.MULTILINE):
            assert stage_of(rule) == file.stem, rule
    assert stage_of("my_rule") == "my_rule"


def test_jobs_are_counted_by_stage_in_the_order_of_the_workflow(clock):
    jobs = jobs_of(clock, compare=1, score=3, train=2, prepare=1, prepare_benchmark=1, my_rule=1)
    assert jobs.total == 9
    run(jobs, clock, 1, "prepare", 2)
    run(jobs, clock, 2, "train", 2)
    assert stages_text(jobs) == "prepare 1/2, train 1/2, score 0/3, compare 0/1, my_rule 0/1"
    assert list(STAGES)[:2] == ["prepare", "train"]


def test_the_estimate_is_the_number_of_jobs_left_times_their_mean(clock):
    jobs = jobs_of(clock, train=5)
    for number, seconds in enumerate((10, 20, 30)):
        run(jobs, clock, number, "train", seconds)
    assert jobs.estimate() == Estimate(40.0, 40.0, ())


def test_jobs_at_the_same_time_share_the_time_that_is_left(clock):
    jobs = jobs_of(clock, train=8)
    for first in (0, 2):
        for number in (first, first + 1):
            jobs.start(number, "train", "train", [], may_wait=False)
        clock.now += 10
        for number in (first, first + 1):
            jobs.finish(number)
    # 4 jobs left of 10 s each, two at a time.
    assert jobs.estimate() == Estimate(20.0, 20.0, ())


def test_a_running_job_counts_with_what_is_left_of_it(clock):
    jobs = jobs_of(clock, train=4)
    for number in range(3):
        run(jobs, clock, number, "train", 10)
    jobs.start(3, "train", "train", [], may_wait=False)
    clock.now += 4
    assert jobs.estimate() == Estimate(6.0, 6.0, ())
    clock.now += 60
    assert jobs.estimate() == Estimate(0.0, 0.0, ())


def test_a_rule_without_a_finished_job_widens_the_estimate_and_is_named(clock):
    jobs = jobs_of(clock, train=4, score=3, compare=1)
    for number in range(2):
        run(jobs, clock, number, "train", 20)
    run(jobs, clock, 2, "score", 4)
    # 2 trainings and 2 scorings: 48 s; compare as short as 4 s or as long as 20 s.
    assert jobs.estimate() == Estimate(52.0, 68.0, ("compare",))


def test_while_most_jobs_left_are_unknown_a_job_that_counts_steps_gives_a_lower_limit(clock, tmp_path):
    log = tmp_path / "job.log"
    jobs = jobs_of(clock, train=4, score=8, evaluate=8)
    jobs.start(0, "train", "Train x, seed 0", [log], may_wait=False)
    clock.now += 10
    assert jobs.estimate() is None
    log.write_text("train: 1/5 steps  elapsed 0:10  ETA 0:40\n")
    # 40 s of this one, and three more of 50 s; scorings and evaluations count nothing.
    assert jobs.estimate() == Estimate(190.0, None, ("score", "evaluate"))
    log.write_text("train: 5/5 steps  elapsed 0:50  ETA 0:00\n")
    clock.now += 40
    jobs.finish(0)
    assert jobs.estimate() == Estimate(150.0, None, ("score", "evaluate"))
    run(jobs, clock, 1, "score", 5)
    # 3 trainings and 7 scorings are timed, 8 evaluations are not: 5 to 50 s each.
    assert jobs.estimate() == Estimate(185.0 + 8 * 5, 185.0 + 8 * 50, ("evaluate",))


def test_nothing_is_estimated_before_three_jobs_or_while_most_jobs_left_are_unknown(clock):
    jobs = jobs_of(clock, train=3, score=9)
    run(jobs, clock, 0, "train", 5)
    run(jobs, clock, 1, "train", 5)
    assert jobs.estimate() is None
    run(jobs, clock, 2, "train", 5)
    assert jobs.estimate() is None
    run(jobs, clock, 3, "score", 1)
    assert jobs.estimate() == Estimate(8.0, 8.0, ())


def test_short_jobs_of_a_rule_do_not_hide_how_long_the_others_are(clock, tmp_path):
    log = tmp_path / "job.log"
    jobs = jobs_of(clock, train=6)
    for number in range(3):
        run(jobs, clock, number, "train", 1)
    jobs.start(3, "train", "Train x, seed 3", [log], may_wait=False)
    log.write_text("train: 1/10 steps  elapsed 0:10  ETA 1:30\n")
    clock.now += 10
    # It will take 100 s. The two others left: at least the mean of 1, 1, 1 and 100 s, at most 100 s.
    assert jobs.estimate() == Estimate(90 + 2 * 103 / 4, 90 + 2 * 100.0, ())
    clock.now += 90
    log.write_text("train: 10/10 steps  elapsed 1:40  ETA 0:00\n")
    jobs.finish(3)
    assert jobs.estimate() == Estimate(2 * 103 / 4, 200.0, ())


def test_the_progress_in_a_log_replaces_the_mean(clock, tmp_path):
    log = tmp_path / "job.log"
    jobs = jobs_of(clock, train=4)
    for number in range(3):
        run(jobs, clock, number, "train", 10)
    jobs.start(3, "train", "Train x, seed 3", [log], may_wait=False)
    log.write_text("train: 1/4 steps  elapsed 0:10  ETA 0:30\n")
    clock.now += 10
    assert jobs.estimate() == Estimate(30.0, 30.0, ())
    assert running_texts(jobs, 2) == ["Train x, seed 3 (step 1/4, 0:10)"]


def test_the_log_of_an_earlier_attempt_says_nothing_of_this_one(clock, tmp_path):
    log = tmp_path / "job.log"
    log.write_text("train: 1/4 steps  elapsed 0:10  ETA 0:30\n")
    jobs = jobs_of(clock, train=1)
    jobs.start(0, "train", "Train x", [log], may_wait=False)
    assert running_texts(jobs, 2) == ["Train x (0:00)"]


def test_a_job_of_a_cluster_waits_until_its_log_appears(clock, tmp_path):
    jobs = jobs_of(clock, train=2)
    for number in range(2):
        jobs.start(number, "train", f"Train {number}", [tmp_path / f"{number}.log"], may_wait=True)
    clock.now += 50
    jobs.look()
    assert running_texts(jobs, 2) == ["2 queued"]
    (tmp_path / "0.log").write_text("begun\n")
    jobs.look()
    clock.now += 7
    assert running_texts(jobs, 2) == ["Train 0 (0:07)", "1 queued"]
    jobs.finish(0)
    assert jobs.seconds["train"] == [7.0]


def test_only_the_longest_running_jobs_are_shown(clock):
    jobs = jobs_of(clock, train=5)
    for number in range(5):
        jobs.start(number, "train", f"Train {number}", [], may_wait=False)
        clock.now += 1
    assert running_texts(jobs, 2) == ["Train 0 (0:05)", "Train 1 (0:04)", "and 3 more running"]


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(3, 40, ()), "about a minute left"),
        (Estimate(170, 185, ()), "about 3 min left"),
        (Estimate(170, 290, ()), "about 3 to 5 min left"),
        (Estimate(20, 100, ("ppo",)), "about 1 to 2 min left (not timed yet: ppo)"),
        (Estimate(3000, 5000, ()), "about 50 min to 1 h 20 min left"),
        (Estimate(7200, 7300, ()), "about 2 h left"),
        (Estimate(7200, 20000, tuple("abcd")), "about 2 h to 5 h 30 min left (4 kinds of jobs not timed yet)"),
        (Estimate(9, None, ("a",)), "at least a few seconds left (not timed yet: a)"),
        (Estimate(59, None, ("a", "b")), "at least 50 s left (2 kinds of jobs not timed yet)"),
        (Estimate(239, None, ("a",)), "at least 3 min left (not timed yet: a)"),
        (Estimate(2 * 3600 + 599, None, ("a",)), "at least 2 h left (not timed yet: a)"),
    ],
)
def test_the_time_that_is_left_in_words(estimate, text):
    assert estimate_text(estimate) == text
