"""The notebook runs on the results of an experiment, and draws what the table says."""

import json

import pytest

from rm_methods.commands.use import compare
from tests.comparison.test_folders import run_verb, stored
from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "notebooks" / "results.ipynb"


def run_cells(monkeypatch, results):
    """The names that the notebook's cells leave behind."""
    monkeypatch.setenv("RESULTS", str(results))
    names = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell.get("outputs", []) == [], "clear the outputs before committing"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    return names


@pytest.fixture
def results(tmp_path):
    folder = stored(tmp_path, "study", {"bradley_terry": "bradley_terry", "rrm": "rrm", "longest": "longest"})
    other = stored(tmp_path / "other", "other", {"hinge": "hinge"})
    done = run_verb(compare.name, folder, other, "--out", folder / "comparison", "--reference", "bradley_terry")
    assert done.exit_code == 0, done.output
    for path in folder.glob("runs/*/seed*"):
        (path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}\n{"step": 2, "loss": 0.6}\n')
    return folder


def test_the_notebook_runs_and_draws_the_differences_of_the_table(monkeypatch, results):
    names = run_cells(monkeypatch, results)
    table = names["table"]
    drawn = {line.get_xdata()[0] for line in names["figure"].axes[0].get_lines() if len(line.get_xdata()) == 1}
    first = table[(table.heading == table.heading.iloc[0]) & table.difference.notna()]
    assert drawn == {100 * value for value in first.difference}
    labels = [label.get_text() for label in names["figure"].axes[0].get_yticklabels()]
    assert sorted(labels) == sorted(first.title)
    assert len(names["curves"]) == 7
