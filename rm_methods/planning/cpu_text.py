"""The plan of an experiment on CPUs as text for the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.experiment.experiment import Experiment
from rm_methods.planning.cpu_plan import (
    CpuSpeed,
    Stage,
    Texts,
    cpu_stages,
    measured_speed,
    responses_of,
    start_stage,
    texts_of,
    wall_seconds,
)
from rm_methods.planning.plan import Assumptions, backbone_configuration, job_counts, plan
from rm_methods.planning.plan_text import aligned, disk_lines, left_out_text

# Other programs count from this load on, in parts of the cores.
_BUSY_SHARE = 0.5


def cores_of_this_machine() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_plan_text(
    config: Mapping[str, Any], files: Sequence[Path], assumptions: Assumptions, given: Mapping[str, Any], cores: int
) -> str:
    """The wall time on CPUs, the stages it consists of, and what was assumed.

    Args:
        files: of the configuration.
        assumptions: for what the experiment's pairs do not tell.
        given: assumptions that the user gave, which count more than the pairs.
        cores: that Snakemake will have.
    """
    texts = texts_of(config)
    assumptions = with_texts(assumptions, texts, given)
    plans = plan(config, assumptions)  # refuses what cannot be planned
    jobs = job_counts(files)
    speed = core_speed(config, assumptions)
    stages = cpu_stages(config, assumptions, texts.pairs if texts else {}, speed, jobs)
    if start := start_stage(config, jobs):
        stages.append(start)
    counts = f"{len(plans)} variants, {len(config['seeds'])} seeds, {len(config['benchmarks'])} benchmarks"
    lines = [
        f"Plan of experiment {config['experiment']}: {counts}, on CPUs (--gpu TYPE plans for GPUs)",
        "",
        _time_line(config, stages, cores),
        *(_load_lines() if stages else []),
        "",
        *aligned([("stage", "jobs", "CPU time"), *((s.rule, str(s.jobs), duration(s.seconds)) for s in stages)]),
        *_set_up_lines(config, jobs),
        "",
        *_assumption_lines(config, assumptions, texts, speed),
        *disk_lines(config, plans),
    ]
    return "\n".join(lines)


def with_texts(assumptions: Assumptions, texts: Texts | None, given: Mapping[str, Any]) -> Assumptions:
    """The assumptions with the number and lengths of the experiment's own pairs."""
    if texts is None:
        return assumptions
    known: dict[str, Any] = {
        "pairs": texts.pairs.get("train", 0),
        "prompt_tokens": texts.prompt_tokens,
        "response_tokens": texts.response_tokens,
    }
    return replace(assumptions, **{name: value for name, value in known.items() if name not in given})


def _set_up_lines(config: Mapping[str, Any], jobs: Mapping[str, int]) -> list[str]:
    """How many runs are trainings, if the train stage also sets up scorers without weights."""
    experiment = Experiment(config)
    runs = experiment.runs()
    trained = sum(experiment.is_trained(variant) for variant, _ in runs)
    if "train" not in jobs or trained == len(runs):
        return []
    return [f"Of the {len(runs)} runs, {trained} are trainings; the train stage only sets up the others."]


def _load_lines() -> list[str]:
    """A warning if other programs compute now."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < _BUSY_SHARE * cores_of_this_machine():
        return []
    return [
        f"Other programs compute on this machine now (load {load:.1f}, {cores_of_this_machine()} cores).",
        "The plan does not count them: while they run, the experiment takes longer, easily several times as long.",
    ]


def core_speed(config: Mapping[str, Any], assumptions: Assumptions) -> CpuSpeed:
    """The speed of a core with the backbone of an experiment, measured now."""
    return measured_speed(
        backbone_configuration(config, assumptions.shape),
        round(assumptions.prompt_tokens),
        round(assumptions.response_tokens),
        config["training"]["precision"],
    )


def _time_line(config: Mapping[str, Any], stages: Sequence[Stage], cores: int) -> str:
    if not stages:
        return "Nothing is left to run."
    wall = duration(wall_seconds(stages, cores, config["resources"]["threads"]))
    plural = "s" if cores > 1 else ""
    return f"About {wall} on {cores} core{plural} of this machine, if nothing else runs (snakemake --cores {cores})."


def _assumption_lines(
    config: Mapping[str, Any], assumptions: Assumptions, texts: Texts | None, speed: CpuSpeed
) -> list[str]:
    source = "of this experiment's pairs" if texts else "assumed; --pairs, --prompt-tokens, --response-tokens change it"
    pairs = texts.pairs if texts else {}
    unknown = [name for name in config["benchmarks"] if responses_of(config, name, pairs) is None]
    lines = [
        "Assumptions:",
        f"  speed of a core, measured now on layers of the backbone: {speed.training / 1e9:.3g} GFLOP/s "
        f"in training, {speed.scoring / 1e9:.3g} in scoring, {speed.sampling / 1e9:.3g} while sampling",
        f"  {assumptions.pairs:,} training pairs; a prompt has {assumptions.prompt_tokens:.0f} tokens, a response "
        f"{assumptions.response_tokens:.0f} ({source})",
        f"  {left_out_text(config, assumptions.pairs, texts.left_out if texts else None)}",
        "  methods cost what their texts cost; what a loss adds is not counted",
        "  the machine is idle: the speed is that of a core with nothing else to do",
    ]
    if unknown:
        names = ", ".join(unknown)
        lines.append(
            f"  {assumptions.responses:,} responses of each benchmark that is not prepared: {names} (--responses)"
        )
    return lines


def duration(seconds: float) -> str:
    """A time with one unit or two: 20 s, 6 min, 2 h 30 min, 3 days 4 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours and days < 10 else f"{days} days"
