"""The script that times the report and the export, on a small experiment."""

import re

from click.testing import CliRunner

from performance.report_and_export import main


def test_it_times_the_report_and_two_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["--variants", "2", "--seeds", "2", "--items", "20", "--steps", "3"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("2 variants x 2 seeds x 8 benchmarks")
    timed = [re.match(r"(\D+?)\s+\d+\.\d s wall\s+\d+\.\d s user\+sys$", line) for line in lines[1:]]
    assert [match and match.group(1) for match in timed] == ["report", "export, everything new", "export, nothing new"]
