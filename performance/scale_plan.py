"""Compare what `rm-methods plan` says on CPUs with what a finished experiment took, stage by stage.

    make demo
    python -m performance.scale_plan --experiment results/quickstart

Run it (repository on the import path) in the folder in which the workflow ran, on the same machine with nothing else
running, after a run without interruptions: the plan measures the speed of a core when this script runs.  `--unprepared`
hides the prepared files from the plan, so that it knows what it knew before the first job.

The measured seconds are those of Snakemake's records (`performance/workflow_time.py`).  A ratio of 1 is a right plan,
above 1 the experiment took longer.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from performance.workflow_time import finished_jobs, stored_threads, totals_by_rule

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
    threads = stored_threads(experiment)
    totals = totals_by_rule(jobs, threads)
    newest = max((experiment / "config").glob("*.yaml"), key=lambda file: file.stat().st_mtime)
    config = yaml.safe_load(newest.read_text(encoding="utf-8"))
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


@click.command()
@click.option("--experiment", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--cores", type=click.IntRange(min=1), default=2, show_default=True, help="--cores of the workflow.")
@click.option("--unprepared", is_flag=True, help="Plan without the prepared files.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all numbers here.")
def main(experiment: Path, cores: int, unprepared: bool, json_file: Path | None) -> None:
    """Print planned and measured seconds of each rule, and of the whole experiment."""
    result = compare(experiment, Path(".snakemake/metadata"), cores, unprepared)
    speeds = ", ".join(f"{value / 1e9:.3g} GFLOP/s in {name}" for name, value in result["speed"].items())
    click.echo(f"A core of this machine: {speeds}.")
    click.echo(f"{'rule':<20}{'jobs':>6}{'planned, s':>12}{'measured, s':>13}{'ratio':>8}")
    for row in result["stages"]:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        click.echo(f"{row['rule']:<20}{row['jobs']:>6}{row['planned']:>12.1f}{row['measured']:>13.1f}{ratio:>8}")
    verdict = "within" if abs(result["ratio"] - 1) <= RIGHT else "NOT within"
    click.echo(
        f"Wall time on {cores} cores: planned {result['planned']:.0f} s, measured {result['measured']:.0f} s, ratio "
        f"{result['ratio']:.2f}: {verdict} {RIGHT:.0%}."
    )
    if json_file:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
