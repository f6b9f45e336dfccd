"""MLflow's pages of a small experiment in a real browser: what matters is on the first screen."""

import json

import pytest

from rm_methods.tracking.export import export_experiment
from rm_methods.tracking.list_pages import pages_text
from rm_methods.tracking.pages import compare_page
from tests.devtools import CHROMIUM, Browser
from tests.tracking.test_servers import mlflow_server
from tests.tracking.test_summaries import METHODS, compared

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def exported(made_by_four, tmp_path_factory):
    """Browser, address of the server, and what became of the export."""
    folder = tmp_path_factory.mktemp("browser")
    study = compared(folder)
    for files in study.runs:
        rows = [{"step": step, "time": step, "loss": 0.6, "accuracy": 0.7, "margin": 0.4} for step in range(1, 6)]
        files.training_log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}", "--serve-artifacts") as address:
        result = export_experiment(study, folder / "out", address)
        assert result.pending == []
        with Browser(folder / "profile") as browser:
            yield browser, address, result


def run_page(address, record):
    return f"{address}/#/experiments/{record['experiment_id']}/runs/{record['run_id']}?workflowType=machine_learning"


def test_the_list_of_runs_shows_methods_with_verdict_and_accuracy(exported):
    browser, _, result = exported
    texts = browser.open(result.summary["pages"]["runs"], until="longest")
    names = [text for text in texts if text in ("comparison", *METHODS)]
    assert names == ["comparison", *METHODS]  # seeds are folded, the comparison is first
    headings = [text for text in texts if text in ("verdict", "rm_bench/overall", "heldout/test")]
    assert headings == ["verdict", "rm_bench/overall", "heldout/test"]
    assert "reference" in texts
    assert len([text for text in texts if text.startswith("0.")]) >= 2 * len(METHODS)


def test_make_ui_prints_the_address_of_that_page(exported):
    _, address, result = exported
    assert pages_text(address) == f"Runs of study: {result.summary['pages']['runs']}"


def test_the_page_of_a_method_shows_what_was_found(exported):
    browser, address, result = exported
    record = next(record for record in result.summary["variants"] if record["variant"] == "odin")
    texts = browser.open(run_page(address, record), until="odin seed 2")
    shown = " ".join(texts)
    assert "from Bradley-Terry" in shown  # the finding in words
    assert "95% interval" in texts
    assert "verdict" in shown


def test_the_page_of_the_comparison_shows_the_verdict(exported):
    browser, address, result = exported
    texts = browser.open(run_page(address, result.summary["comparison"]), until="Bradley-Terry")
    assert "Description" in texts


def test_the_report_is_among_the_artifacts(exported):
    browser, address, result = exported
    page = run_page(address, result.summary["comparison"]).replace("?", "/artifacts?")
    texts = browser.open(page, until="report.html")
    assert {"table.md", "table.csv", "configuration.yaml", "figures"} <= set(texts)


def test_the_page_of_a_run_has_curves(exported):
    browser, address, result = exported
    page = run_page(address, result.runs[0]).replace("?", "/model-metrics?")
    browser.open(page, until="rm_bench")
    sections = " ".join(browser.evaluate("document.body.innerText").split())
    for section in ("heldout (1)", "rm_bench (2)", "train (3)"):
        assert section in sections


def test_the_compare_page_of_two_methods_begins_with_the_accuracy(exported):
    browser, address, result = exported
    ids = [record["run_id"] for record in result.summary["variants"][:2]]
    texts = browser.open(compare_page(address, "1", ids), until="odin")
    assert "bradley_terry" in texts
    assert "rm_bench/overall" in texts  # of the plot
    rows = [line for line in browser.evaluate("document.body.innerText").splitlines() if "/" in line]
    metrics = [
        row.split()[0] for row in rows if row.split()[0].split("/")[0] in ("heldout", "rm_bench", "vs_reference")
    ]
    assert metrics[0] == "rm_bench/overall"
