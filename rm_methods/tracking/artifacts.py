"""The files of an experiment that go to MLflow as artifacts, by their names there.  Weights are never among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.experiment.layout import TABLE_SUFFIXES, TUNING_FILES, Layout
from rm_methods.reward_models.model_folder import MODEL_CARD
from rm_methods.system.tracking_address import redacted
from rm_methods.yaml_files import yaml_text

MAX_BYTES = 20_000_000  # of one file; a larger one stays where it is, and `left_out.txt` names it
LEFT_OUT = "left_out.txt"


def run_artifacts(layout: Layout, variant: str, seed: int, benchmarks: Mapping[str, Any]) -> dict[str, Path]:
    """The files of a reward model's run."""
    artifacts = {
        "training/metrics.jsonl": layout.training_log(variant, seed),
        "training/summary.json": layout.summary(variant, seed),
        "evaluation/metrics.json": layout.metrics(variant, seed),
        "model_card.md": layout.model(variant, seed) / MODEL_CARD,
    }
    for benchmark in benchmarks:
        artifacts[f"scores/{benchmark}.json"] = layout.score_report(variant, seed, benchmark)
    return artifacts


def ppo_artifacts(folder: Path) -> dict[str, Path]:
    """The files of a PPO run."""
    return {f"training/{name}": folder / name for name in ("metrics.jsonl", "summary.json")}


def comparison_artifacts(layout: Layout) -> dict[str, Path]:
    """Report, tables and figures of an experiment that are written."""
    artifacts = {"report.html": layout.report}
    for suffix in TABLE_SUFFIXES:
        artifacts[f"table.{suffix}"] = layout.comparison / f"table.{suffix}"
    for figure in sorted(layout.comparison.glob("*.png")):
        artifacts[f"figures/{figure.name}"] = figure
    for name, folder in (("overoptimization", layout.overoptimization), ("diagnostics", layout.diagnostics)):
        for path in sorted(folder.glob("*")):
            if path.suffix in (".png", ".md", ".csv"):
                artifacts[f"{name}/{path.name}"] = path
    for name in TUNING_FILES:
        artifacts[f"tuning/{name}"] = layout.tuning / name
    return artifacts


def configuration_text(config: Mapping[str, Any]) -> str:
    """The resolved configuration as YAML, without the secrets of MLflow's address."""
    tracking = dict(config["tracking"])
    if tracking["uri"]:
        tracking["uri"] = redacted(tracking["uri"])
    return yaml_text(dict(config) | {"tracking": tracking})


def within_limit(artifacts: Mapping[str, Path | str]) -> dict[str, Path | str]:
    """The artifacts that exist and are not too large; `left_out.txt` names the others that exist."""
    kept: dict[str, Path | str] = {}
    left_out = []
    for name, source in artifacts.items():
        if isinstance(source, str):
            kept[name] = source
        elif source.is_file():
            n_bytes = source.stat().st_size
            if n_bytes <= MAX_BYTES:
                kept[name] = source
            else:
                left_out.append(f"{name}: {n_bytes / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB. See {source}\n")
    if left_out:
        kept[LEFT_OUT] = "".join(left_out)
    return kept
