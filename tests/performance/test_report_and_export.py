"""performance/report_and_export.py: all cases of a small experiment are proved and measured."""

from __future__ import annotations

import pytest

from performance.harness.benchmark import Work
from performance.report_and_export import BENCHMARK, measure, prepare, prove


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("speed")


@pytest.mark.parametrize("case", [case.name for case in BENCHMARK.cases])
def test_report_and_exports_are_complete_and_timed(folder, tmp_path, monkeypatch, case):
    monkeypatch.chdir(folder)
    options = BENCHMARK.settings({"variants": "2", "seeds": "2", "items": "20", "steps": "3"})
    work = Work(case=case, side="ours", options=options, folder=tmp_path, shared=folder)
    prepare(work)
    proof = prove(work)
    assert proof.difference == 0
    assert proof.statement == ("the page names all 2 variants" if case == "report" else "all 4 runs are exported")
    measured = measure(work)
    assert measured.seconds > 0
    assert measured.amount == 4
