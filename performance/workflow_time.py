"""How the time of a finished experiment splits into trainings, scoring, sampling and everything else.

Reads the records of the experiment itself.  Snakemake notes the start and the end of each job.  Trainings, scorers and
samplers note how long they worked.  The rest of such a job is its start: imports, and for trainings the validation.

    python performance/workflow_time.py --experiment results/quickstart
    python -m performance run workflow_time                  # the same, with a record for docs/speed.md

Run it in the folder in which the workflow ran, after a run without interruptions.  Core-seconds are the wall time of a
job, times `resources.threads` where its rule takes that many threads.  On a busy machine only shares mean something.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from performance.harness.benchmark import Benchmark, Measurement, Option, Proof, Side, Work
from performance.harness.stopwatch import peak_memory_bytes
from rm_methods.errors import UserError
from rm_methods.files import read_json

METADATA = Path(".snakemake/metadata")

GROUPS = {
    "train": "training",
    "score": "scoring",
    "sft": "sampling",
    "sample_pool": "sampling",
    "sample_references": "sampling",
    "ppo": "sampling",
    "diagnose": "diagnostics",
    "diagnose_teacher": "diagnostics",
    "diagnose_summary": "diagnostics",
}
OTHERS = "everything else"
STARTS = "starts of trainings and scorers"
MAIN_GROUPS = ("training", "scoring", "sampling")
# Of these rules: what the name of the record adds to the output's, and the key of the seconds.
WORK_RECORDS = {
    "train": ("/summary.json", "wall_seconds"),
    "score": (".report.json", "seconds"),
    "sft": ("/summary.json", "wall_seconds"),
    "sample_pool": ("", "sampled_seconds"),
    "ppo": ("/summary.json", "wall_seconds"),
}
THREADED = ("train", "score", "sft", "sample_pool", "sample_references", "ppo", "diagnose", "diagnose_teacher")


@dataclass(frozen=True)
class Job:
    """A finished job: its rule, start and end in seconds since 1970, and the seconds that it recorded as work."""

    rule: str
    start: float
    end: float
    work: float | None


def finished_jobs(metadata: Path, experiment: Path) -> list[Job]:
    """The jobs whose command names a file of an experiment.

    Args:
        metadata: Snakemake's folder with one JSON file for each output.
        experiment: folder of the experiment's results, as the workflow names it.

    Raises:
        UserError: no job is known.
    """
    jobs = {}
    for file in metadata.glob("**/*"):
        if not file.is_file():
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        command = record.get("shellcmd") or ""
        if f"{experiment}/" in command and record.get("endtime") and not record.get("incomplete"):
            # A job has a record for each of its outputs.
            work = recorded_seconds(record["rule"], command)
            jobs[command] = Job(record["rule"], record["starttime"], record["endtime"], work)
    if not jobs:
        raise UserError(f"{metadata}: no finished job of {experiment}. Run this in the folder of the workflow.")
    return list(jobs.values())


def recorded_seconds(rule: str, command: str) -> float | None:
    """Seconds of work by the record that a job wrote; None if it wrote none."""
    words = shlex.split(command)
    option = "--report" if rule == "sample_pool" else "--out"
    if rule not in WORK_RECORDS or option not in words:
        return None
    suffix, key = WORK_RECORDS[rule]
    record = read_json(Path(words[words.index(option) + 1] + suffix))
    return record.get("cost", record)[key]


@dataclass
class Total:
    """All jobs of a rule: their number, their core-seconds, and how many of these were no work by their records."""

    jobs: int = 0
    seconds: float = 0.0
    start: float = 0.0


def totals_by_rule(jobs: list[Job], threads: int) -> dict[str, Total]:
    """The total of each rule, the largest first."""
    totals: dict[str, Total] = defaultdict(Total)
    for job in jobs:
        cores = threads if job.rule in THREADED else 1
        total = totals[job.rule]
        total.jobs += 1
        total.seconds += cores * (job.end - job.start)
        if job.work is not None:
            total.start += cores * (job.end - job.start - job.work)
    return dict(sorted(totals.items(), key=lambda item: -item[1].seconds))


def idle_core_seconds(jobs: list[Job], used: float, cores: int) -> float:
    """Core-seconds between the first start and the last end in which no job ran: Snakemake's own work, and waiting."""
    return cores * (max(job.end for job in jobs) - min(job.start for job in jobs)) - used


def stored_config(experiment: Path) -> dict[str, Any]:
    """The newest resolved configuration of an experiment."""
    newest = max((experiment / "config").glob("*.yaml"), key=lambda file: file.stat().st_mtime)
    return yaml.safe_load(newest.read_text(encoding="utf-8"))


def stored_threads(experiment: Path) -> int:
    """Threads of a job by the newest resolved configuration."""
    return stored_config(experiment)["resources"]["threads"]


@dataclass(frozen=True)
class Shares:
    """Core-seconds of an experiment.

    Attributes:
        rules: totals by rule.
        groups: core-seconds by group, the largest first; the last is "between jobs".
    """

    rules: dict[str, Total]
    groups: dict[str, float]

    @property
    def total(self) -> float:
        """All core-seconds, also idle ones."""
        return sum(self.groups.values())

    @property
    def outside(self) -> float:
        """Core-seconds outside training, scoring and sampling."""
        return self.total - sum(self.groups.get(name, 0.0) for name in MAIN_GROUPS)


def shares_of(jobs: list[Job], threads: int, cores: int) -> Shares:
    """Core-seconds by rule and by group.

    Args:
        threads: `resources.threads` of the configuration.
        cores: `--cores` of the workflow.
    """
    rules = totals_by_rule(jobs, threads)
    groups: dict[str, float] = defaultdict(float)
    for rule, rule_total in rules.items():
        groups[GROUPS.get(rule, OTHERS)] += rule_total.seconds - rule_total.start
        groups[STARTS] += rule_total.start
    idle = idle_core_seconds(jobs, sum(groups.values()), cores)
    ordered = dict(sorted(groups.items(), key=lambda item: -item[1]))
    return Shares(rules, ordered | {"between jobs": idle})


@click.command()
@click.option("--experiment", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--cores", type=click.IntRange(min=1), default=2, show_default=True, help="--cores of the workflow.")
def main(experiment: Path, cores: int) -> None:
    """Print core-seconds and shares by rule and by group."""
    shares = shares_of(finished_jobs(METADATA, experiment), stored_threads(experiment), cores)
    click.echo(f"{'rule':<20}{'jobs':>6}{'core-seconds':>14}{'a job':>8}{'start a job':>13}")
    for rule, rule_total in shares.rules.items():
        start = f"{rule_total.start / rule_total.jobs:.1f}" if rule in WORK_RECORDS else "-"
        click.echo(
            f"{rule:<20}{rule_total.jobs:>6}{rule_total.seconds:>14.1f}"
            f"{rule_total.seconds / rule_total.jobs:>8.1f}{start:>13}"
        )
    click.echo("")
    for name, seconds in shares.groups.items():
        click.echo(f"{name:<34}{seconds:>14.1f}{seconds / shares.total:>8.1%}")
    outside = f"{shares.outside / shares.total:.1%} of {shares.total:.0f} core-seconds"
    click.echo(f"Outside {', '.join(MAIN_GROUPS)}: {outside}.")


def missing(options: Mapping[str, Any]) -> str | None:
    """Why the records cannot be read."""
    if not Path(options["experiment"]).is_dir() or not METADATA.is_dir():
        return f"{options['experiment']} is not finished here; run `make demo`, or --option experiment=FOLDER"
    return None


def measured_shares(work: Work) -> Shares:
    """The shares of the experiment that the options name."""
    experiment = Path(work.options["experiment"])
    return shares_of(finished_jobs(METADATA, experiment), stored_threads(experiment), work.options["cores"])


def prove(work: Work) -> Proof:
    """Nothing is counted twice: the groups add up to the wall time of the workflow on its cores."""
    jobs = finished_jobs(METADATA, Path(work.options["experiment"]))
    wall = max(job.end for job in jobs) - min(job.start for job in jobs)
    difference = abs(measured_shares(work).total - work.options["cores"] * wall)
    return Proof("all groups together are the wall time times the cores, in seconds", difference, 0.01)


def measure(work: Work) -> Measurement:
    """Core-seconds outside training, scoring and sampling."""
    shares = measured_shares(work)
    return Measurement(
        seconds=shares.outside,
        cpu_seconds=shares.total,
        peak_memory_bytes=peak_memory_bytes(),
        details={"core_seconds": shares.groups},
    )


def table(record: Mapping[str, Any]) -> str:
    """Core-seconds and shares by group."""
    groups = record["cases"][0]["sides"]["workflow"]["details"][0]["core_seconds"]
    total = sum(groups.values())
    rows = [f"| {name} | {seconds:.0f} | {seconds / total:.1%} |" for name, seconds in groups.items()]
    return "\n".join(["| part | core-seconds | share |", "|---|---:|---:|", *rows])


BENCHMARK = Benchmark(
    name="workflow_time",
    title="Shares of a workflow",
    question="How much of a finished experiment's time is no training, scoring or sampling?",
    sides=(Side("workflow", "outside training, scoring and sampling"),),
    tests=("tests/performance/test_workflow_time.py",),
    options={
        "experiment": Option("results/quickstart", "folder of the results, as the workflow names it"),
        "cores": Option(2, "--cores of the workflow"),
    },
    missing=missing,
    prove=prove,
    measure=measure,
    rounds=1,
    table=table,
)


if __name__ == "__main__":
    main()
