"""`rm-methods` for tests that start it dozens of times: it starts in a fraction of a second.

Importing torch and transformers takes seconds, and every job of a workflow is a process.  Here one process imports the
packages that others wrote, and every command is forked from it.  The rest is as ever: a process of its own with its
arguments, folder, environment and streams, our package read anew from PYTHONPATH, and its exit status.

Not for tests that kill: whoever kills a command's process group misses what runs here.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# What trainings and scorers import.
PACKAGES = (
    "torch", "transformers.trainer", "transformers.models.llama.modeling_llama", "datasets", "peft", "pandas",
    "scipy.stats", "jsonschema",
)  # fmt: skip
# The command that tests start.  -S and -E leave out most of the start of Python itself.
CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    command = {{"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}
    message = json.dumps(command).encode()
    socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(message)
    sys.exit(int(server.recv(16) or 1))
"""


@contextlib.contextmanager
def warm_command() -> Iterator[Path]:
    """A folder with the command, to be put first on the PATH; the command works as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        client = Path(folder) / "rm-methods"
        address = str(Path(folder) / "socket")
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        server = [sys.executable, "-m", "tests.workflow.warm", address]
        with subprocess.Popen(server, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield client.parent
            finally:
                process.kill()


def serve(address: str) -> None:
    """Fork a process for every command; returns in such a process only, ready to run the command."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(64)
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        process = os.fork()
        if process == 0:
            server.close()
            become_the_command(connection)
            return
        threading.Thread(target=answer_with_status_of, args=(process, connection), daemon=True).start()


def answer_with_status_of(process: int, connection: socket.socket) -> None:
    """Tell the client how the command's process ended."""
    _, status = os.waitpid(process, 0)
    with connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())


def become_the_command(connection: socket.socket) -> None:
    """Take on its arguments, folder, environment and streams."""
    header, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection, connection.makefile("rb") as stream:
        command = json.loads(stream.read(int.from_bytes(header, "big")))
    for number, copy in enumerate(streams):
        os.dup2(copy, number)
        os.close(copy)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv = command["arguments"]
    here = str(REPOSITORY)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, paths), *(path for path in sys.path if path != here)]


if __name__ == "__main__":
    gc.disable()
    for package in PACKAGES:
        importlib.import_module(package)
    assert not [name for name in sys.modules if name.split(".")[0] == "rm_methods"]
    gc.freeze()  # a collection in a command would copy all of this memory
    gc.enable()
    serve(sys.argv[1])
    importlib.import_module("rm_methods.cli").main()
