"""Every command of docs/adding-a-method.md, literally and in its order, from the template to the verdict."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.workflow.checkouts import checkout, planned
from tests.workflow.test_own_data import rows, run, write

# The trainings of a whole comparison: minutes on a busy machine.
pytestmark = [pytest.mark.process, pytest.mark.slow]
PAGE = (REPOSITORY / "docs" / "adding-a-method.md").read_text()
COMMANDS = re.findall(r"^    ((?:mkdir|cp|rm-methods|snakemake|cat) .*)$", PAGE, re.MULTILINE)
SANDBOX = "snakemake --cores 2 --configfile config/sandbox.yaml my_experiment.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A checkout in which all commands of the page have run, and what each printed."""
    folder = checkout(tmp_path_factory.mktemp("method"))
    for name in ("sandbox", "quickstart"):
        shutil.copy(REPOSITORY / "config" / f"{name}.yaml", folder / "config")
    write(folder / "my_pairs.jsonl", rows(80, seed=0))
    return folder, {command: run(folder, command) for command in COMMANDS}


def test_the_page_has_the_commands_of_the_whole_way():
    assert [command.split()[:2] for command in COMMANDS] == [
        ["mkdir", "my_methods"],
        ["cp", "rm_methods/methods/template/my_method.py"],
        ["rm-methods", "show"],
        ["rm-methods", "test-method"],
        ["cp", "rm_methods/methods/template/my_experiment.yaml"],
        ["rm-methods", "check"],
        ["snakemake", "--cores"],
        ["cat", "results/sandbox/comparison/table.txt"],
        ["rm-methods", "init"],
        ["snakemake", "--cores"],
        ["rm-methods", "power"],
        ["snakemake", "-n"],
        ["rm-methods", "score"],
    ]


def test_the_readme_begins_the_same_way():
    readme = (REPOSITORY / "README.md").read_text()
    section = readme[readme.index("## Your own method") :].partition("\n## ")[0]
    copied = "cp rm_methods/methods/template/my_experiment.yaml ."
    for command in (copied, "rm-methods test-method my_method --methods my_methods", SANDBOX):
        assert command in section
        assert command in COMMANDS


def test_the_way_ends_at_a_table_and_a_verdict(finished):
    folder, printed = finished
    assert "my_method fulfills the contract." in printed["rm-methods test-method my_method --methods my_methods"]
    table = printed["cat results/sandbox/comparison/table.txt"]
    for title in ("Bradley-Terry", "My method", "Longest response", "Fitted length", "Random score", "Verdict"):
        assert title in table
    assert "would be significant with 80% probability" in table
    assert "My method" in (folder / "results/my_pairs/comparison/table.txt").read_text()
    assert (folder / "scores.csv").exists()


def test_a_file_over_the_sandbox_adds_one_row(finished):
    folder, _ = finished
    stored = [json.loads(path.read_text()) for path in (folder / "results/sandbox").rglob("summary.json")]
    assert {summary["variant"] for summary in stored} == {
        "bradley_terry", "longest", "fitted_length", "random", "my_method"
    }  # fmt: skip


def test_an_edit_repeats_only_the_runs_of_the_method(finished):
    folder, _ = finished
    with (folder / "my_methods" / "my_method.py").open("a") as stream:
        stream.write("# edited\n")
    plan = planned(run(folder, SANDBOX.replace("snakemake", "snakemake -n")))
    assert plan["train"] == 5
    assert plan["score"] == 5
