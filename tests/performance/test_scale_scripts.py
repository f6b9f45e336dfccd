"""The benchmarks performance/scale_*.py on tiny sizes; scale_plan on made-up jobs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from performance import scale_comparison, scale_memory, scale_plan, scale_tables
from performance.harness.benchmark import Work
from rm_methods.config.resolve import resolve
from rm_methods.planning.cpu_plan import COLD_START_SECONDS, SERVER_SECONDS, CpuSpeed, start_stage
from rm_methods.planning.plan import Assumptions
from tests.conftest import experiment_config


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("scale")


def work_of(module, case, tmp_path, shared, **options):
    settings = module.BENCHMARK.settings({key: str(value) for key, value in options.items()})
    return Work(case=case, side="ours", options=settings, folder=tmp_path, shared=shared)


@pytest.mark.parametrize("case", [case.name for case in scale_tables.BENCHMARK.cases])
def test_stages_of_score_tables_are_proved_and_timed(tmp_path, shared, case):
    work = work_of(scale_tables, case, tmp_path, shared, prompts=20, candidates=6, summary_prompts=10, pairs=30)
    proof = scale_tables.prove(work)
    assert proof.difference <= proof.tolerance
    scale_tables.prepare(work)
    measured = scale_tables.measure(work)
    assert measured.amount == (60 if "pair" in case else 120)
    if case in scale_tables.READS:
        assert measured.result == pytest.approx(scale_tables.expected(case, work.options), abs=1e-4)


def test_a_wrong_result_is_not_timed(tmp_path, shared, monkeypatch):
    work = work_of(scale_tables, "evaluate_pairs", tmp_path, shared)
    monkeypatch.setitem(scale_tables.READS, "evaluate_pairs", (lambda _: (0.123,), ()))
    proof = scale_tables.prove(work)
    assert proof.difference > proof.tolerance


@pytest.mark.parametrize("case", ["compare", "report", "export", "export_again"])
def test_stages_of_a_comparison_are_proved_and_timed(tmp_path, shared, case):
    work = work_of(
        scale_comparison, case, tmp_path, shared, variants=2, exported_variants=2, seeds=2, items=20, steps=3
    )
    proof = scale_comparison.prove(work)
    assert proof.difference == 0
    scale_comparison.prepare(work)
    measured = scale_comparison.measure(work)
    assert measured.amount == 4
    assert ("largest" in measured.details) == (case in ("compare", "report"))


def test_trainings_of_a_dry_run_are_counted():
    assert scale_comparison.planned_trainings("job  count\n  score  7\n  train   12\n") == 12
    assert scale_comparison.planned_trainings("nothing to do") == 0


def test_memory_of_scoring_is_measured(tmp_path):
    work = work_of(scale_memory, "score_64", tmp_path, tmp_path)
    proof = scale_memory.prove(work)
    assert proof.difference <= proof.tolerance
    measured = scale_memory.measure(work)
    assert measured.amount == 64
    assert measured.peak_memory_bytes > 0


def test_the_table_of_memory_has_the_growth():
    assert scale_memory.growth([(10, 1e6), (20, 3e6)]) == [None, 200.0]
    sizes = (("pair_256", 768, 10**9), ("pair_512", 1536, 2 * 10**9))
    cases = [
        {
            "case": name,
            "title": name,
            "sides": {"ours": {"amount": amount, "peak_memory_bytes": [peak], "cpu_seconds": [1.5]}},
        }
        for name, amount, peak in sizes
    ]
    lines = scale_memory.table({"cases": cases}).splitlines()
    assert lines[2:] == ["| pair_256 | 384 | 1.00 |  | 1.5 |", "| pair_512 | 768 | 2.00 | 2604 | 1.5 |"]


@pytest.mark.process
def test_memory_of_a_training_step_is_measured(prepared):
    items = [scale_memory.random_item(4, 6, responses=2, seed=k) for k in range(2)]
    items = [replace(item, sequences=tuple(sequence % 200 for sequence in item.sequences)) for item in items]
    measured = scale_memory.train_steps(prepared[1], items)
    assert measured.amount == 2 * 2 * (4 + 6 + 6)
    assert measured.cpu_seconds > 0


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
    record = {"options": {"cores": 1}, "cases": [{"sides": {"plan": {"details": [result]}}}]}
    assert "measured 15 s" in scale_plan.table(record)


def test_the_start_of_processes_is_planned():
    config = {"resources": {"warm_start": True, "threads": 1}}
    assert start_stage(config, {"all": 1}) is None
    assert start_stage(config, {"train": 3, "all": 1}).seconds == 3 * COLD_START_SECONDS
    assert start_stage(config, Counter(train=3, score=1)).seconds == SERVER_SECONDS
    config["resources"]["threads"] = 2
    assert start_stage(config, {"train": 4}).seconds == 2 * SERVER_SECONDS, "a server for jobs of one thread, too"
    assert start_stage({"resources": {"warm_start": False}}, {"train": 4}).seconds == 4 * COLD_START_SECONDS
