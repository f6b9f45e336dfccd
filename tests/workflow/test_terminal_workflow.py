"""The terminal of a real Snakemake with the default profile: progress, failures, mistakes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.workflow.checkouts import SMOKE, checkout, environment

pytestmark = pytest.mark.process
SMALL = SMOKE | {"methods": {"longest": {}, "shortest": {}, "random": {}}}
PROFILE_LINE = "Using workflow specific profile profiles/default for setting default command line arguments."


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = checkout(tmp_path_factory.mktemp("terminal"), SMALL)
    shutil.copytree(REPOSITORY / "profiles", folder / "profiles")
    return folder


def run(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit status and the lines that Snakemake prints, without the one on the profile."""
    done = subprocess.run(
        ["snakemake", "--cores", "2", *arguments], cwd=folder, env=environment(folder),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, [line for line in (done.stdout + done.stderr).splitlines() if line != PROFILE_LINE]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--configfile", "nothere.yaml"], "--configfile nothere.yaml: no such file."),
        (["--configfile", "config"], "--configfile config: Is a directory."),
        (["compar", "--configfile", "config/smoke.yaml"], "Unknown target 'compar'. Did you mean 'compare'?"),
        (["train", "--configfile", "config/smoke.yaml"], "This rule is a job for each run"),
        (["--configfile", "broken.yaml"], "A file of --configfile is not valid YAML"),
    ],
)
def test_a_mistake_is_answered_in_one_line(folder, arguments, answer):
    (folder / "broken.yaml").write_text("a: [1\n")
    status, lines = run(folder, "-n", *arguments)
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith(answer)


def test_the_problems_of_a_configuration_are_all_that_is_printed(folder):
    (folder / "wrong.yaml").write_text(yaml.safe_dump(SMALL | {"training": {"epoch": 1}, "methods": {"longst": {}}}))
    status, lines = run(folder, "-n", "--configfile", "wrong.yaml")
    assert status == 1
    assert lines[0] == f"2 problems in {folder / 'wrong.yaml'}:"
    assert [line[:4] for line in lines[1:]] == ["  - ", "  - "]


def test_a_failing_job_ends_with_its_reason_and_the_next_run_with_the_table(folder):
    file = folder / "rm_methods" / "methods" / "shortest.py"
    before = file.read_text()
    file.write_text(
        before + '\nfrom rm_methods.errors import UserError\nraise UserError("the reason that is tested")\n'
    )
    status, lines = run(folder, "--keep-going", "--configfile", "config/smoke.yaml")
    file.write_text(before)
    text = "\n".join(lines)
    assert status == 1
    assert "Traceback" not in text
    assert "CalledProcessError" not in text
    end = lines[lines.index("Set up shortest, seed 0") - 2 :]
    assert end[0].startswith("1 job failed; ")
    assert end[3:5] == ["    the reason that is tested", "  Log: results/smoke/logs/train/shortest_seed0.log"]
    assert end[6].startswith("When the cause is gone, run the same command again")
    assert end[7].startswith("Snakemake's log: ")
    assert len(end) == 8

    status, lines = run(folder, "-n", "--configfile", "config/smoke.yaml")
    assert status == 0
    assert any(line.startswith("  Set up shortest, seed 0: no result yet (") for line in lines)

    status, lines = run(folder, "--configfile", "config/smoke.yaml")
    assert status == 0, "\n".join(lines)
    assert "Tables and figures: results/smoke/comparison/" in lines
    assert " jobs done in " in "\n".join(lines)
    assert not [line for line in lines if line.startswith(("Finished job", "Select jobs", "Reason:", "["))]


def test_after_finished_jobs_a_line_counts_them(folder):
    """Needs the results of the test before."""
    (folder / "results" / "smoke" / "comparison" / "table.txt").unlink()
    status, lines = run(folder, "compare", "--configfile", "config/smoke.yaml")
    assert status == 0
    jobs = len(list((folder / "results" / "smoke").rglob("*made_with.json")))
    assert f"results/smoke has the results of {jobs} finished jobs; those that are up to date stay." in lines


def test_a_file_in_the_place_of_a_folder_is_named_in_one_line(folder):
    (folder / "results" / "blocked").mkdir(parents=True)
    (folder / "results" / "blocked" / "runs").touch()
    status, lines = run(folder, "-n", "--configfile", "config/smoke.yaml", "--config", "experiment=blocked")
    assert status == 1
    assert lines == [
        "results/blocked/runs: a file, but a folder is needed in its place. Move it away, and run the same command "
        "again."
    ]


def test_on_request_snakemake_prints_as_usual(folder):
    status, lines = run(folder, "-n", "-p", "--forceall", "compare", "--configfile", "config/smoke.yaml")
    assert status == 0
    assert "Reason: Forced execution" in lines
    assert any("rm-methods train" in line for line in lines)
