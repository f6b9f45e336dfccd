"""performance/workflow_time.py: shares of made-up jobs, worked out by hand."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from tests.performance.test_gpu_script import script


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A training of 10 s that worked for 8 s, a scoring of 5 s that worked for 4 s, a comparison of 2 s."""
    monkeypatch.chdir(tmp_path)
    out = "results/x"
    records = [
        ("train", f"rm-methods train --out {out}/run --threads 2 && cp a b", 100.0, 110.0, True),
        ("train", f"rm-methods train --out {out}/run --threads 2 && cp a b", 100.0, 110.0, True),  # another output
        ("score", f"rm-methods score --out {out}/world.parquet", 110.0, 115.0, True),
        ("compare", f"rm-methods compare --out {out}/comparison", 115.0, 117.0, True),
        ("compare", f"rm-methods compare --out {out}/other", 115.0, 900.0, False),
        ("train", "rm-methods train --out results/y/run", 0.0, 900.0, True),
    ]
    metadata = tmp_path / ".snakemake" / "metadata"
    metadata.mkdir(parents=True)
    for number, (rule, command, start, end, complete) in enumerate(records):
        record = {"rule": rule, "shellcmd": command, "starttime": start, "endtime": end, "incomplete": not complete}
        (metadata / str(number)).write_text(json.dumps(record))
    for name in ("run", "config"):
        (tmp_path / out / name).mkdir(parents=True)
    (tmp_path / out / "config" / "a.yaml").write_text(yaml.safe_dump({"resources": {"threads": 2}}))
    (tmp_path / out / "run" / "summary.json").write_text(json.dumps({"cost": {"wall_seconds": 8.0}}))
    (tmp_path / out / "world.parquet.report.json").write_text(json.dumps({"seconds": 4.0}))


def test_shares_add_up(finished):
    done = CliRunner().invoke(script("workflow_time").main, ["--experiment", "results/x", "--cores", "2"])
    assert done.exit_code == 0, done.output
    lines = {line[:34].strip(): line[34:].split() for line in done.output.splitlines()}
    # 17 s on two cores; the training and the scoring use both.
    assert lines["training"] == ["16.0", "47.1%"]
    assert lines["scoring"] == ["8.0", "23.5%"]
    assert lines["starts of trainings and scorers"] == ["6.0", "17.6%"]
    assert lines["everything else"] == ["2.0", "5.9%"]
    assert lines["between jobs"] == ["2.0", "5.9%"]
    assert "29.4% of 34 core-seconds" in done.output


def test_a_folder_without_records_is_refused(finished):
    from rm_methods.errors import UserError

    done = CliRunner().invoke(script("workflow_time").main, ["--experiment", "results/x/run"])
    assert isinstance(done.exception, UserError)
    assert "no finished job" in str(done.exception)
