"""A Slurm on this machine with two virtual nodes (local_slurm.sh), and a checkout whose workflow runs through it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rm_methods.training.launch import STAND_INS
from tests.workflow.test_workflow import SMOKE, checkout, environment

SCRIPT = Path(__file__).with_name("local_slurm.sh")
# On the PATH before the real one: writes down what it was started with, and makes one training fail once.
WRAPPER = """#!/bin/sh
echo "${{SLURM_JOB_ID:-none}} ${{CUDA_VISIBLE_DEVICES:-none}} $*" >> {folder}/calls
case "$*" in
    train*"--variant label_smoothing"*)
        if mkdir {folder}/failed-once 2> /dev/null; then echo "made to fail once" >&2; exit 1; fi ;;
esac
exec {python} -m rm_methods.cli "$@"
"""
QUICK_CHECKS = ("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2", "--latency-wait", "10")


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
    text = subprocess.run(["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, check=True, timeout=30).stdout
    jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines() if line.startswith("JobId=")]
    return sorted(jobs, key=lambda job: int(job["JobId"]))


def jobs_of(comment: str) -> list[dict[str, str]]:
    return [job for job in in_queue() if job.get("Comment") == comment]


def wait_for(what: str, condition: Callable, seconds: float = 120):
    """The first true value of a condition."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, (
            f"waited {seconds} s for {what}; queue: {[(j['JobId'], j['JobState'], j['Reason']) for j in in_queue()]}"
        )
        time.sleep(0.2)
    return value


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    done = subprocess.run([SCRIPT, "install"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Slurm's packages cannot be installed here: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "up", folder], check=True, timeout=120)
    try:
        yield folder
    finally:
        subprocess.run(["scancel", "--full", "--user=root"], timeout=60)
        subprocess.run([SCRIPT, "down", folder], check=True, timeout=60)


class Project:
    """A checkout with configurations for the tests; `folder` is the working directory of every command."""

    def __init__(self, folder: Path):
        self.folder = checkout(folder)
        (folder / "bin").mkdir()
        wrapper = folder / "bin" / "rm-methods"
        wrapper.write_text(WRAPPER.format(folder=folder, python=sys.executable))
        wrapper.chmod(0o755)
        self.results = folder / "results" / "smoke"

    def configure(self, name: str, **sections) -> str:
        """Write a configuration that differs from the smoke test's in these sections."""
        config = SMOKE | {"methods": {"bradley_terry": {}, "label_smoothing": {}}}
        config |= {key: config[key] | value if isinstance(config.get(key), dict) else value for key, value in sections.items()}
        (self.folder / "config" / name).write_text(yaml.safe_dump(config))
        return f"config/{name}"

    def environment(self) -> dict[str, str]:
        variables = environment(self.folder, OMP_NUM_THREADS="1", **{STAND_INS: "1"})
        return variables | {"PATH": f"{self.folder / 'bin'}{os.pathsep}{variables['PATH']}"}

    def command(self, config: str, *arguments: str) -> list[str]:
        return ["snakemake", *arguments, "--workflow-profile", "workflow/profiles/slurm", "--configfile", config, *QUICK_CHECKS]

    def snakemake(self, config: str, *arguments: str) -> tuple[int, str]:
        """Exit status and output."""
        done = subprocess.run(
            self.command(config, *arguments), cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=400
        )
        return done.returncode, done.stdout + done.stderr

    def start(self, config: str, *arguments: str) -> subprocess.Popen:
        """Snakemake in the background, in a process group of its own; its output goes to snakemake.log."""
        log = (self.folder / "snakemake.log").open("a")
        command = self.command(config, *arguments)
        return subprocess.Popen(command, cwd=self.folder, env=self.environment(), stdout=log, stderr=log, start_new_session=True)

    def rm_methods(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "rm_methods.cli", *arguments],
            cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def logs(self) -> str:
        files = [*self.results.rglob("logs/**/*.log"), *self.folder.glob(".snakemake/slurm_logs/**/*.log")]
        return "\n".join(f"== {file}\n{file.read_text()[-1500:]}" for file in files)


@pytest.fixture(scope="session")
def project(slurm, tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))
