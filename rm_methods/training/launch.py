"""Starts and stops the processes of a training run: checks the GPUs, starts one rank for each GPU through torchrun (on
one node or on the nodes of a Slurm job), and ends a run that gets a signal.

It uses torchrun, not DeepSpeed's launcher, because torchrun needs no ssh and works inside Slurm.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rm_methods.errors import UserError
from rm_methods.system.cluster import allocated_nodes

# Set by tests with simulated GPUs: Slurm's number of GPUs is then not compared with torch's.
STAND_INS = "RM_METHODS_GPU_STAND_INS"
_TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
# The other variables of the allocation would set options of the job step that is started here.
_KEPT_OF_SLURM = ("SLURM_JOB_ID", "SLURM_CONF", "SLURM_CLUSTER_NAME")
_SECONDS_TO_STOP = 25  # below the 30 s that Slurm gives a job by default
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def check_gpus(requested: int, ranks: int, setting: str) -> None:
    """Compare the GPUs that this process may use with the number asked for.

    In a Slurm job the two must be equal: with fewer, ranks would share a GPU; with more, jobs on one node take the same
    ones.  Elsewhere a machine with GPUs must have one for every rank.

    Args:
        requested: GPUs on each node; 0 for a job on CPUs.
        ranks: processes on each node.
        setting: key path of their number in the configuration.

    Raises:
        UserError: the number differs; gives the number seen and says what to change.
    """
    import torch

    seen = torch.cuda.device_count()
    if "SLURM_JOB_ID" not in os.environ:
        if seen and ranks > seen:
            raise UserError(
                f"{setting}: {ranks} ranks need a GPU each, but {socket.gethostname()} shows {seen}. Lower it, or use "
                "a machine with more GPUs."
            )
        return
    if not requested:
        return
    variable = next((name for name in _VISIBLE if name in os.environ), None)
    if variable is None:
        allocated = seen
        shown = "CUDA_VISIBLE_DEVICES is not set"
    else:
        allocated = sum(bool(word.strip()) for word in os.environ[variable].split(","))
        shown = f"{variable}={os.environ[variable]}"
    where = f"Slurm job {os.environ['SLURM_JOB_ID']} on {socket.gethostname()}"
    if allocated != requested:
        raise UserError(
            f"resources.gpus: {requested} GPUs were asked for, but {where} shows {allocated} ({shown}). Submit with "
            "the profile workflow/profiles/slurm and change the number in the configuration, not in the profile. If "
            "both are right, the command runs once per GPU (set the resource tasks to 0), or the cluster does not "
            "hand out GPUs by job (GresTypes=gpu; ask its administrators)."
        )
    if seen != allocated and STAND_INS not in os.environ:
        if _torch_has_gpus():
            why = "the driver does not show them all"
        else:
            why = f"torch {torch.__version__} is a build without GPU support"
        raise UserError(
            f"{where} has {allocated} GPUs ({shown}), but torch sees {seen}: {why}. Install the CUDA build, or use "
            "another node."
        )


def launch_ranks(processes: int, resources: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Run `rm-methods <arguments>` once per rank and wait for all.

    Args:
        processes: ranks on each node.
        resources: section of the configuration.

    Raises:
        UserError: a rank failed (its message is on stderr), or the job has another number of nodes than
            `resources.nodes`.
    """
    nodes = resources["nodes"]
    environment = dict(os.environ)
    if nodes == 1:
        command = [*_TORCHRUN, "--standalone", f"--nproc_per_node={processes}"]
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
    else:
        job = _job_with(nodes)
        command = several_nodes_command(processes, resources, job, os.environ)
        threads = max(1, resources["threads"] // processes)
        environment = {
            name: value
            for name, value in environment.items()
            if not name.startswith(("SLURM_", "SRUN_", "SBATCH_")) or name in _KEPT_OF_SLURM
        }
    command += ["-m", "rm_methods.cli", *arguments]
    status = _run(command, {"OMP_NUM_THREADS": str(threads), **environment})
    if status:
        raise UserError(f"A rank failed (exit status {status}); its message is printed above.")


def several_nodes_command(
    processes: int, resources: Mapping[str, Any], job: str, environment: Mapping[str, str]
) -> list[str]:
    """The command that starts one torchrun on every node of a Slurm job; they meet on the first node, which runs this.

    Args:
        processes: ranks on each node.
        resources: section of the configuration.
        job: number of the Slurm job; sets the port, so that two jobs on one node use different ones.
        environment: MASTER_ADDR and MASTER_PORT override the host name and the port.
    """
    nodes = resources["nodes"]
    gpus = resources["gpus"]
    host = environment.get("MASTER_ADDR", socket.gethostname())
    port = environment.get("MASTER_PORT", str(15000 + int(job) % 15000))
    srun = [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={resources['threads']}",
    ]
    srun += [f"--gpus-per-node={gpus}"] if gpus else []
    meeting = ["--rdzv_backend=c10d", f"--rdzv_endpoint={host}:{port}", f"--rdzv_id={job}"]
    # A failed node must end all others, because they would wait for it.
    return [*srun, "--kill-on-bad-exit=1", *_TORCHRUN, f"--nnodes={nodes}", f"--nproc_per_node={processes}", *meeting]


class Stopped(SystemExit):
    """A signal told the run to stop."""


@contextmanager
def stops_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 (time limit, preemption, scancel) end the block like an error does.

    So half-written files are removed and the run's lock is released; the last complete checkpoint stays, and the same
    command continues from it.  By default, Python would end at once on both signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1)

    def stop(number, frame):
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)  # Slurm and torchrun both send one; the cleanup has begun
        print(
            f"rm-methods: stopped by {signal.Signals(number).name}. Nothing half-written is kept; the same command "
            "continues from the last complete checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        raise Stopped(128 + number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _torch_has_gpus() -> bool:
    import torch

    return bool(torch.version.cuda or torch.version.hip)


def _job_with(nodes: int) -> str:
    """The number of this Slurm job, which must have `nodes` nodes."""
    job = os.environ.get("SLURM_JOB_ID")
    allocated = allocated_nodes(job) if job else None
    if job is None or allocated != nodes:
        seen = f"Slurm job {job} has {allocated}" if job else "this is not a Slurm job"
        raise UserError(
            f"resources.nodes: {nodes} nodes were asked for, but {seen}. Run the workflow with --workflow-profile "
            "workflow/profiles/slurm (or inside sbatch with as many nodes), or set resources.nodes: 1."
        )
    return job


def dies_with_its_launcher() -> None:
    """Have this rank killed when torchrun ends, even while it hangs in a collective operation and handles no signal."""
    if "TORCHELASTIC_RUN_ID" in os.environ and (prctl := getattr(ctypes.CDLL(None), "prctl", None)):
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def threads_of_rank(threads: int) -> int:
    """A rank's share of a job's CPU threads, at least 1; 0 (leave it to torch) stays 0."""
    return threads and max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def end_of_rank(world_size: int) -> None:
    """End all ranks together and at once.

    Everything is written by now.  The threads of the communication library sometimes abort a rank whose interpreter
    shuts down in the ordinary way (seen with ZeRO-3 on gloo), and the launcher would then report a failed training.
    """
    if world_size > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end.  On an interruption, it gets SIGTERM and time to stop."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only
    # The ranks of a killed launcher must not continue to write without the run's lock.
    child = subprocess.Popen(
        command, env=environment, preexec_fn=(lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)) if prctl else None
    )
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
