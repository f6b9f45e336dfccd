"""The command `rm-methods` of a workflow with a warm start (warm_start.py): hands itself to a server, or starts cold.

Runs as a file, without site-packages, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def main(folder: str, arguments: list[str]) -> None:
    """Run the command and end as it ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The folder has one server for each number of threads.
    address = os.path.join(folder, os.environ.get("OMP_NUM_THREADS", ""))
    try:
        server = socket.socket(socket.AF_UNIX)
        server.connect(address)
        message = json.dumps({"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(message)
        answers = server.makefile("rb")
        answer = answers.readline().split()
        if not answer or answer[0] != b"ready":
            raise OSError("The server ended or refused.")
        forward_signals(int(answer[1]))
        server.sendall(b"go")
    except OSError:
        start_cold(folder, arguments)
        return
    answer = []
    with contextlib.suppress(OSError):
        answer = answers.readline().split()
    if not answer:
        sys.exit("rm-methods: the server of the warm start was killed, and this command with it. Run it again.")
    end_with(int(answer[1]))


def forward_signals(process: int) -> None:
    """Send signals on to the process that runs the command."""

    def forward(number, frame):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    for name in FORWARDED:
        signal.signal(getattr(signal, name), forward)


def start_cold(folder: str, arguments: list[str]) -> None:
    """Become the ordinary command."""
    paths = [path for path in os.environ["PATH"].split(os.pathsep) if path != folder]
    os.environ["PATH"] = os.pathsep.join(paths)
    os.execvp("rm-methods", ["rm-methods", *arguments])


def end_with(status: int) -> None:
    """End with an exit status, or by the signal of a negative one."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
