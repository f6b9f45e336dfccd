"""Slurm: the resources of a training job, the state of a job, and `rm-methods cancel`.

Snakemake's Slurm plugin submits the jobs (docs/clusters.md).  Imports nothing heavy: the Snakefile uses it too.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError

JOB_PREFIX = "rm-methods"  # `slurm-jobname-prefix` in workflow/profiles/slurm/config.yaml
# States of a job that has processes, or may still have them (`man squeue`, JOB STATE CODES).
RUNNING_STATES = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
ENDING_STATES = frozenset({"COMPLETING"})
_SECONDS_FOR_SLURM = 60


@dataclass(frozen=True)
class QueuedJob:
    """One job in Slurm's queue; `where` is its nodes, or the reason why it waits."""

    job_id: str
    name: str
    state: str
    where: str
    comment: str
    folder: Path


def train_resource(config: Mapping[str, Any], is_trained: Callable[[str], bool], name: str) -> Callable:
    """A resource of the train rule, as a function of its wildcards.

    A job on one node is one task; it starts torchrun itself.  A job on several nodes is one task a node, which the
    plugin calls an MPI job: Snakemake then runs on the first node, and the training command starts one torchrun on
    each (`training/launch.py`).  Such a job asks for GPUs per node, because Slurm may spread a total unevenly.

    Args:
        config: resolved configuration.
        is_trained: whether a variant is trained; other variants need neither GPUs nor nodes.
        name: gpu, nodes, tasks, mpi, gres or tasks_per_gpu.

    Returns:
        The function; its value None leaves the resource unset.
    """
    gpus = config["resources"]["gpus"]
    nodes = config["resources"]["nodes"]
    # tasks 0: some versions of the plugin turn one task into one task per GPU, which would run the whole command once
    # per GPU.
    one_node = {"gpu": gpus, "tasks": 0}
    several = {"gpu": 0, "nodes": nodes, "tasks": nodes, "mpi": "srun"} | (
        {"gres": f"gpu:{gpus}", "tasks_per_gpu": 0} if gpus else {}
    )
    trained = one_node if nodes == 1 else several
    return lambda wildcards: (trained if is_trained(wildcards.variant) else {"gpu": 0, "tasks": 0}).get(name)


def job_state(job_id: str) -> str | None:
    """State of a job in squeue's words, "GONE" if Slurm no longer knows it; None if Slurm does not answer."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"],
            capture_output=True, text=True, timeout=_SECONDS_FOR_SLURM,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "GONE" if "Invalid job id" in done.stderr else None
    return done.stdout.strip().split("\n")[0] or "GONE"


def allocated_nodes(job_id: str) -> int | None:
    """Number of nodes of a job; None if Slurm does not answer."""
    try:
        return int(_slurm("squeue", "--noheader", f"--jobs={job_id}", "--format=%D").strip())
    except (UserError, ValueError):
        return None


def queued_jobs(prefix: str = JOB_PREFIX, folder: Path | None = None) -> list[QueuedJob]:
    """This user's waiting and running jobs of Snakemake runs with a job-name prefix.

    Args:
        folder: only jobs that were submitted from this folder; None takes all.

    Raises:
        UserError: Slurm is not installed or does not answer.
    """
    text = _slurm("squeue", "--noheader", f"--user={_user()}", "--format=%i\t%j\t%T\t%R\t%k\t%Z")
    jobs = [_queued_job(line) for line in text.splitlines() if line.count("\t") >= 5]
    jobs = [job for job in jobs if job.name.startswith(f"{prefix}_")]
    return jobs if folder is None else [job for job in jobs if _same_folder(job.folder, folder)]


def _queued_job(line: str) -> QueuedJob:
    """A job from a line of squeue."""
    job_id, name, state, where, comment, folder = line.split("\t", 5)
    return QueuedJob(job_id=job_id, name=name, state=state, where=where, comment=comment, folder=Path(folder))


def cancel(folder: Path | None, prefix: str = JOB_PREFIX, patience: float = 90.0) -> list[QueuedJob]:
    """Cancel the jobs that a killed Snakemake left in Slurm's queue, and wait until they are gone.

    Args:
        folder: only jobs that were submitted from this folder; None takes all of this user's with the prefix.
        patience: seconds to wait for the jobs to end.

    Returns:
        The jobs that were canceled.

    Raises:
        UserError: a Snakemake still runs in `folder`, Slurm does not answer, or jobs do not end.
    """
    if folder is not None and (process := _running_snakemake(folder)):
        raise UserError(
            f"Snakemake still runs in {folder} (process {process} on this machine) and would submit canceled jobs "
            f"again. Interrupt it instead (Ctrl-C, or kill -INT {process}): it cancels its jobs itself."
        )
    jobs = queued_jobs(prefix, folder)
    if not jobs:
        return []
    job_ids = [job.job_id for job in jobs]
    _slurm("scancel", *job_ids)
    deadline = time.monotonic() + patience
    while remaining := [job for job in queued_jobs(prefix, folder) if job.job_id in job_ids]:
        if time.monotonic() > deadline:
            names = ", ".join(f"{job.job_id} ({job.state} on {job.where})" for job in remaining)
            raise UserError(
                f"Canceled {len(jobs)} jobs, but {names} did not end within {patience:.0f} s. Look again with squeue."
            )
        time.sleep(0.5)
    return jobs


def describe(jobs: Sequence[QueuedJob]) -> str:
    """One line per job: number, state, rule (which the plugin stores in the comment), nodes."""
    return "\n".join(f"  {job.job_id}  {job.state.lower()}  {job.comment}  {job.where}" for job in jobs)


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_FOR_SLURM)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]}: not found. Run this where Slurm's commands are installed (a login node of the cluster)."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]}: no answer from Slurm within {_SECONDS_FOR_SLURM} s. Try again when the controller is up."
        ) from None
    if done.returncode:
        raise UserError(f"{' '.join(command[:2])} failed ({done.returncode}): {done.stderr.strip() or 'no message'}")
    return done.stdout


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _same_folder(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _running_snakemake(folder: Path) -> int | None:
    """Process number of a Snakemake that submits from `folder` on this machine; those inside its jobs have an
    execution mode."""
    import psutil

    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        cwd = process.info["cwd"]
        starts = any(Path(word).name == "snakemake" for word in words[:3])
        if starts and "--mode" not in words and "-n" not in words and cwd and _same_folder(Path(cwd), folder):
            return process.info["pid"]
    return None
