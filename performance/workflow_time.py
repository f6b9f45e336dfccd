"""How the time of a finished experiment splits into trainings, scoring, sampling and everything else.

Reads the records of the experiment itself.  Snakemake notes the start and the end of each job.  Trainings, scorers and
samplers note how long they worked.  The rest of such a job is its start: imports, and for trainings the validation.

    python performance/workflow_time.py --experiment results/quickstart

Run it in the folder in which the workflow ran, after a run without interruptions.  Core-seconds are the wall time of a
job, times `resources.threads` where its rule takes that many threads.  On a busy machine only shares mean something.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import click
import yaml

from rm_methods.errors import UserError
from rm_methods.files import read_json

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


def stored_threads(experiment: Path) -> int:
    """`resources.threads` of the newest resolved configuration."""
    newest = max((experiment / "config").glob("*.yaml"), key=lambda file: file.stat().st_mtime)
    return yaml.safe_load(newest.read_text(encoding="utf-8"))["resources"]["threads"]


@click.command()
@click.option("--experiment", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--cores", type=click.IntRange(min=1), default=2, show_default=True, help="--cores of the workflow.")
def main(experiment: Path, cores: int) -> None:
    """Print core-seconds and shares by rule and by group."""
    jobs = finished_jobs(Path(".snakemake/metadata"), experiment)
    rules = totals_by_rule(jobs, stored_threads(experiment))
    groups: dict[str, float] = defaultdict(float)
    for rule, rule_total in rules.items():
        groups[GROUPS.get(rule, OTHERS)] += rule_total.seconds - rule_total.start
        groups[STARTS] += rule_total.start
    used = sum(groups.values())
    idle = idle_core_seconds(jobs, used, cores)
    total = used + idle
    click.echo(f"{'rule':<20}{'jobs':>6}{'core-seconds':>14}{'a job':>8}{'start a job':>13}")
    for rule, rule_total in rules.items():
        start = f"{rule_total.start / rule_total.jobs:.1f}" if rule in WORK_RECORDS else "-"
        click.echo(
            f"{rule:<20}{rule_total.jobs:>6}{rule_total.seconds:>14.1f}"
            f"{rule_total.seconds / rule_total.jobs:>8.1f}{start:>13}"
        )
    click.echo("")
    for name, seconds in sorted(groups.items(), key=lambda item: -item[1]):
        click.echo(f"{name:<34}{seconds:>14.1f}{seconds / total:>8.1%}")
    click.echo(f"{'between jobs':<34}{idle:>14.1f}{idle / total:>8.1%}")
    outside = total - sum(groups[name] for name in MAIN_GROUPS)
    click.echo(f"Outside {', '.join(MAIN_GROUPS)}: {outside / total:.1%} of {total:.0f} core-seconds.")


if __name__ == "__main__":
    main()
