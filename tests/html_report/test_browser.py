"""The report in a real browser: Chromium without a window (`make test-browser` installs it where apt can)."""

import os
import re
import shutil
import subprocess

import pytest

from rm_methods.html_report.page import report_html
from rm_methods.html_report.stored_results import newest_config, stored_results
from tests.comparison.test_folders import stored

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]
METHODS = {
    "bradley_terry": "bradley_terry",
    "rrm": "rrm",
    "odin": "odin",
    "a_variant_with_a_very_long_name_of_its_user": "hinge",
    "longest": "longest",
}
BENCHMARKS = {"rm_bench": {"metrics": ["overall", "easy", "normal", "hard"], "items": 60, "strata": 1}}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    results = stored(folder, "study", METHODS, benchmarks=BENCHMARKS)
    path = folder / "report.html"
    path.write_text(report_html(stored_results(newest_config(results), results)))
    return path


def chromium(*arguments):
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [CHROMIUM, "--headless", "--disable-gpu", "--hide-scrollbars", *sandbox, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def after(page, script, *arguments):
    """The text that a script returns in the opened page."""
    probe = page.with_name("probe.html")
    addition = f"<script>document.title = 'answer:' + JSON.stringify((() => {{ {script} }})());</script></body>"
    probe.write_text(page.read_text().replace("</body>", addition))
    title = re.search(r"<title>answer:(.*?)</title>", chromium(*arguments, "--dump-dom", f"file://{probe}"))
    return title.group(1)


def test_a_click_sorts_by_the_number_and_a_second_one_the_other_way(page):
    read = (
        "[...document.querySelector('table.sortable').tBodies[0].rows].map((row) => Number(row.cells[1].dataset.key))"
    )
    click = "document.querySelectorAll('table.sortable thead th')[1].click();"
    once = [float(text) for text in after(page, f"{click} return {read};").strip("[]").split(",")]
    twice = [float(text) for text in after(page, f"{click}{click} return {read};").strip("[]").split(",")]
    assert once == sorted(once, reverse=True)
    assert twice == sorted(twice)
    assert len(once) == len(METHODS)


def test_a_tab_shows_its_column_only(page):
    shown = "return [...document.querySelectorAll('.panel')].map((panel) => panel.hidden);"
    assert after(page, shown) == "[false,true,true,true]"
    assert after(page, f"document.querySelectorAll('.tabs button')[2].click(); {shown}") == "[true,true,false,true]"


@pytest.mark.parametrize("width", [1400, 500])
def test_nothing_reaches_beyond_the_screen(page, width):
    wide = "return document.documentElement.scrollWidth <= window.innerWidth;"
    assert after(page, wide, f"--window-size={width},900") == "true"


def test_what_matters_is_on_the_first_screen(page):
    """Method, difference, verdict and cost of each row, without scrolling a laptop's screen."""
    bottom = "return document.querySelector('.panel tbody').getBoundingClientRect().bottom <= 800;"
    assert after(page, bottom) == "true"


def test_it_prints_to_a_few_pages(page, tmp_path):
    pdf = tmp_path / "report.pdf"
    chromium(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", f"file://{page}")
    pages = len(re.findall(rb"/Type\s*/Page[^s]", pdf.read_bytes()))
    assert 2 <= pages <= 9


def test_nothing_is_logged_as_an_error(page):
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [CHROMIUM, "--headless", "--disable-gpu", *sandbox, "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, f"file://{page}"], capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
