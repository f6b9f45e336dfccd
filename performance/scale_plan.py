"""Compare what `rm-methods plan` says on CPUs with what a finished experiment took, stage by stage.

    make demo
    python -m performance run scale_plan --option experiment=results/quickstart

Run it in the folder in which the workflow ran, on the same machine with nothing else running, after a run without
interruptions: the plan measures the speed of a core when this benchmark runs.  Option `unprepared` hides the prepared
files from the plan, so that it knows what it knew before the first job.

The measured seconds are those of Snakemake's records (`performance/workflow_time.py`).  A ratio of 1 is a right plan,
above 1 the experiment took longer.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from performance.harness.benchmark import Benchmark, Measurement, Option, Side, Work
from performance.harness.stopwatch import Stopwatch
from performance.workflow_time import METADATA, finished_jobs, missing, prove, stored_config, totals_by_rule

RIGHT = 0.25  # a plan is right within this share of the measured time


def planned_stages(config: Mapping[str, Any], jobs: Mapping[str, int]) -> tuple[list, Any]:
    """The plan's stages of an experiment none of whose jobs has run, and the speeds that it measured."""
    from rm_methods.planning.cpu_plan import cpu_stages, start_stage, texts_of
    from rm_methods.planning.cpu_text import core_speed, with_texts
    from rm_methods.planning.plan import make_assumptions

    texts = texts_of(config)
    assumptions = with_texts(make_assumptions(config, {}), texts, {})
    speed = core_speed(config, assumptions)
    stages = cpu_stages(config, assumptions, texts.pairs if texts else {}, speed, jobs)
    if start := start_stage(config, jobs):
        stages.append(start)
    return stages, speed


def compare(experiment: Path, metadata: Path, cores: int, unprepared: bool) -> dict[str, Any]:
    """Planned and measured seconds.

    Args:
        experiment: folder of the experiment's results, as the workflow names it.
        metadata: Snakemake's folder with one JSON file for each output.
        cores: of the workflow.

    Returns:
        speed (operations a second of a core); stages (rule, jobs, planned and measured core-seconds, ratio); planned,
        measured (wall seconds) and ratio.

    Raises:
        UserError: no job of the experiment is known.
    """
    from rm_methods.planning.cpu_plan import wall_seconds

    jobs = finished_jobs(metadata, experiment)
    config = stored_config(experiment)
    threads = config["resources"]["threads"]
    totals = totals_by_rule(jobs, threads)
    with tempfile.TemporaryDirectory() as empty:
        seen = config | {"results": empty} if unprepared else config
        stages, speed = planned_stages(seen, Counter(job.rule for job in jobs))
    planned = {stage.rule: stage.seconds for stage in stages}
    rows = []
    for rule, total in totals.items():
        seconds = planned.get(rule, 0.0)
        ratio = total.seconds / seconds if seconds else None
        rows.append({"rule": rule, "jobs": total.jobs, "planned": seconds, "measured": total.seconds, "ratio": ratio})
    for rule in planned.keys() - totals.keys():
        # Snakemake records no job for the server that forks jobs; of cold jobs, the start is part of what is measured.
        rows.append({"rule": rule, "jobs": 0, "planned": planned[rule], "measured": 0.0, "ratio": None})
    wall = wall_seconds(stages, cores, threads)
    measured = max(job.end for job in jobs) - min(job.start for job in jobs)
    return {
        "speed": vars(speed),
        "stages": rows,
        "planned": wall,
        "measured": measured,
        "ratio": measured / wall,
    }


def measure(work: Work) -> Measurement:
    """Plan the experiment now; the details have planned and measured seconds."""
    options = work.options
    with Stopwatch() as watch:
        details = compare(Path(options["experiment"]), METADATA, options["cores"], options["unprepared"])
    return watch.measurement(amount=sum(row["jobs"] for row in details["stages"]), details=details)


def table(record: Mapping[str, Any]) -> str:
    """Planned and measured seconds of each rule, and of the whole experiment."""
    result = record["cases"][0]["sides"]["plan"]["details"][0]
    lines = ["| rule | jobs | planned, core-seconds | measured, core-seconds | ratio |", "|---|---:|---:|---:|---:|"]
    for row in result["stages"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(f"| {row['rule']} | {row['jobs']} | {row['planned']:.1f} | {row['measured']:.1f} | {ratio} |")
    speeds = ", ".join(f"{value / 1e9:.3g} GFLOP/s in {name}" for name, value in result["speed"].items())
    verdict = "within" if abs(result["ratio"] - 1) <= RIGHT else "not within"
    return "\n".join(
        [
            *lines,
            "",
            f"Wall time on {record['options']['cores']} cores: planned {result['planned']:.0f} s, measured "
            f"{result['measured']:.0f} s, ratio {result['ratio']:.2f}: {verdict} {RIGHT:.0%}.",
            f"A core: {speeds}.",
        ]
    )


BENCHMARK = Benchmark(
    name="scale_plan",
    title="Planned and measured time",
    question="Does a finished experiment take as long as `rm-methods plan` says?",
    sides=(Side("plan", "plan"),),
    tests=(
        "tests/performance/test_scale_scripts.py::test_plan_and_measured_times_are_compared",
        "tests/planning/test_cpu_plan.py",
    ),
    options={
        "experiment": Option("results/quickstart", "folder of the results, as the workflow names it"),
        "cores": Option(2, "--cores of the workflow"),
        "unprepared": Option(False, "plan without the prepared files"),
    },
    missing=missing,
    prove=prove,
    measure=measure,
    rounds=1,
    unit="jobs",
    table=table,
)
