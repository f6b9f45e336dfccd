"""performance/scale_memory.py on its smallest size, and performance/scale_plan.py on made-up jobs."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml

from performance import scale_memory, scale_plan
from rm_methods.config.resolve import resolve
from rm_methods.planning.cpu_plan import COLD_START_SECONDS, SERVER_SECONDS, CpuSpeed, start_stage
from rm_methods.planning.plan import Assumptions
from tests.conftest import experiment_config


def test_memory_of_scoring_is_measured(capsys):
    rows = [scale_memory.measure("score", tokens, backbone=None) for tokens in (64, 128)]
    assert [row["packed"] for row in rows] == [64, 128]
    assert all(row["peak"] >= row["before"] > 0 for row in rows)
    assert scale_memory.growth([{"peak": 1e6, "packed": 10}, {"peak": 3e6, "packed": 20}]) == [None, 200.0]
    scale_memory.print_table(rows)
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.process
def test_memory_of_a_training_step_is_measured(prepared):
    items = [scale_memory.random_item(4, 6, responses=2, seed=k) for k in range(2)]
    items = [type(item)(tuple(s % 200 for s in item.sequences), item.shared, *[(False, False)] * 2) for item in items]
    measured = scale_memory.train_steps(prepared[1], items)
    assert measured["parameters"] > 0
    assert measured["cpu_seconds"] > 0


def test_plan_and_measured_times_are_compared(tmp_path, monkeypatch):
    """A preparation of 10 s, and an evaluation of 5 s."""
    monkeypatch.chdir(tmp_path)
    config = resolve(experiment_config(tmp_path)) | {"results": "results", "experiment": "x"}
    (tmp_path / "results/x/config").mkdir(parents=True)
    (tmp_path / "results/x/config/a.yaml").write_text(yaml.safe_dump(config))
    metadata = tmp_path / ".snakemake" / "metadata"
    metadata.mkdir(parents=True)
    for rule, start, end in (("prepare", 100.0, 110.0), ("evaluate", 110.0, 115.0)):
        record = {"rule": rule, "shellcmd": f"x --out {tmp_path}/results/x/{rule}", "starttime": start, "endtime": end}
        (metadata / rule).write_text(json.dumps(record))
    speed = CpuSpeed(1e9, 1e9, 1e9)
    monkeypatch.setattr("rm_methods.planning.cpu_text.measured_speed", lambda *_: speed)
    monkeypatch.setattr("rm_methods.planning.cpu_plan.texts_of", lambda _: None)
    monkeypatch.setattr("rm_methods.planning.plan.make_assumptions", lambda *_: Assumptions(pairs=48))
    result = scale_plan.compare(tmp_path / "results/x", metadata, cores=1, unprepared=False)
    assert result["measured"] == 15.0
    measured = {row["rule"]: row["measured"] for row in result["stages"]}
    assert (measured["prepare"], measured["evaluate"]) == (10.0, 5.0)
    assert result["ratio"] == pytest.approx(15.0 / result["planned"])


def test_the_start_of_processes_is_planned():
    config = {"resources": {"warm_start": True, "threads": 1}}
    assert start_stage(config, {"all": 1}) is None
    assert start_stage(config, {"train": 3, "all": 1}).seconds == 3 * COLD_START_SECONDS
    assert start_stage(config, Counter(train=3, score=1)).seconds == SERVER_SECONDS
    config["resources"]["threads"] = 2
    assert start_stage(config, {"train": 4}).seconds == 2 * SERVER_SECONDS, "a server for jobs of one thread, too"
    assert start_stage({"resources": {"warm_start": False}}, {"train": 4}).seconds == 4 * COLD_START_SECONDS
