"""A Slurm on this machine with two virtual nodes (local_slurm.sh), and a checkout whose workflow runs through it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from filelock import FileLock

from rm_methods.training.launch import STAND_INS
from tests.workflow.checkouts import SMOKE, checkout, environment

SCRIPT = Path(__file__).with_name("local_slurm.sh")
# On the PATH before the real one: writes down what it was started with, and makes one training fail once.
WRAPPER = """#!/bin/sh
echo "${{SLURM_JOB_ID:-none}} ${{CUDA_VISIBLE_DEVICES:-none}} $*" >> {folder}/calls
case "$*" in
    train*"--seed 0"*)
        if mkdir {folder}/failed-once 2> /dev/null; then echo "made to fail once" >&2; exit 1; fi ;;
esac
exec {python} -m rm_methods.cli "$@"
"""
ONE_GPU = {"gpus": 1, "memory_mb": 500, "runtime_minutes": 20}
TWO_NODES = ONE_GPU | {"nodes": 2}
QUICK_CHECKS = (
    "--slurm-init-seconds-before-status-checks",
    "2",
    "--seconds-between-status-checks",
    "2",
    "--latency-wait",
    "10",
)


def why_not() -> str | None:
    """Why a Slurm of our own cannot run here."""
    if "RM_METHODS_TEST_SLURM" not in os.environ:
        return "starts a Slurm on this machine; run it with `make test-slurm`"
    if os.geteuid() != 0:
        return "needs root, to start Slurm's daemons and to make devices that stand for GPUs"
    if not shutil.which("slurmctld") and not shutil.which("apt-get"):
        return "neither Slurm nor apt-get is here to install it with"
    if Path("/etc/slurm/slurm.conf").exists() and not Path("/etc/slurm/slurm.conf").is_symlink():
        return "/etc/slurm/slurm.conf is the configuration of another Slurm"
    return None


def in_queue() -> list[dict[str, str]]:
    """All jobs that Slurm remembers, oldest first, as `scontrol show job` words them."""
    text = subprocess.run(
        ["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines() if line.startswith("JobId=")]
    return sorted(jobs, key=lambda job: int(job["JobId"]))


def wait_for(what: str, condition: Callable, seconds: float = 120):
    """The first true value of a condition."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, (
            f"waited {seconds} s for {what}; queue: {[(j['JobId'], j['JobState'], j['Reason']) for j in in_queue()]}"
        )
        time.sleep(0.2)
    return value


def lose_node(slurm: Path, name: str) -> None:
    """What a power cut does to a node: its daemon and all processes of its jobs are gone without a word.

    Slurm is told that it is down, which saves waiting until Slurm finds out.
    """
    there = {job["JobId"] for job in in_queue() if job["JobState"] == "RUNNING" and job["NodeList"] in (name, "n[1-2]")}
    titles = [(process, " ".join(process.info["cmdline"] or [])) for process in psutil.process_iter(["cmdline"])]
    steps = [
        process for process, title in titles if (step := re.match(r"slurmstepd: \[(\d+)\.", title)) and step[1] in there
    ]
    daemon = int((slurm / "run" / f"slurmd-{name}.pid").read_text())
    doomed = [psutil.Process(daemon), *(child for step in steps for child in [step, *step.children(recursive=True)])]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    # `local_slurm.sh up` starts a daemon only where none is left.
    _, alive = psutil.wait_procs(doomed, timeout=30)
    assert not alive, alive
    subprocess.run(["scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test"], check=True)


def bring_back(slurm: Path, name: str) -> None:
    """The node starts again."""
    subprocess.run(["scontrol", "update", f"NodeName={name}", "State=RESUME"], check=True)
    subprocess.run([SCRIPT, "up", slurm], check=True, timeout=120)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    done = subprocess.run([SCRIPT, "install"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(
            f"Slurm's packages cannot be installed here: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    folder = tmp_path_factory.mktemp("slurm")
    with FileLock(Path(tempfile.gettempdir()) / "rm_methods_test_slurm.lock"):
        try:
            subprocess.run([SCRIPT, "up", folder], check=True, timeout=120)
            yield folder
            subprocess.run(["scancel", "--full", "--user=root"], timeout=60)
            # Slurm ends its jobs only while it runs itself.
            wait_for(
                "the jobs to end",
                lambda: not [job for job in in_queue() if job["JobState"] in ("RUNNING", "COMPLETING")],
                30,
            )
        finally:
            subprocess.run([SCRIPT, "down", folder], check=True, timeout=60)


class Project:
    """A checkout with configurations for the tests; `folder` is the working directory of every command."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.results = folder / "results" / "smoke"
        self.log = folder / "snakemake.log"
        self.started: list[subprocess.Popen] = []
        (folder / "bin").mkdir(exist_ok=True)
        wrapper = folder / "bin" / "rm-methods"
        wrapper.write_text(WRAPPER.format(folder=folder, python=sys.executable))
        wrapper.chmod(0o755)

    def configure(self, name: str, **sections) -> str:
        """Write a configuration that differs from the smoke test's in these sections."""
        config = SMOKE | {"methods": {"bradley_terry": {}}}
        config |= {
            key: config[key] | value if isinstance(config.get(key), dict) else value for key, value in sections.items()
        }
        (self.folder / "config" / name).write_text(yaml.safe_dump(config))
        return f"config/{name}"

    def environment(self) -> dict[str, str]:
        variables = environment(self.folder, OMP_NUM_THREADS="1", **{STAND_INS: "1"})
        return variables | {"PATH": f"{self.folder / 'bin'}{os.pathsep}{variables['PATH']}"}

    def command(self, config: str, *arguments: str) -> list[str]:
        return [
            "snakemake",
            *arguments,
            "--workflow-profile",
            "workflow/profiles/slurm",
            "--configfile",
            config,
            *QUICK_CHECKS,
        ]

    def run(self, *command: str) -> tuple[int, str]:
        """Exit status and output."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=400
        )
        return done.returncode, done.stdout + done.stderr

    def rm_methods(self, *arguments: str) -> tuple[int, str]:
        return self.run(sys.executable, "-m", "rm_methods.cli", *arguments)

    def start(self, config: str, *arguments: str) -> subprocess.Popen:
        """Snakemake in the background, in a process group of its own; its output goes to `log`."""
        command = self.command(config, *arguments)
        with self.log.open("a") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )
        self.started.append(process)
        return process

    def finish(self) -> None:
        """Wait for what was started last; it must succeed."""
        process = self.started[-1]
        wait_for("Snakemake to end", lambda: process.poll() is not None, 600)
        if process.returncode:
            files = [
                self.log,
                *self.results.rglob("logs/**/*.log"),
                *self.folder.glob(".snakemake/slurm_logs/**/*.log"),
            ]
            pytest.fail("\n".join(f"== {file}\n{file.read_text()[-3000:]}" for file in files))

    def jobs(self, comment: str) -> list[dict[str, str]]:
        """Slurm's jobs of this checkout with such a comment (there the plugin keeps rule and wildcards), by age."""
        return [job for job in in_queue() if job["WorkDir"] == str(self.folder) and job["Comment"].startswith(comment)]

    def train_calls(self, job: dict[str, str]) -> list[tuple[str, list[str]]]:
        """GPUs and arguments of every `rm-methods train` that a job ran."""
        calls = [line.split(" ", 2) for line in (self.folder / "calls").read_text().splitlines()]
        return [
            (gpus, command.split(" "))
            for number, gpus, command in calls
            if number == job["JobId"] and command.startswith("train")
        ]


@pytest.fixture(scope="session")
def projects(slurm, tmp_path_factory) -> Iterator[tuple[Project, Project]]:
    """Two checkouts with data, backbone and benchmark prepared here; in the first, the rest of the workflow goes
    through Slurm."""
    first = Project(checkout(tmp_path_factory.mktemp("first")))
    config = first.configure("smoke.yaml", resources=TWO_NODES)
    targets = [f"results/smoke/{name}" for name in ("data/backbone", "benchmarks/world.parquet")]
    status, output = first.run("snakemake", "--cores", "2", *targets, "--configfile", config)
    assert status == 0, output
    second = Project(shutil.copytree(first.folder, tmp_path_factory.mktemp("second") / "checkout"))
    first.start(config)
    yield first, second
    for process in first.started + second.started:
        if process.poll() is None:
            process.kill()
