import re
import subprocess
import sys

import yaml

from tests.conftest import REPOSITORY


def pins(lines):
    return {
        re.split("==", line)[0].lower(): re.split("==", line)[1]
        for line in lines
        if "==" in line and not line.startswith("#")
    }


def test_conda_environment_has_the_pins_of_the_lock():
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    listed = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert pins(listed) == pins((REPOSITORY / "constraints.txt").read_text().splitlines())
    subprocess.run([sys.executable, str(REPOSITORY / ".ci" / "environment.py"), "--check"], check=True)


def test_every_dependency_is_pinned_exactly_and_portably():
    text = (REPOSITORY / "constraints.txt").read_text()
    lock = pins(text.splitlines())
    project = (REPOSITORY / "pyproject.toml").read_text()
    named = {name.lower() for name in re.findall(r'"([A-Za-z0-9_-]+)>=', project)} - {"setuptools"}
    assert named <= set(lock), f"not pinned: {sorted(named - set(lock))}"
    # Local suffixes (torch 2.13.0+cpu) and file addresses exist on one machine only.
    assert "+cpu" not in text
    assert " @ " not in text


def test_snakemake_has_the_limit_that_the_workflow_lifts():
    """`schedule_without_polling` in workflow/rules/common.smk sets an attribute of the scheduler."""
    from snakemake.scheduling.job_scheduler import JobScheduler

    assert "job_rate_limiter" in JobScheduler.__init__.__code__.co_names
    assert "job_rate_limiter" in JobScheduler.schedule.__code__.co_names
