"""Failed jobs, each with the reason from its log, grouped by reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_methods.terminal.log_file import failure_reason

_SIGNAL = re.compile(r"died with <Signals\.(SIG\w+)|exit status (137|143)\b")
_SIGNAL_OF_STATUS = {"137": "SIGKILL", "143": "SIGTERM"}
_SHOWN_JOBS = 5


@dataclass(frozen=True)
class Failure:
    """A job that failed.

    Attributes:
        title: what the job is, as the rule's message says.
        log: to read; None if the job has none.
        reason: lines.
    """

    title: str
    log: Path | None
    reason: tuple[str, ...]


def failure_of(title: str, logs: Sequence[Path], cluster_says: str | None, commands: Iterable[str]) -> Failure:
    """The failure of a job.

    Args:
        logs: of the job, then those of the cluster.
        cluster_says: what the cluster's scheduler says about the job.
        commands: Snakemake's texts on commands that failed; the one that names the job's log belongs to the job.
    """
    reason = failure_reason(logs)
    command = next((text for text in commands if logs and str(logs[0]) in text), "")
    if match := _SIGNAL.search(command):
        name = match[1] or _SIGNAL_OF_STATUS[match[2]]
        out_of_memory = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
        reason = [f"The job was ended by {name}{out_of_memory}.", *(f"Last line: {line}" for line in reason[-1:])]
    if cluster_says:
        reason.append(cluster_says.strip().splitlines()[0])
    unknown = "The log is empty." if logs else "The job has no log."
    return Failure(title, logs[0] if logs else None, tuple(reason or [unknown]))


def failure_text(failures: Sequence[Failure], done: int, total: int) -> str:
    """All failures, those with the same reason together, and what to do."""
    groups: dict[tuple[str, ...], list[Failure]] = {}
    for failure in failures:
        groups.setdefault(failure.reason, []).append(failure)
    lines = [f"{len(failures)} job{'s' if len(failures) > 1 else ''} failed; {done} of {total} are done."]
    for reason, group in groups.items():
        lines += ["", *(failure.title for failure in group[:_SHOWN_JOBS])]
        if len(group) > _SHOWN_JOBS:
            lines.append(f"and {len(group) - _SHOWN_JOBS} more")
        lines += [f"    {line}" for line in reason]
        if group[0].log:
            lines.append(f"  Log: {group[0].log}")
    lines += [
        "",
        "When the cause is gone, run the same command again: finished jobs stay, and trainings continue from their "
        "last checkpoint.",
    ]
    return "\n".join(lines)
