"""The report of finished, unfinished and damaged experiments."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.comparison.tables import method_text
from rm_methods.errors import UserError
from rm_methods.html_report.page import report_html
from rm_methods.html_report.stored_results import newest_config, stored_results
from tests.comparison.test_folders import stored

METHODS = {"bradley_terry": "bradley_terry", "rrm": "rrm", "longest": "longest"}


class Page(HTMLParser):
    """Visible text, identifiers, and addresses of everything that a browser would load."""

    def __init__(self, html):
        super().__init__()
        self.words = []
        self.ids = set()
        self.loaded = []
        self.open = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in ("meta", "line", "rect", "img", "br", "link"):
            self.open.append(tag)
        if "id" in given:
            self.ids.add(given["id"])
        self.loaded += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag in ("line", "rect"):
            return
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(folder):
    html = report_html(stored_results(newest_config(folder), folder))
    return html, Page(html)


@pytest.fixture
def finished(tmp_path):
    return stored(tmp_path, "study", METHODS)


def test_a_finished_experiment_has_all_sections_and_loads_nothing(finished):
    html, page = page_of(finished)
    assert page.open == []
    assert {"glance", "verdict", "figures", "table", "protocol", "rerun"} <= page.ids
    assert "not finished" not in page.text
    # Only anchors and data: nothing comes from elsewhere.
    assert all(address.startswith(("#", "data:")) for address in page.loaded)
    assert re.search(r"https?://", re.sub(r"data:[^\"]*", "", html.partition("<main>")[0])) is None
    assert "RRM" in page.text
    assert "Longest response" in page.text
    assert "git checkout" not in page.text  # made-up results record no commit


def test_the_table_says_what_the_comparison_says(finished):
    results = stored_results(newest_config(finished), finished)
    _, page = page_of(finished)
    for sentence in results.comparison.verdict:
        assert " ".join(sentence.split()) in page.text
    for note in results.comparison.notes:
        assert " ".join(note.split()) in page.text


def test_the_table_has_the_rows_and_the_exact_means_of_the_comparison(finished):
    results = stored_results(newest_config(finished), finished)
    html, _ = page_of(finished)
    table = html.partition('<table class="sortable">')[2].partition("</table>")[0]
    rows = re.findall(r'<th scope="row" data-key="([^"]*)">.*?<td class="number[^"]*" data-key="([^"]*)">', table)
    expected = [(method_text(row).lower(), row.cells[0].estimate.mean) for row in results.comparison.rows]
    assert [(name, float(mean)) for name, mean in rows] == expected


def test_a_large_figure_is_shown_as_the_png_beside_it(finished, monkeypatch):
    assert "data:image/png" not in page_of(finished)[0]
    monkeypatch.setattr("rm_methods.html_report.page.MAX_SVG_BYTES", 1)
    html, _ = page_of(finished)
    assert "data:image/png" in html
    assert "data:image/svg+xml" not in html


def test_an_unfinished_experiment_shows_what_is_there_and_names_the_rest(finished):
    shutil.rmtree(finished / "evaluation" / "rrm" / "seed2")
    _, page = page_of(finished)
    assert "This experiment is not finished: 6 of 7 runs are evaluated." in page.text
    assert "Missing: rrm seed 2." in page.text
    assert "RRM" in page.text
    shutil.rmtree(finished / "evaluation")
    _, page = page_of(finished)
    assert "No run is finished yet." in page.text
    assert "0 of 7 runs" in page.text
    assert "glance" not in page.ids


def test_without_the_reference_the_runs_are_shown_without_differences(finished):
    shutil.rmtree(finished / "evaluation" / "bradley_terry")
    _, page = page_of(finished)
    assert "glance" not in page.ids
    assert "RRM" in page.text


def test_a_run_that_was_edited_is_not_shown_and_the_page_names_it(finished):
    path = finished / "evaluation" / "rrm" / "seed1" / "metrics.json"
    content = json.loads(path.read_text())
    content["benchmarks"]["rm_bench"]["metrics"]["overall"] = 0.99
    path.write_text(json.dumps(content))
    _, page = page_of(finished)
    assert "Results that are not shown:" in page.text
    assert "rrm/seed1" in page.text
    assert "The finished runs are not shown." in page.text
    assert "No run is finished" not in page.text
    assert "table" not in page.ids


def test_names_of_the_user_are_text_and_never_markup(tmp_path):
    folder = stored(tmp_path, "study", METHODS)
    results = stored_results(newest_config(folder), folder)
    config = dict(results.config) | {"experiment": "<script>alert(1)</script>"}
    html = report_html(stored_results(config, folder))
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_the_page_is_the_same_bytes_for_the_same_results(finished):
    assert page_of(finished)[0] == page_of(finished)[0]


def test_the_verb_writes_the_page_into_the_folder(finished):
    done = CliRunner().invoke(main, ["report", "--experiment", str(finished)])
    assert done.exit_code == 0, done.output
    assert done.output == f"{finished / 'report.html'}: 7 of 7 runs\n"
    assert (finished / "report.html").read_text().startswith("<!doctype html>")


def test_a_folder_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no finished experiment"):
        newest_config(tmp_path)


def test_the_protocol_says_how_many_pairs_were_trained_on(finished):
    _, page = page_of(finished)
    assert "Pairs trained on" not in page.text
    for summary in finished.glob("runs/*/seed*/summary.json"):
        content = {key: value for key, value in json.loads(summary.read_text()).items() if key != "checksum"}
        content["data"] = content.get("data", {}) | {"pairs_offered": 240, "pairs_used": 15}
        content["truncation"] = {"responses_cut": 225, "dropped_response_cut": 225}
        summary.write_text(json.dumps(content))
    _, page = page_of(finished)
    assert "Trained on 15 pairs." in page.text
    assert "Pairs trained on 15 of 240; 225 left out because a response does not fit into max_length" in page.text
