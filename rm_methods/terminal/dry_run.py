"""A dry run in one screen: the jobs by rule, and why they would run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# With fewer jobs, each is listed.
_LISTED_JOBS = 20
_FOLLOWS = "its input is made first"
# Start of Snakemake's reason -> ours.  A file below config/asked holds settings and the hash of the code.
_REASONS = (
    (re.compile(r"Missing output files: (.*)"), "no result yet"),
    (re.compile(r"Incomplete output files: (.*)"), "stopped before its end"),
    (re.compile(r"Updated input files: (?:[^,]*/config/asked/[^,]*\.json(?:, )?)+$"), "settings or code changed"),
    (re.compile(r"Updated input files: (.*)"), "input changed"),
    (re.compile(r"Input files updated by another job: (.*)"), _FOLLOWS),
    (re.compile(r"Forced execution"), "forced"),
    (
        re.compile(r"(?:Set of input files has changed|Params have changed|Code has changed|Software env).*"),
        "rule changed",
    ),
)


@dataclass(frozen=True)
class PlannedJob:
    """A job of a dry run: its rule, what it is, and Snakemake's reason to run it."""

    rule: str
    title: str
    reason: str


def short_reason(reason: str) -> tuple[str, str]:
    """Why a job would run, in a few words, and the first file that Snakemake names.

    Running after another job counts only if nothing else is a reason.
    """
    labels = []
    for part in reason.split("; "):
        for pattern, label in _REASONS:
            if match := pattern.match(part):
                file = match[1].split(", ")[0] if match.groups() else ""
                labels.append((label, file))
                break
        else:
            labels.append((part, ""))
    others = [entry for entry in labels if entry[0] != _FOLLOWS]
    return (others or labels)[0]


def dry_run_text(table: str, jobs: Sequence[PlannedJob]) -> str:
    """The table of Snakemake, and the reasons: of each job, or of each rule if the jobs are many."""
    jobs = [job for job in jobs if job.rule != "all"]
    lines = [table.rstrip(), "", "Why:"]
    if len(jobs) <= _LISTED_JOBS:
        for job in jobs:
            label, file = short_reason(job.reason)
            lines.append(f"  {job.title}: {label}{f' ({file})' if file else ''}")
    else:
        counts: dict[str, Counter[str]] = {}
        for job in jobs:
            counts.setdefault(job.rule, Counter())[short_reason(job.reason)[0]] += 1
        by_reasons: dict[tuple[str, ...], list[str]] = {}
        for rule, reasons in counts.items():
            by_reasons.setdefault(tuple(reasons), []).append(rule)
        lines += [f"  {', '.join(reasons)}: {', '.join(rules)}" for reasons, rules in by_reasons.items()]
    lines += ["", "Nothing was run (-n). Add -p to see every job with its reason and its command."]
    return "\n".join(lines)
