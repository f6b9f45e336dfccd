"""performance/harness: tests, then equal results, then times; ratios, records, and the page that they make."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import replace

import pytest
from click.testing import CliRunner

from performance.__main__ import main
from performance.harness import machine, page, record, runner, submission
from performance.harness.benchmark import (
    FOLDER,
    Benchmark,
    Option,
    Proof,
    Side,
    benchmark_files,
    load_benchmark,
)
from performance.harness.inputs import missing_data
from performance.harness.machine import describe_machine, machine_line
from performance.harness.process import Checkout, PartFailed
from performance.harness.stopwatch import Stopwatch
from rm_methods.errors import UserError
from tests.conftest import REPOSITORY

# Writes what it does to a file.  The slow side always takes 3 s, the fast one 1 s, by its own account.
FAKE = """
import os
from pathlib import Path

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side

LOG = Path({log!r})


def note(words):
    with LOG.open("a") as file:
        file.write(words + "\\n")


def prepare(work):
    note("prepare " + work.case)
    (work.folder / "input").write_text("7")


def prove(work):
    note("prove")
    return Proof("both are 7", float(work.options["apart"]), 0.5)


def measure(work):
    note(work.side)
    if work.side == work.options["broken"]:
        raise ValueError("it does not work")
    seconds = {{"fast": 1.0, "slow": 3.0, "theirs": 1.0}}[work.side]
    is_base = Path.cwd().name == "base"
    value = float((work.folder / "input").read_text()) + (is_base and work.options["base_differs"])
    return Measurement(
        seconds=seconds + (is_base and 1.0),
        cpu_seconds=2 * seconds,
        peak_memory_bytes=1000,
        amount=6,
        result=(value,) if work.options["has_result"] else (),
        details={{"threads": int(os.environ["OMP_NUM_THREADS"])}},
    )


BENCHMARK = Benchmark(
    name="fake",
    title="Fake",
    question="Is fast faster than slow?",
    sides=(Side("fast", "fast side"), Side("slow", "slow side", external=True)),
    baseline="slow",
    tests=({test!r},),
    options={{
        "apart": Option(0.0, "difference of the results"),
        "broken": Option("", "side that fails"),
        "base_differs": Option(False, "whether another commit gives another result"),
        "has_result": Option(True, "whether it returns numbers that another commit must reproduce"),
    }},
    prepare=prepare,
    prove=prove,
    measure=measure,
    rounds=2,
    unit="sums",
)
"""


class Fake:
    """A folder with the fake benchmark, and what it noted."""

    def __init__(self, folder, passes=True):
        self.folder = folder / "benchmarks"
        self.folder.mkdir()
        self.log = folder / "log"
        test = folder / "test_fake.py"
        test.write_text(f"def test_it():\n    open({str(self.log)!r}, 'a').write('test\\n')\n    assert {passes}\n")
        (self.folder / "fake.py").write_text(FAKE.format(log=str(self.log), test=str(test)))
        self.said = []

    def run(self, change=lambda benchmark: benchmark, base=None, **options):
        benchmark = change(load_benchmark("fake", self.folder))
        settings = runner.Settings(options=options, folder=self.folder, threads=1, base=base)
        return runner.run_benchmark(benchmark, settings, describe_machine(), self.said.append)

    @property
    def noted(self):
        return self.log.read_text().split("\n")[:-1]


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The fake benchmark with the record of a run."""
    made = Fake(tmp_path_factory.mktemp("fake"))
    return load_benchmark("fake", made.folder), made.run(), made.noted


@pytest.mark.process
def test_tests_come_first_then_equal_results_then_all_sides_in_turn(measured):
    _, result, noted = measured
    assert noted == ["test", "prepare all", "prove", "fast", "slow", "fast", "slow"]
    (case,) = result["cases"]
    assert case["sides"]["fast"]["seconds"] == [1.0, 1.0]
    assert case["sides"]["fast"]["ratio"] == {"median": 3.0, "lowest": 3.0, "highest": 3.0}
    assert case["sides"]["fast"]["cpu_ratio"]["median"] == 3.0
    assert "ratio" not in case["sides"]["slow"]
    assert case["sides"]["fast"]["details"] == [{"threads": 1}] * 2
    assert result["tests"]["summary"].startswith("1 passed")
    assert result["rounds"] == 2


@pytest.mark.process
def test_nothing_is_compared_or_timed_if_a_test_fails(tmp_path):
    failing = Fake(tmp_path, passes=False)
    with pytest.raises(runner.Refused, match="its tests do not pass, so nothing is timed"):
        failing.run()
    assert failing.noted == ["test"]


@pytest.mark.process
def test_a_test_that_does_not_exist_is_no_pass(fake):
    with pytest.raises(runner.Refused, match="its tests do not pass"):
        fake.run(lambda benchmark: replace(benchmark, tests=(str(fake.folder / "test_absent.py"),)))
    assert not fake.log.exists()


@pytest.mark.process
@pytest.mark.parametrize("apart", ["0.6", "nan"])
def test_nothing_is_timed_if_results_differ(fake, apart):
    with pytest.raises(runner.Refused, match="results differ, so nothing is timed"):
        fake.run(apart=apart)
    assert fake.noted == ["test", "prepare all", "prove"]


@pytest.mark.process
def test_a_side_that_fails_ends_the_benchmark_with_its_message(fake):
    with pytest.raises(PartFailed, match=r"(?s)measure of all, slow failed.*it does not work"):
        fake.run(broken="slow")


@pytest.mark.process
def test_what_is_missing_is_named_and_the_rest_goes_on(fake, monkeypatch):
    monkeypatch.delenv("RM_METHODS_DATA", raising=False)

    def change(benchmark):
        fast, slow = benchmark.sides
        data = replace(benchmark.cases[0], name="real", title="Real", data=("hh_rlhf",))
        sides = (fast, replace(slow, packages=("no_such_package",)))
        return replace(benchmark, sides=sides, cases=(data, benchmark.cases[0]))

    result = fake.run(change)
    first, second = result["cases"]
    assert "set RM_METHODS_DATA (or --data) to a folder with hh_rlhf" in first["skipped"]
    assert list(second["sides"]) == ["fast"]
    assert "no_such_package not installed" in second["sides_skipped"]["slow"]
    assert "ratio" not in second["sides"]["fast"]
    record.check_record(result, fake.folder)


@pytest.mark.process
def test_a_benchmark_that_cannot_run_here_says_why(fake):
    assert fake.run(lambda benchmark: replace(benchmark, missing=lambda options: "no GPU")) is None
    assert fake.said == ["skipped: no GPU"]


@pytest.mark.process
@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="needs the repository's history")
def test_another_commit_is_timed_in_turn_and_refused_if_it_behaves_differently(fake):
    result = fake.run(base="HEAD")
    # Two rounds of both commits; the slow side is not ours.
    assert fake.noted[1:] == ["prepare all", "prove", "fast", "prepare all", "fast", "fast", "fast"]
    (case,) = result["cases"]
    assert list(case["sides"]) == ["fast", "fast@base"]
    assert case["sides"]["fast"]["ratio"]["median"] == 2.0
    assert "HEAD lacks the benchmark fake; its package is measured with this checkout's script" in fake.said
    record.check_record(result, fake.folder)
    with pytest.raises(runner.Refused, match="HEAD behaves differently"):
        fake.run(base="HEAD", base_differs="true")
    assert "base" not in subprocess.run(["git", "worktree", "list"], capture_output=True, text=True).stdout.split("/")
    fake.log.unlink()
    fake.run(base="HEAD", has_result="false")
    assert fake.noted[1:] == ["prepare all", "prove", "fast", "prepare all", "prove", "fast", "fast", "fast"]
    with pytest.raises(UserError, match="--base no_such_commit"):
        fake.run(base="no_such_commit")


def test_ratios_by_hand():
    """Medians 4 and 2; the rounds have 8/1, 4/2 and 2/4."""
    assert record.ratio([8.0, 4.0, 2.0], [1.0, 2.0, 4.0]) == {"median": 2.0, "lowest": 0.5, "highest": 8.0}


def test_results_of_two_commits():
    assert runner.result_difference([2.0, 4.0], [2.0, 3.0]) == 0.25
    assert runner.result_difference([], []) == 0.0
    assert runner.result_difference([0.0], [0.0]) == 0.0
    assert runner.result_difference([1.0], [1.0, 2.0]) == float("inf")


def benchmark_of(**changes):
    values = {"name": "x", "title": "X", "question": "?", "sides": (Side("a", "A"),), "tests": ("t.py",)}
    values |= {"prove": lambda work: Proof("", 0.0, 0.0), "measure": lambda work: None}
    return Benchmark(**(values | changes))


def test_time_ratios_are_turned_round():
    side = {"seconds": [2.0], "cpu_seconds": [1.0], "peak_memory_bytes": [10]}
    base = {"seconds": [1.0], "cpu_seconds": [4.0], "peak_memory_bytes": [5]}
    benchmark = benchmark_of(sides=(Side("a", "A"), Side("b", "B")), baseline="b", compares="time")
    sides = record.with_ratios(benchmark, {"a": side, "b": base}, "b")
    assert [sides["a"][key]["median"] for key in ("ratio", "cpu_ratio", "memory_ratio")] == [2.0, 0.25, 2.0]


def test_a_declaration_without_tests_or_with_a_strange_baseline_is_refused():
    with pytest.raises(ValueError, match="name the tests"):
        benchmark_of(tests=())
    with pytest.raises(ValueError, match="baseline is 'z'"):
        benchmark_of(baseline="z")


def test_options_have_the_type_of_their_default():
    options = {"count": Option(4, ""), "share": Option(0.5, ""), "tiny": Option(False, ""), "name": Option("", "")}
    benchmark = benchmark_of(options=options)
    given = {"count": "8", "share": "1", "tiny": "true", "name": "7"}
    assert benchmark.settings(given) == {"count": 8, "share": 1.0, "tiny": True, "name": "7"}
    assert benchmark.settings({}) == {"count": 4, "share": 0.5, "tiny": False, "name": ""}
    with pytest.raises(UserError, match=r"--option count=many: must be of type int, like 4"):
        benchmark.settings({"count": "many"})
    with pytest.raises(UserError, match=r"tiny=yes: must be true or false"):
        benchmark.settings({"tiny": "yes"})
    with pytest.raises(UserError, match=r"no such option.*count"):
        benchmark.settings({"cuont": "1"})


def test_missing_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("RM_METHODS_DATA", raising=False)
    (tmp_path / "hh_rlhf").mkdir()
    assert missing_data([]) is None
    assert missing_data(["hh_rlhf"], tmp_path) is None
    assert "has no folder rm_bench" in missing_data(["hh_rlhf", "rm_bench"], tmp_path)


def test_the_stopwatch_counts_what_is_inside():
    with Stopwatch() as watch:
        sum(range(300_000))
    measurement = watch.measurement(amount=3)
    assert 0 < measurement.seconds < 60
    assert 0 <= measurement.cpu_seconds < 60
    assert measurement.peak_memory_bytes > 2**20


def test_peak_memory_is_not_that_of_the_process_that_started_it():
    """The parent holds 200 MB when it starts the child."""
    program = "from performance.harness.stopwatch import peak_memory_bytes; print(peak_memory_bytes())"
    start = f"import subprocess, sys; x = bytearray(200_000_000); subprocess.run([sys.executable, '-c', {program!r}])"
    done = subprocess.run(
        [sys.executable, "-c", start], capture_output=True, text=True, env=Checkout().environment(1), check=True
    )
    assert int(done.stdout) < 150_000_000


def test_a_record_keeps_to_its_schema_and_a_wrong_part_is_named(measured, tmp_path):
    _, result, _ = measured
    file = tmp_path / "fake.json"
    file.write_text(json.dumps(result))
    assert record.read_records(tmp_path) == {"fake": json.loads(json.dumps(result))}
    wrong = copy.deepcopy(result)
    wrong["cases"][0]["sides"]["fast"]["seconds"] = []
    with pytest.raises(UserError, match=r"\$\.cases\[0\]"):
        record.check_record(wrong, file)
    file.rename(tmp_path / "other.json")
    with pytest.raises(UserError, match="name the file like it"):
        record.read_records(tmp_path)


PAGE = "# Speed\n<!-- begin: summary -->\n<!-- end: summary -->\nby hand\n<!-- begin: others -->\nold\n"
PAGE += "<!-- end: others -->\n<!-- begin: submissions -->\n<!-- end: submissions -->\n"


def test_the_page_has_conclusion_table_and_machine(measured):
    benchmark, result, _ = measured
    text = page.page_text(PAGE, {"fake": benchmark}, {"fake": result}, {})
    assert "* Fake: fast side: 3.00 (3.00 to 3.00) times as fast as slow side." in text
    assert "| fast side | 1.00 (1.00 1.00) | 2.00 | 6.00 | 0.00 GiB | 3.00 (3.00 to 3.00) |" in text
    assert "| slow side | 3.00 (3.00 3.00) | 6.00 | 2.00 | 0.00 GiB | 1 |" in text
    assert "Tests: 1 passed." in text
    assert "Both are 7 (difference 0e+00, at most 5e-01)." in text
    assert "### Fake" in text
    assert "by hand" in text
    assert "old" not in text
    assert page.page_text(text, {"fake": benchmark}, {"fake": result}, {}) == text
    assert max(len(line) for line in text.splitlines()) <= 150


def test_a_block_of_its_name_takes_the_table(measured):
    benchmark, result, _ = measured
    own = PAGE + "<!-- begin: fake -->\n<!-- end: fake -->\n"
    text = page.page_text(own, {"fake": benchmark}, {"fake": result}, {})
    assert "### Fake" not in text
    assert "| fast side |" in text.split("<!-- begin: fake -->")[1]


def test_what_was_not_measured_is_said(measured):
    benchmark, _, _ = measured
    text = page.page_text(PAGE, {"fake": benchmark}, {}, {})
    assert "Nothing was measured with these scripts yet." in text
    assert "Not measured yet on this machine.\n\n    python -m performance run fake" in text


def test_blocks_without_a_benchmark_and_missing_blocks_are_refused():
    with pytest.raises(UserError, match="has a block 'typo'"):
        page.page_text(PAGE + "<!-- begin: typo -->\n<!-- end: typo -->\n", {}, {}, {})
    with pytest.raises(UserError, match="lacks the block '<!-- begin: summary -->'"):
        page.page_text("# Speed\n", {}, {}, {})


def test_the_figure_has_a_bar_for_each_ratio(measured):
    benchmark, result, _ = measured
    root = xml.etree.ElementTree.fromstring(page.figure({"fake": benchmark}, {"fake": result}))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Fake, fast side" in texts
    assert "3.00" in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}rect"))) == 2


def test_a_submission_gathers_records_and_shows_them(measured, tmp_path):
    benchmark, result, _ = measured
    results, folder = tmp_path / "results", tmp_path / "submissions"
    results.mkdir()
    with pytest.raises(UserError, match="has no records"):
        submission.write_submission("Acme", "xeon-2", "", results=results, folder=folder)
    (results / "fake.json").write_text(json.dumps(result))
    file = submission.write_submission("Acme", "xeon-2", "quiet", results=results, folder=folder)
    assert re.fullmatch(r"xeon-2_\d{4}-\d{2}-\d{2}\.json", file.name)
    text = page.page_text(PAGE, {"fake": benchmark}, {}, submission.read_submissions(folder))
    assert "(Acme), Fake: fast side: 3.00 (3.00 to 3.00) times as fast as slow side." in text
    without_fast = replace(benchmark, sides=benchmark.sides[1:])
    text = page.page_text(PAGE, {"fake": without_fast}, {}, submission.read_submissions(folder))
    assert "(Acme), Fake: fast: 3.00 (3.00 to 3.00) times as fast as slow side." in text
    with pytest.raises(UserError, match=r"name it <machine>_<date>\.json"):
        submission.write_submission("Acme", "Xeon 2", "", results=results, folder=folder)


def test_the_machine_line_names_what_decides_speed():
    described = describe_machine()
    line = machine_line(described)
    for words in ("cores", "torch", "transformers", "commit", "load", "GiB"):
        assert words in line
    assert "cores 37% busy at the start" in machine_line(described | {"busy_share": 0.371})


def test_the_busy_share_is_that_of_the_cores_that_we_may_use(monkeypatch):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [10.0, 90.0, 30.0])
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    assert machine.busy_share() == pytest.approx(0.2)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {40, 41}, raising=False)
    assert machine.busy_share() == pytest.approx(130 / 300)


@pytest.fixture
def started(monkeypatch):
    """Runs the command up to the start of a benchmark; returns its output, settings and folder of records."""
    calls = []
    monkeypatch.setattr("performance.__main__._run_one", lambda *arguments: calls.append(arguments) or True)

    def start(*words, busy=0.0):
        monkeypatch.setattr("performance.__main__.busy_share", lambda: busy)
        done = CliRunner().invoke(main, ["run", "training_speed", *words])
        assert done.exception is None, done.output
        _, settings, _, folder = calls[-1]
        return done.output, settings, folder

    return start


def test_other_programs_are_warned_of(started):
    assert "WARNING: other programs use 40% of the cores." in started(busy=0.4)[0]
    assert "WARNING" not in started(busy=0.2)[0]


def test_a_run_that_differs_is_no_record_of_the_page_and_names_its_options(started):
    _, settings, folder = started()
    assert (settings.arguments, folder) == ("", FOLDER / "results")
    _, settings, folder = started("--python", "trl=/somewhere/python")
    assert (settings.arguments, folder) == ("--python trl=PYTHON", REPOSITORY / "build" / "performance")
    assert settings.checkout.pythons == {"trl": "/somewhere/python"}
    _, settings, folder = started("--rounds", "4", "--out", str(FOLDER / "results"))
    assert (settings.arguments, folder) == ("--rounds 4 --out performance/results", FOLDER / "results")
    _, settings, _ = started("--rounds", "4", "--out", "/somewhere")
    assert settings.arguments == "--rounds 4"
    mistaken = CliRunner().invoke(main, ["run", "training_speed", "--python", "trrl=/somewhere/python"])
    assert "Did you mean 'trl'?" in str(mistaken.exception)


@pytest.mark.parametrize("name", benchmark_files())
def test_every_benchmark_loads_and_its_tests_exist(name):
    benchmark = load_benchmark(name)
    assert benchmark.question.endswith("?")
    for identifier in benchmark.tests:
        file, _, function = identifier.partition("::")
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in text, identifier


def test_the_page_is_that_of_the_records():
    assert page.stale_files() == []


def test_records_and_submissions_of_the_repository_are_right():
    record.read_records(FOLDER / "results")
    submission.read_submissions()


def test_the_list_names_every_benchmark_and_mistakes_are_explained():
    listed = CliRunner().invoke(main, ["list"])
    assert listed.exit_code == 0, listed.output
    assert [line for line in listed.output.splitlines() if not line.startswith(" ")] == list(benchmark_files())
    unknown = CliRunner().invoke(main, ["run", "training_sped"])
    assert "training_speed" in str(unknown.exception)


def test_the_example_of_the_page_on_adding_a_benchmark_is_a_benchmark(tmp_path):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    (tmp_path / "sums.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    assert list(benchmark_files(tmp_path)) == ["sums"]
    assert load_benchmark("sums", tmp_path).baseline == "theirs"
