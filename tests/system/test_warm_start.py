"""Forked commands: like cold ones in all that a workflow sees, and ended with whatever they depend on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rm_methods.processes import started
from rm_methods.system.warm_start import THREAD_VARIABLES
from tests.conftest import REPOSITORY

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux only"),
]

# Stands for Snakemake.
WORKFLOW = """
import sys
from rm_methods.system.warm_start import start_servers
print(start_servers({1, 2}, sys.argv[1:]), flush=True)
sys.stdin.read()
"""
# Stands for the commands of the package.
COMMANDS = """
import json, os, signal, sys, tempfile, time

def main():
    verb, *rest = sys.argv[1:]
    if verb == "show":
        print(json.dumps({
            "program": os.path.basename(sys.argv[0]), "arguments": rest, "folder": os.getcwd(),
            "input": sys.stdin.read(),
            "environment": {k: v for k, v in os.environ.items() if k not in ("PATH", "_")},
            "temporary": tempfile.gettempdir(),
            "path": sys.path[:2], "warm": "rm_methods.system.warm_start" in sys.modules, "server": os.getppid(),
        }))
        print("on the other stream", file=sys.stderr)
    if verb == "exit":
        sys.exit(int(rest[0]))
    if verb == "raise":
        raise ValueError(rest[0])
    if verb == "die":
        print("before", flush=True)
        os.kill(os.getpid(), int(rest[0]))
    if verb == "wait":
        def stop(number, frame):
            print("stopped by", number)
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, stop)
        try:
            print(os.getpid(), os.getppid(), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted")
            sys.exit(5)
"""


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT reaches the processes of these tests, even if they run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Workflow:
    """A process that has started a server, and commands with its environment."""

    def __init__(self, folder: Path, packages: tuple[str, ...] = (), **variables: str):
        package = folder / "code" / "rm_methods"
        if not package.exists():
            for name in ("__init__.py", "system/__init__.py", "system/warm_start.py", "system/warm_client.py"):
                (package / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / "rm_methods" / name, package / name)
            (package / "cli.py").write_text(COMMANDS)
        scripts = str(Path(sys.executable).parent)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        self.environment = kept | {
            "PYTHONPATH": str(folder / "code"),
            "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
            **dict.fromkeys(THREAD_VARIABLES, "1"),
            **variables,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKFLOW, *packages],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.folder = Path(self.process.stdout.readline().strip())
        self.cold_path = self.environment["PATH"]
        self.environment["PATH"] = f"{self.folder}{os.pathsep}{self.cold_path}"

    def run(self, *arguments: str, cold: bool = False, **variables: str) -> subprocess.CompletedProcess:
        """Run a command to its end."""
        path = {"PATH": self.cold_path} if cold else {}
        return subprocess.run(
            ["rm-methods", *arguments],
            env=self.environment | path | variables,
            input="given",
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self) -> tuple[subprocess.Popen, int, int]:
        """A command that waits: its client, its process and its server."""
        client = subprocess.Popen(
            ["rm-methods", "wait"], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert client.stdout is not None
        process, server = client.stdout.readline().split()
        assert int(process) != client.pid
        return client, int(process), int(server)

    def end(self) -> None:
        """Let the process finish, if it was not killed."""
        self.process.communicate()


@pytest.fixture
def workflow(tmp_path):
    running = Workflow(tmp_path)
    yield running
    running.end()


def gone(*processes: int) -> bool:
    """Whether the processes end within seconds."""
    deadline = time.monotonic() + 10
    while any(started(process) is not None for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def shown(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_forked_command_sees_what_a_cold_one_sees(workflow):
    arguments = ("show", "two words", "$quoted 'text'", "ä\n")
    warm, cold = workflow.run(*arguments), workflow.run(*arguments, cold=True)
    assert warm.stderr == cold.stderr == "on the other stream\n"
    warm_view, cold_view = shown(warm), shown(cold)
    assert (warm_view.pop("warm"), cold_view.pop("warm")) == (True, False)
    assert warm_view.pop("server") != cold_view.pop("server")
    assert warm_view == cold_view
    assert warm_view["input"] == "given"


@pytest.mark.parametrize("arguments", [("exit", "0"), ("exit", "3"), ("die", "9"), ("die", "11"), ("die", "15")])
def test_a_forked_command_ends_like_a_cold_one(workflow, arguments):
    warm, cold = workflow.run(*arguments), workflow.run(*arguments, cold=True)
    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)


def test_an_error_ends_with_its_traceback_and_status(workflow):
    done = workflow.run("raise", "broken")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: broken\n")


@pytest.mark.parametrize(
    ("number", "text", "status"),
    [(signal.SIGTERM, "stopped by 15\n", 143), (signal.SIGINT, "interrupted\n", 5), (signal.SIGUSR1, "", -10)],
)
def test_signals_reach_the_process_of_the_command(workflow, number, text, status):
    client, process, _ = workflow.start()
    client.send_signal(number)
    output, _ = client.communicate(timeout=20)
    assert (output, client.returncode) == (text, status)
    assert gone(process)


def test_a_command_dies_with_its_client(workflow):
    client, process, _ = workflow.start()
    client.kill()
    client.communicate()
    assert gone(process)
    assert shown(workflow.run("show"))["warm"]


@pytest.mark.parametrize("killed", [False, True])
def test_everything_ends_with_the_workflow(workflow, killed):
    client, process, server = workflow.start()
    if killed:
        workflow.process.kill()
    workflow.end()
    client.communicate(timeout=20)
    assert client.returncode == 1
    assert gone(process, server)
    assert not workflow.folder.exists()


def test_after_the_server_was_killed_commands_start_cold(workflow):
    client, process, server = workflow.start()
    os.kill(server, signal.SIGKILL)
    _, errors = client.communicate(timeout=20)
    assert client.returncode == 1
    assert "was killed, and this command with it. Run it again." in errors
    assert gone(process)
    assert (workflow.folder / "1").exists()  # the socket that nobody answers
    assert not shown(workflow.run("show"))["warm"]


@pytest.mark.parametrize(
    "variables", [{"OMP_NUM_THREADS": "2"}, {"MKL_NUM_THREADS": "2"}, {"PYTHONHASHSEED": "1"}, {"NEW": "1"}]
)
def test_commands_with_another_environment_start_cold(workflow, variables):
    view = shown(workflow.run("show", **variables))
    assert not view["warm"]
    assert variables.items() <= view["environment"].items()


@pytest.mark.parametrize(("threads", "warm"), [("2", True), ("3", False)])
def test_each_number_of_threads_has_its_own_server(workflow, threads, warm):
    of_one_thread = shown(workflow.run("show"))["server"]
    view = shown(workflow.run("show", **dict.fromkeys(THREAD_VARIABLES, threads)))
    assert view["warm"] == warm
    assert view["server"] != of_one_thread
    assert view["environment"]["OMP_NUM_THREADS"] == threads


def test_a_variable_that_a_package_sets_is_kept_and_causes_no_cold_start(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "meddler.py").write_text("import os\nos.environ['SET_BY_PACKAGE'] = 'x'\n")
    workflow = Workflow(tmp_path, packages=("meddler",))
    try:
        view = shown(workflow.run("show"))
        assert view["warm"]
        assert view["environment"]["SET_BY_PACKAGE"] == "x"
    finally:
        workflow.end()


def test_another_folder_for_temporary_files_needs_no_cold_start(workflow, tmp_path):
    view = shown(workflow.run("show", TMPDIR=str(tmp_path)))
    assert view["warm"]
    assert view["temporary"] == str(tmp_path)


def test_a_long_path_of_temporary_files_still_gets_a_socket(tmp_path):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    workflow = Workflow(tmp_path, TMPDIR=str(long))
    try:
        assert workflow.folder.parent == Path("/tmp")
        assert workflow.folder.stat().st_mode & 0o777 == 0o700
        assert shown(workflow.run("show"))["warm"]
    finally:
        workflow.end()
    assert not list(long.iterdir())


def test_two_workflows_at_once_have_their_own_servers(tmp_path, workflow):
    other = Workflow(tmp_path)
    try:
        first, second = shown(workflow.run("show")), shown(other.run("show"))
        assert first["warm"]
        assert second["warm"]
        assert first["server"] != second["server"]
        workflow.end()
        assert shown(other.run("show"))["warm"]
    finally:
        other.end()


def test_machines_with_an_accelerator_start_cold(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "torch.py").write_text("class accelerator:\n    is_available = staticmethod(lambda: True)\n")
    workflow = Workflow(tmp_path, packages=("torch",))
    try:
        assert not shown(workflow.run("show"))["warm"]
    finally:
        workflow.end()


def test_a_command_of_another_python_is_left_alone(tmp_path):
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "rm-methods"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    workflow = Workflow(tmp_path, PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    workflow.end()
    assert workflow.folder == Path("None")
