"""The plan of an experiment as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rm_methods.planning.plan import GPUS, Assumptions, VariantPlan, ranks_of_run, warnings
from rm_methods.planning.sizes import CHECKPOINTS_ON_DISK

_HEADINGS = (
    "variant",
    "runs",
    "1e9 parameters",
    "steps",
    "train GPU-h",
    "score GPU-h",
    "GB/GPU",
    "GB/node",
    "model GB",
    "scratch GB",
)
_OPTIMIZATION_STAGES = {"sft", "sample_pool", "ppo", "overoptimization"}


def plan_text(
    config: Mapping[str, Any], plans: Sequence[VariantPlan], assumptions: Assumptions, jobs: Mapping[str, int]
) -> str:
    """The assumptions, the jobs, a table of the variants, totals and warnings.

    Args:
        jobs: number of jobs that are still to run, by rule.
    """
    counts = f"{len(plans)} variants, {len(config['seeds'])} seeds, {len(config['benchmarks'])} benchmarks"
    remaining = ", ".join(f"{rule} {count}" for rule, count in jobs.items()) or "none"
    lines = [f"Plan of experiment {config['experiment']}: {counts}", ""]
    lines.append("Assumptions (options change them; * measured on prepared files):")
    lines += _assumption_lines(config, assumptions)
    lines += ["", f"Jobs still to run: {remaining}"]
    lines += ["", "Of one run of each variant:", *aligned([_HEADINGS, *map(_row, plans)])]
    lines += ["", *_totals(config, plans, assumptions)]
    if _OPTIMIZATION_STAGES & jobs.keys():
        lines.append("Not in these numbers: sampling, Best-of-N and PPO.")
    if problems := warnings(config, plans, assumptions):
        lines += ["", "Look at these:", *(f"  - {problem}" for problem in problems)]
    return "\n".join(lines)


def _row(entry: VariantPlan) -> tuple[str, ...]:
    return (
        entry.variant,
        str(entry.runs),
        f"{entry.parameters / 1e9:.3g}",
        str(entry.steps),
        f"{entry.train_hours:.3g}",
        f"{entry.score_hours:.2g}",
        _gigabytes(entry.gpu_bytes),
        _gigabytes(entry.host_bytes),
        _gigabytes(entry.disk_bytes),
        _gigabytes(entry.work_bytes),
    )


def _assumption_lines(config: Mapping[str, Any], assumptions: Assumptions) -> list[str]:
    peak, memory = GPUS[assumptions.gpu]
    lines = [
        f"  {assumptions.gpu}: {peak / 1e12:.0f} TFLOP/s dense bf16, {memory / 1e9:.0f} GB; "
        f"{ranks_of_run(config)} of them train one run"
    ]
    for name, value in asdict(assumptions).items():
        if name in ("gpu", "measured") or value is None:
            continue
        star = "*" if name in assumptions.measured else ""
        lines.append(f"  {name}{star}: {value if name == 'shape' else format(value, ',.6g')}")
    return lines


def _totals(config: Mapping[str, Any], plans: Sequence[VariantPlan], assumptions: Assumptions) -> list[str]:
    train_hours = sum(entry.runs * entry.train_hours for entry in plans)
    score_hours = sum(entry.runs * entry.score_hours for entry in plans)
    tokens = assumptions.pairs * (assumptions.prompt_tokens + 2 * assumptions.response_tokens)
    lines = [f"One epoch: {assumptions.pairs:,} pairs, {tokens:,.0f} tokens (each prompt once)"]
    for entry in plans:
        if entry.method == "bradley_terry" and entry.train_hours:
            rate = tokens * config["training"]["epochs"] / entry.train_hours
            lines.append(f"{entry.variant}: {rate / 1e6:,.3g} million tokens a GPU-hour at this utilization")
    lines.append(
        f"GPU-hours: {train_hours + score_hours:,.3g} = {train_hours:,.3g} training + {score_hours:,.3g} scoring"
    )
    return lines + disk_lines(config, plans)


def disk_lines(config: Mapping[str, Any], plans: Sequence[VariantPlan]) -> list[str]:
    """Disk that the results and the running trainings take."""
    # Students of one teacher share its maps.
    maps_of_teacher = {
        config["methods"][entry.variant]["settings"]["teacher"]: entry.maps_bytes for entry in plans if entry.maps_bytes
    }
    maps_bytes = len(config["seeds"]) * sum(maps_of_teacher.values())
    model_bytes = sum(entry.runs * entry.disk_bytes for entry in plans)
    work_bytes = max(entry.work_bytes for entry in plans)
    return [
        f"Disk that stays: {_gigabytes(model_bytes)} GB of models, {_gigabytes(maps_bytes)} GB of teachers' maps",
        f"Scratch of a training job while it runs: up to {_gigabytes(work_bytes)} GB ({CHECKPOINTS_ON_DISK} "
        "checkpoints)",
    ]


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines: names on the left, numbers aligned on the right; nothing is cut."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [name.ljust(widths[0])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return lines


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size < 1e11 else f"{size / 1e9:,.0f}"
