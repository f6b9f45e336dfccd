"""Methods outside the package go through the whole workflow, and their files decide what runs again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from rm_methods.methods.registry import FOLDER
from tests.workflow.checkouts import SMOKE, checkout, environment, planned, results, snakemake

pytestmark = pytest.mark.process

STUDY = SMOKE | {
    "seeds": [0, 1],
    "methods_path": ["../mine"],
    "methods": {"bradley_terry": {}, "tempered": {"temperature": 2.0}, "words": {}, "mean": {"members": "tempered"}},
    "tracking": {"enabled": False},
}
WORDS = (
    "from rm_methods.methods.contract import ContentBlindMethod\n\n\nclass Method(ContentBlindMethod):\n"
    "    def score(self, prompt, response, seed):\n        return float(len(response.split()))\n"
)


def write_methods(folder: Path) -> None:
    """A trained method with a helper, a content-blind one, and a copy of our ensemble."""
    folder.mkdir()
    template = (FOLDER / "template" / "my_method.py").read_text()
    (folder / "tempered.py").write_text(
        template.replace("import torch\n", "import torch\n\nfrom . import helpers\n", 1)
    )
    (folder / "helpers.py").write_text("")
    (folder / "tempered.yaml").write_text((FOLDER / "template" / "my_method.yaml").read_text())
    (folder / "words.py").write_text(WORDS)
    card = "title: Words\ncitation: none\nkind: content_blind\ntargets: []\ncost: none\nsettings: {}\nseed_free: true\n"
    (folder / "words.yaml").write_text(card)
    for ending in ("py", "yaml"):
        (folder / f"mean.{ending}").write_text((FOLDER / f"ensemble.{ending}").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A checkout whose experiment has run."""
    parent = tmp_path_factory.mktemp("plugin")
    write_methods(parent / "mine")
    folder = checkout(parent / "checkout", STUDY)
    snakemake(folder)
    return folder


def rm_methods(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["rm-methods", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300, check=False
    )


def test_the_table_has_the_methods_of_the_folder(finished):
    table = (results(finished) / "comparison" / "table.txt").read_text()
    assert "Verdict" in table
    for title in ("Bradley-Terry", "My method", "Words"):
        assert title in table
    assert "Nothing to be done" in snakemake(finished, "-n")


@pytest.mark.parametrize(
    ("file", "trained"), [("helpers.py", 3), ("tempered.py", 3), ("tempered.yaml", 3), ("words.py", 1)]
)
def test_an_edit_repeats_the_runs_that_depend_on_the_file(finished, file, trained):
    """Two seeds of `tempered` and the combination of them, or the one run of `words`."""
    path = finished.parent / "mine" / file
    before = path.read_text()
    try:
        path.write_text(before + "# edited\n")
        assert planned(snakemake(finished, "-n"))["train"] == trained
    finally:
        path.write_text(before)
    assert "Nothing to be done" in snakemake(finished, "-n")


def test_the_folder_may_be_elsewhere(finished):
    """Its content counts, not its location."""
    config = yaml.safe_load((finished / "config" / "smoke.yaml").read_text())
    (finished.parent / "mine").rename(finished / "methods_of_mine")
    try:
        text = yaml.safe_dump(config | {"methods_path": "methods_of_mine"})
        (finished / "config" / "smoke.yaml").write_text(text)
        # The page of the experiment prints the configuration.
        assert planned(snakemake(finished, "-n")).keys() <= {"html_report", "all"}
    finally:
        (finished / "methods_of_mine").rename(finished.parent / "mine")
        (finished / "config" / "smoke.yaml").write_text(yaml.safe_dump(config))


def test_a_trained_model_is_scored_without_its_method(finished):
    pair = {"prompt": "Paint it.", "chosen": "I paint it red.", "rejected": "No."}
    (finished / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    runs = results(finished) / "runs"
    command = ["score", "--data", "pairs.jsonl", "--out", "scores.csv", "--model"]
    done = rm_methods(finished, *command, runs / "tempered" / "seed0" / "model")
    assert done.returncode == 0, done.stderr
    # A scorer without weights is its code.
    unknown = rm_methods(finished, *command, runs / "words" / "seed0" / "model")
    assert unknown.returncode == 2
    assert "Unknown method 'words'" in unknown.stderr
    assert "name its folder with --methods" in unknown.stderr
    named = rm_methods(finished, *command, runs / "words" / "seed0" / "model", "--methods", "../mine")
    assert named.returncode == 0, named.stderr


def test_the_stored_experiment_is_read_from_its_folder(finished):
    done = rm_methods(finished, "power", "--experiment", results(finished))
    assert done.returncode == 0, done.stderr
    (finished.parent / "mine").rename(finished.parent / "gone")
    try:
        missing = rm_methods(finished, "power", "--experiment", results(finished))
        assert missing.returncode == 2
        assert "methods_path: no such folder: " in missing.stderr
        named = rm_methods(finished, "power", "--experiment", results(finished), "--methods", "../gone")
        assert named.returncode == 0, named.stderr
    finally:
        (finished.parent / "gone").rename(finished.parent / "mine")


@pytest.mark.slow
def test_launched_ranks_find_the_method(tmp_path):
    from rm_methods.contract_test.properties import ranks_agree
    from rm_methods.contract_test.workbench import Workbench

    write_methods(tmp_path / "mine")
    ranks_agree(Workbench(tmp_path / "work", [tmp_path / "mine"]), "tempered")
