"""One writer per run folder.

Snakemake has a lock, too, but a killed Snakemake leaves its jobs running on a cluster, and the next one would start
them a second time.  So every run takes `writer.lock` in its folder: a file that is linked into place (atomic on network
file systems too) and touched every few seconds.  These show whether the writer of a lock is still alive:

* on the same machine: its process;
* on another machine of the same cluster: its Slurm job;
* anywhere else: the time of the file, which a living writer touches.  Times come from the file system, so that two
  clocks are never compared.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rm_methods.errors import UserError
from rm_methods.processes import machine, started
from rm_methods.system.cluster import ENDING_STATES, RUNNING_STATES, job_state

LOCK = "writer.lock"
BEAT_SECONDS = 15.0
DEAD_AFTER_SECONDS = 120.0
POLL_SECONDS = 1.0
ALIVE, DEAD, UNCERTAIN = "alive", "dead", "uncertain"


@contextmanager
def run_lock(folder: str | os.PathLike, patient: bool = False, name: str = LOCK) -> Iterator[None]:
    """Hold a run folder while the block runs.

    The lock of a dead writer is taken over.  If a writer is certainly alive, this refuses at once.  If it may be alive,
    this waits until the lock was not touched for two minutes.  If another process takes the lock meanwhile (this
    machine was suspended), SIGTERM stops this process before it writes more.

    Args:
        patient: wait for a writer that is alive.
        name: file name of the lock, for folders in which several processes write different files.

    Raises:
        UserError: another process writes this run; names it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / name
    entry = _me()
    _acquire(lock, entry, patient)
    released = threading.Event()
    beat = threading.Thread(target=_keep, args=(lock, entry["token"], released), daemon=True, name="writer lock")
    beat.start()
    try:
        yield
    finally:
        released.set()
        beat.join()
        if (_read(lock) or {}).get("token") == entry["token"]:
            lock.unlink(missing_ok=True)


def target_lock(target: str | os.PathLike):
    """Like `run_lock`, for one file or folder to be written; its neighbors stay free."""
    target = Path(target)
    return run_lock(target.parent, name=f".{target.name}.lock")


def held_until_exit(folder: str | os.PathLike) -> None:
    """Take the lock of `run_lock` for the rest of this process.

    Raises:
        UserError: as `run_lock`.
    """
    stack = ExitStack()
    stack.enter_context(run_lock(folder))
    atexit.register(stack.close)


def writer_state(writer: dict, age_seconds: float) -> str:
    """Whether the writer of a lock is alive.

    Args:
        writer: the content of the lock.
        age_seconds: since the lock was touched, by the file system's clock.

    Returns:
        ALIVE, DEAD or UNCERTAIN.
    """
    if writer.get("machine") == machine():
        start = started(writer.get("process"))
        return ALIVE if start is not None and start == writer.get("started") else DEAD
    # A job that Slurm restarted on another node meets its earlier lock; then only the file's time can tell.
    job, cluster = writer.get("job"), writer.get("cluster")
    if job and cluster and cluster == os.environ.get("SLURM_CLUSTER_NAME") and job != os.environ.get("SLURM_JOB_ID"):
        state = job_state(job)
        # An allocation may outlive the writer in it; nothing touches the lock then.
        if state in RUNNING_STATES and (state != "RUNNING" or age_seconds <= DEAD_AFTER_SECONDS):
            return ALIVE
        if state is not None and state not in ENDING_STATES:
            return DEAD
    return DEAD if age_seconds > DEAD_AFTER_SECONDS else UNCERTAIN


def describe(writer: dict) -> str:
    """The writer of a lock in words."""
    job = f", Slurm job {writer['job']}" if writer.get("job") else ""
    return f"process {writer.get('process', '?')} on {writer.get('host', '?')}{job}, since {writer.get('since', '?')}"


def _acquire(lock: Path, entry: dict, patient: bool) -> None:
    watched = None  # (token, time of the last touch) of a writer that may be alive
    awaited = None  # token of the writer that we wait for
    while not _create(lock, entry):
        writer, touched, age = _look(lock)
        if writer is None:
            continue
        state = writer_state(writer, age)
        if state == UNCERTAIN and watched and watched[0] == writer.get("token") and watched[1] != touched:
            state = ALIVE
        if state == ALIVE and patient:
            if awaited != writer.get("token"):
                awaited = writer.get("token")
                print(
                    f"{lock.parent} is being written by {describe(writer)}; waits for it.", file=sys.stderr, flush=True
                )
            time.sleep(POLL_SECONDS)
            continue
        if state == ALIVE:
            end = f"end it (rm-methods cancel, or scancel {writer['job']})" if writer.get("job") else "end it"
            raise UserError(
                f"{lock.parent} is being written by {describe(writer)}. Wait for it, or {end}, then run this again."
            )
        if state == DEAD:
            _remove(lock, writer)
            print(f"{lock.parent}: takes over from {describe(writer)}, which is gone.", file=sys.stderr, flush=True)
            continue
        if watched is None or watched[0] != writer.get("token"):
            watched = (writer.get("token"), touched)
            wait = max(DEAD_AFTER_SECONDS - age, 0)
            print(
                f"{lock.parent}: waits up to {wait:.0f} s to see whether {describe(writer)} is alive.",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(POLL_SECONDS)


def _create(lock: Path, entry: dict) -> bool:
    temporary = lock.with_name(f".{lock.name}.{entry['token']}")
    temporary.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    try:
        os.link(temporary, lock)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink()


def _remove(lock: Path, writer: dict) -> None:
    """Remove a dead writer's lock.  If another process was faster, this puts that process's lock back."""
    aside = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    try:
        if (_read(aside) or {}).get("token") != writer.get("token"):
            with suppress(
                FileExistsError
            ):  # a third process came between; the one that was moved aside notices and stops
                os.link(aside, lock)
    finally:
        aside.unlink()


def _read(lock: Path) -> dict | None:
    """Content of a lock; None if it does not exist.  An unreadable lock has an unknown writer."""
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _look(lock: Path) -> tuple[dict | None, float, float]:
    """Content, time of the last touch and seconds since then, by the file system's clock."""
    probe = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}")
    probe.touch()
    try:
        touched = lock.stat().st_mtime
        return _read(lock), touched, probe.stat().st_mtime - touched
    except FileNotFoundError:
        return None, 0.0, 0.0
    finally:
        probe.unlink()


def _keep(lock: Path, token: str, released: threading.Event) -> None:
    while not released.wait(BEAT_SECONDS):
        try:
            if (_read(lock) or {}).get("token") != token:
                print(f"{lock}: another process has taken this run over; stopping.", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.utime(lock)
        except OSError as error:
            print(f"{lock}: could not be touched ({error}); trying again.", file=sys.stderr, flush=True)


def _me() -> dict:
    process = os.getpid()
    return {
        "token": uuid.uuid4().hex,
        "process": process,
        "started": started(process),
        "host": socket.gethostname(),
        "machine": machine(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
