"""Commands of a workflow that start at once.

Every job of a workflow is a process, and importing torch and transformers takes a process seconds.  So a server process
imports the packages that others wrote, and forks a process for every `rm-methods` that the workflow calls.  The rest is
as in a cold start: own arguments, folder and streams, our package read from its files, the same exit status.  The
environment must be the server's, because packages read variables while they are imported.

`warm_client.py` is the command.  It starts cold whenever a server does not answer or refuses.  A server ends with the
workflow, and a forked process with its client or its server, whatever ends them.

Not on machines with an accelerator: CUDA does not work in a process that was forked after CUDA was asked for devices.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND = "rm-methods"
# What trainings and scorers import.  None of them may start threads of Python, which a fork would lose (mlflow does).
PACKAGES = (
    "torch",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "peft",
    "pandas",
    "scipy.stats",
    "jsonschema",
)
# Variables that may differ between the server and a command: no package keeps their values when it is imported.
FREE_VARIABLES = {"PWD", "OLDPWD", "SHLVL", "_", "TMPDIR", "TMP", "TEMPDIR", "TEMP"}
# Snakemake sets them to the threads of a job.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_LONGEST_ADDRESS = 107  # bytes, from unix(7)
_WAITING_CLIENTS = 128
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
# sys.path begins as in a cold start: with the folder of the command.
_SERVER = (
    "import sys; sys.path[0] = sys.argv[1]; from rm_methods.system.warm_start import serve; "
    "serve(int(sys.argv[2]), sys.argv[3:])"
)
_servers: list[subprocess.Popen] = []  # their standard input closes with this process, which ends them


def start_servers(threads: Iterable[int], packages: Sequence[str] = PACKAGES) -> Path | None:
    """Let every `rm-methods` that this process and its children start be forked from a server.

    Args:
        threads: numbers of CPU threads that commands may ask for in OMP_NUM_THREADS; each has its own server, because
            libraries read the number when they are loaded.
        packages: modules to import.

    Returns:
        The folder of the command, which is now the first on the PATH; None where commands cannot be forked, for
        instance because the `rm-methods` on the PATH belongs to another Python.
    """
    command = shutil.which(COMMAND)
    if sys.platform != "linux" or command is None:
        return None
    scripts = Path(command).absolute().parent
    if not scripts.samefile(Path(sys.executable).parent):
        return None
    folder = _short_folder()
    if folder is None:
        return None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    client = Path(__file__).with_name("warm_client.py")
    script = folder / COMMAND
    script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-SE", str(client), str(folder)])} "$@"\n')
    script.chmod(0o700)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    for number in sorted(set(threads)):
        _start_server(folder / str(number), scripts, number, packages)
    return folder


def _short_folder() -> Path | None:
    """A new folder that only this user may enter, with a path short enough for sockets; None where all are long."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        with contextlib.suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="rm-methods-", dir=parent))
            if len(os.fsencode(folder / "1000")) <= _LONGEST_ADDRESS:
                return folder
            folder.rmdir()
    return None


def _start_server(address: Path, scripts: Path, threads: int, packages: Sequence[str]) -> None:
    """Start the server of one number of threads; clients may connect at once, and wait until it has imported all."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen(_WAITING_CLIENTS)
        descriptor = listening.fileno()
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(scripts), str(descriptor), *packages],
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[descriptor],
            # Signals of the terminal reach clients, which forward them; a command must not get them twice.
            start_new_session=True,
        )
    _servers.append(server)


def serve(descriptor: int, packages: Sequence[str]) -> None:
    """Fork a process for every command until standard input closes; returns in these processes, after the command.

    Args:
        descriptor: number of the file descriptor of the listening socket.
        packages: modules to import first; those that are not installed are left out.
    """
    listening = socket.socket(fileno=descriptor)
    environment = dict(os.environ)
    for package in packages:
        if importlib.util.find_spec(package.partition(".")[0]):
            importlib.import_module(package)
    set_by_packages = {name: value for name, value in os.environ.items() if environment.get(name) != value}
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        return
    gc.collect()
    gc.freeze()  # searching these objects for garbage would copy their memory in every forked process
    connection = _fork_for_every_command(listening)
    command = _received(connection, environment)
    if command is not None:
        _become(command, set_by_packages)
        importlib.import_module("rm_methods.cli").main()


def _fork_for_every_command(listening: socket.socket) -> socket.socket:
    """Answer clients, and end processes whose client has ended.  Returns in forked processes only: the connection."""
    server = os.getpid()
    ended, alarm = os.pipe()
    for end in (ended, alarm):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    commands: dict[int, socket.socket] = {}  # by process
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(ended, select.POLLIN)
    poll.register(0, 0)  # 0: tells only when the other end was closed
    while True:
        ready = dict(poll.poll())
        if 0 in ready:
            _end_server(listening, commands)
        for process, connection in commands.items():
            if connection.fileno() in ready:
                _kill(process)
        if ended in ready:
            os.read(ended, 4096)
            for process in list(commands):
                if _reaped(process, commands[process]):
                    poll.unregister(commands[process])
                    commands.pop(process).close()
        if listening.fileno() in ready:
            connection, _ = listening.accept()
            process = os.fork()
            if process == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(ended)
                os.close(alarm)
                for other in (listening, *commands.values()):
                    other.close()
                _die_with(server)
                return connection
            commands[process] = connection
            poll.register(connection, 0)


def _reaped(process: int, connection: socket.socket) -> bool:
    """Whether a forked process has ended; its client then gets the exit status, negative for a signal."""
    done, status = os.waitpid(process, os.WNOHANG)
    if done:
        with contextlib.suppress(OSError):
            connection.sendall(f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
    return bool(done)


def _kill(process: int) -> None:
    """Kill a forked process that was not reaped yet, and what it has started."""
    os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def _end_server(listening: socket.socket, commands: Iterable[int]) -> None:
    for process in commands:
        _kill(process)
    shutil.rmtree(Path(listening.getsockname()).parent, ignore_errors=True)
    os._exit(0)


def _die_with(server: int) -> None:
    """Have this process killed when its server ends."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)


@dataclass(frozen=True)
class _Command:
    """A command of a client: its arguments, folder, environment and streams (file descriptors 0, 1 and 2)."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]


def _received(connection: socket.socket, environment: Mapping[str, str]) -> _Command | None:
    """The client's command; None if it has ended, or if this process cannot run it, which the client is told.

    Args:
        environment: variables under which the packages were imported.
    """
    header, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection, connection.makefile("rb") as stream:
        command = _Command(**json.loads(stream.read(int.from_bytes(header, "big"))), streams=streams)
        if _fixed(command.environment) != _fixed(environment):
            connection.sendall(b"refused\n")
            return None
        os.chdir(command.folder)
        connection.sendall(f"ready {os.getpid()}\n".encode())
        # Only after the client has prepared to forward signals: this process may be told to clean up, then.
        if stream.read(2) != b"go":
            return None
    return command


def _become(command: _Command, set_by_packages: Mapping[str, str]) -> None:
    """Give this process what distinguishes a command from another."""
    for number, copy in enumerate(command.streams):
        os.dup2(copy, number)
        os.close(copy)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(command.environment)
    os.environ.update(set_by_packages)
    sys.argv = [COMMAND, *command.arguments]
    tempfile.tempdir = None
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # numpy's global generator starts anew in every process


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in FREE_VARIABLES}
