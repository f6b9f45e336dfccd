"""The jobs of a workflow: which are done, which run, and how long the rest takes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rm_methods.terminal.log_file import LogProgress, log_progress

# Stage -> its rules, by file of workflow/rules (tests/terminal/test_jobs.py compares).
STAGES: dict[str, tuple[str, ...]] = {
    "prepare": ("prepare", "prepare_backbone", "prepare_benchmark", "contamination"),
    "train": ("train",),
    "tune": ("tune",),
    "score": ("score",),
    "evaluate": ("evaluate",),
    "optimize": ("sft", "sample_pool", "sample_references", "ppo", "overoptimization"),
    "diagnose": ("diagnose", "diagnose_teacher", "diagnose_summary"),
    "compare": ("compare",),
    "report": ("html_report",),
    "track": ("export", "track"),
}
_STAGE_OF = {rule: stage for stage, rules in STAGES.items() for rule in rules}
_WITHOUT_WORK = ("all", "total")
# An estimate needs this many finished jobs, or a job that counts steps; and an upper limit needs rules with a known
# duration for this share of the jobs left.
_JOBS_FOR_ESTIMATE = 3
_KNOWN_SHARE = 0.5


@dataclass
class Job:
    """A job that was submitted and has not ended.

    Attributes:
        started: when it began to run, on the workflow's clock; seconds.
        queued: waits for its turn on a cluster: its log has not been touched yet.
        stamp: state of the log when the job was submitted.
    """

    rule: str
    title: str
    logs: list[Path]
    started: float
    stamp: tuple[int, int] | None
    queued: bool = False


@dataclass(frozen=True)
class Estimate:
    """Seconds left, at least and at most, and rules without a finished job, which the figures only guess.

    `most` is None while too many jobs left are of such rules.
    """

    least: float
    most: float | None
    not_timed: tuple[str, ...]


@dataclass
class Jobs:
    """All jobs of one workflow.

    Attributes:
        planned: number of jobs, by rule.
        seconds: durations of the finished jobs, by rule.
        stepped: durations of those whose log counted steps, by rule.  The others of a rule may be far shorter: a
            scorer that has no weights is not trained.
        running: number of the job -> the job.
    """

    clock: Callable[[], float] = time.monotonic
    planned: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stepped: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    running: dict[int, Job] = field(default_factory=dict)
    begun: float | None = None

    def plan(self, counts: Mapping[str, int]) -> None:
        """Take the number of jobs of each rule."""
        self.planned = Counter({rule: count for rule, count in counts.items() if rule not in _WITHOUT_WORK})

    def start(self, number: int, rule: str, title: str, logs: list[Path], *, may_wait: bool) -> None:
        """A job was submitted.

        Args:
            may_wait: it runs on a cluster, so it is queued until its log appears.
        """
        if rule in _WITHOUT_WORK:
            return
        now = self.clock()
        self.begun = now if self.begun is None else self.begun
        stamp = _stamp(logs)
        self.running[number] = Job(rule, title, logs, now, stamp, queued=may_wait and bool(logs))

    def finish(self, number: int) -> None:
        job = self.running.pop(number, None)
        if job is not None:
            seconds = self.clock() - job.started
            self.seconds[job.rule].append(seconds)
            if self.progress(job) is not None:
                self.stepped[job.rule].append(seconds)

    def drop(self, number: int) -> Job | None:
        """A job failed."""
        return self.running.pop(number, None)

    def look(self) -> None:
        """See which queued jobs have begun to write their logs."""
        for job in self.running.values():
            if job.queued and _stamp(job.logs) != job.stamp:
                job.queued = False
                job.started = self.clock()

    @property
    def total(self) -> int:
        return sum(self.planned.values())

    @property
    def done(self) -> int:
        return sum(map(len, self.seconds.values()))

    @property
    def elapsed(self) -> float:
        return 0.0 if self.begun is None else self.clock() - self.begun

    def stages(self) -> dict[str, tuple[int, int]]:
        """Jobs done and in all, by stage; stages without jobs are left out."""
        counts: dict[str, tuple[int, int]] = {}
        for rule, total in self.planned.items():
            stage = stage_of(rule)
            before = counts.get(stage, (0, 0))
            counts[stage] = (before[0] + len(self.seconds.get(rule, ())), before[1] + total)
        order = [*STAGES, *counts]
        return {stage: counts[stage] for stage in sorted(counts, key=order.index)}

    def progress(self, job: Job) -> LogProgress | None:
        """How far a running job is, if its log says so and was written by this attempt."""
        if job.queued or not job.logs or _stamp(job.logs) == job.stamp:
            return None
        return log_progress(job.logs[0])

    def estimate(self) -> Estimate | None:
        """How long the jobs left take: their number times the mean duration of jobs of their rule, divided by the
        number of jobs that ran at the same time so far.

        A running job that counts steps tells its own duration in advance, which also counts in the mean.  At most, all
        jobs left of a rule are as long as those that count steps.  A rule without any such job is guessed to be as
        short as the shortest rule, or as long as the longest one.  While most jobs left are of such rules, they count
        nothing, and only the lower limit is given: once a job counts steps, because the long jobs do.

        Returns:
            None until a few jobs are done or one counts steps, and while no job counts steps and most jobs left are of
            rules without a finished one.
        """
        now = self.clock()
        active = [job for job in self.running.values() if not job.queued]
        progress = {id(job): self.progress(job) for job in active}
        usual, long, counts_steps = self._mean_durations(now, active, progress)
        if self.done < _JOBS_FOR_ESTIMATE and not counts_steps:
            return None
        shortest, longest = min(usual.values()), max(long.values())
        least = most = guessed = 0.0
        known = unknown = 0
        running = Counter(job.rule for job in active)
        not_timed = []
        for rule, total in self.planned.items():
            left = total - len(self.seconds.get(rule, ())) - running[rule]
            least += left * usual.get(rule, 0.0)
            guessed += 0.0 if rule in usual else left * shortest
            most += left * long.get(rule, longest)
            if rule in usual:
                known += left + running[rule]
            else:
                unknown += left + running[rule]
                if left + running[rule] > 0:
                    not_timed.append(rule)
        for job in active:
            steps = progress[id(job)]
            if steps is not None:
                least += steps.seconds_left
                most += steps.seconds_left
            else:
                least += max(0.0, usual.get(job.rule, 0.0) - (now - job.started))
                most += max(0.0, long.get(job.rule, longest) - (now - job.started))
        at_once = self._jobs_at_once(now)
        if known < _KNOWN_SHARE * (known + unknown):
            return Estimate(least / at_once, None, tuple(not_timed)) if counts_steps else None
        return Estimate((least + guessed) / at_once, most / at_once, tuple(not_timed))

    def _mean_durations(
        self, now: float, active: Sequence[Job], progress: Mapping[int, LogProgress | None]
    ) -> tuple[dict[str, float], dict[str, float], bool]:
        """Mean seconds of a job by rule: of all jobs, and of those that count steps, where a rule has such jobs; and
        whether any job counts steps.

        Args:
            active: jobs that run; progress: by their id.
        """
        all_times = {rule: list(times) for rule, times in self.seconds.items() if times}
        stepped = {rule: list(times) for rule, times in self.stepped.items() if times}
        for job in active:
            steps = progress[id(job)]
            if steps is not None:
                whole = now - job.started + steps.seconds_left
                all_times.setdefault(job.rule, []).append(whole)
                stepped.setdefault(job.rule, []).append(whole)
        usual = {rule: sum(times) / len(times) for rule, times in all_times.items()}
        long = usual | {rule: sum(times) / len(times) for rule, times in stepped.items()}
        return usual, long, bool(stepped)

    def _jobs_at_once(self, now: float) -> float:
        """Mean number of jobs that ran at the same time."""
        busy = sum(map(sum, self.seconds.values()))
        busy += sum(now - job.started for job in self.running.values() if not job.queued)
        return max(1.0, busy / self.elapsed) if self.elapsed else 1.0


def stage_of(rule: str) -> str:
    """The stage of a rule; an unknown rule is a stage by itself."""
    return _STAGE_OF.get(rule, rule)


def _stamp(logs: list[Path]) -> tuple[int, int] | None:
    """Time and size of a job's first log; None if it does not exist."""
    if not logs:
        return None
    try:
        status = logs[0].stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
