"""The tune stage: for every method, the learning rate and the value of its main setting that do best on the validation
split.

Equal terms: every method gets the same learning rates, and one line of values through its one main setting, at its own
learning rate.  Chosen by mean validation accuracy over the seeds; a tie goes to the lower validation loss.  Test data
are never looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.errors import UserError
from rm_methods.experiment.layout import TUNING_FILES, Layout
from rm_methods.files import write_text
from rm_methods.methods.registry import load_method_card
from rm_methods.preferences.data_sources import dataset_name
from rm_methods.reporting.tables import Section, csv_text, markdown_text, terminal_text
from rm_methods.stored import read_record
from rm_methods.yaml_files import yaml_text


@dataclass(frozen=True)
class Candidate:
    """One point of a method's grid.

    Attributes:
        variant, tuned_from, method: its name, the variant whose grid it belongs to, the method.
        setting, value: what is tried here, "learning_rate" or the knob of the method's card; the untouched variant has
            both.
        accuracies, losses: on the validation split, by seed.
    """

    variant: str
    tuned_from: str
    method: str
    setting: str
    value: Any
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better.  Equal accuracies may differ in the last bits when they are means over other seeds: that
        is still a tie."""
        return round(float(np.mean(self.accuracies)), 9), -float(np.mean(self.losses))


def tune(config: Mapping[str, Any], folder: Path, out_folder: Path) -> str:
    """Write tuned.yaml (to be named by `tuned:` in a configuration) and the table of all candidates; returns the table
    as text.

    Args:
        config: resolved, with `tuning.enabled`.
        folder: of the experiment's results.

    Raises:
        UserError: tuning is not enabled, a run is missing, or a run has no validation metrics.
    """
    if not config["tuning"]["enabled"]:
        raise UserError(
            "tuning.enabled is false in this configuration, so nothing was tuned. Set it to true and run snakemake."
        )
    candidates = read_candidates(config, Path(folder))
    selected = select(candidates)
    settings: dict[str, dict[str, Any]] = {}
    for candidate in selected:
        settings.setdefault(candidate.method, {})[candidate.setting] = candidate.value
    evidence = {
        "experiment": config["experiment"],
        "dataset": dataset_name(config["data"]),
        "label_noise": dict(config["data"]["label_noise"]),
        "seeds": list(config["seeds"]),
        "selected_by": "mean validation accuracy over seeds, then validation loss",
        "candidates": [
            {
                "method": c.method,
                c.setting: c.value,
                "validation_accuracy": round(float(np.mean(c.accuracies)), 4),
                "validation_loss": round(float(np.mean(c.losses)), 4),
                "selected": c in selected,
            }
            for c in candidates
        ],
    }
    table = _section(candidates, selected)
    text = terminal_text([table], [])
    contents = {
        "tuned.yaml": yaml_text({"settings": settings, "evidence": evidence}),
        "table.txt": text,
        "table.md": markdown_text([table], []),
        "table.csv": csv_text(_records(candidates, selected), _CSV_FIELDS),
    }
    for name in TUNING_FILES:
        write_text(Path(out_folder) / name, contents[name])
    return text


def read_candidates(config: Mapping[str, Any], folder: Path) -> list[Candidate]:
    """All points of all grids, line by line.  The untouched variant is in both of its lines; a line of one point is
    left out."""
    candidates = []
    for variant, entry in config["methods"].items():
        card = load_method_card(entry["method"])
        if card.kind != "trained":
            continue
        base = config["methods"][entry["tuned_from"] or variant]
        tried: dict[str, Any] = {}
        if entry["settings"] == base["settings"]:
            tried["learning_rate"] = entry["learning_rate"] or config["training"]["learning_rate"]
        if card.knob and entry["learning_rate"] == base["learning_rate"]:
            tried[card.knob["setting"]] = entry["settings"][card.knob["setting"]]
        metrics = [_validation(Layout(folder).summary(variant, seed)) for seed in config["seeds"]]
        for setting, value in tried.items():
            candidates.append(
                Candidate(
                    variant=variant,
                    tuned_from=entry["tuned_from"] or variant,
                    method=entry["method"],
                    setting=setting,
                    value=value,
                    accuracies=tuple(run["validation_accuracy"] for run in metrics),
                    losses=tuple(run["validation_loss"] for run in metrics),
                )
            )
    points = Counter((c.tuned_from, c.setting) for c in candidates)
    candidates = [c for c in candidates if points[c.tuned_from, c.setting] > 1]
    return sorted(
        candidates, key=lambda c: (list(config["methods"]).index(c.tuned_from), c.setting != "learning_rate", c.value)
    )


def select(candidates: list[Candidate]) -> list[Candidate]:
    """The best candidate of every line."""
    lines: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        lines.setdefault((candidate.tuned_from, candidate.setting), []).append(candidate)
    return [max(line, key=lambda c: c.rank) for line in lines.values()]


def _validation(path: Path) -> dict[str, float]:
    if not path.exists():
        raise UserError(f"{path}: this run is missing. Run snakemake for this configuration first.")
    metrics = read_record(path, "a summary.json with validation metrics", "train")["metrics"]
    if missing := [name for name in ("validation_accuracy", "validation_loss") if name not in metrics]:
        raise UserError(
            f"{path}: no {missing[0]}. Tuning needs a validation split; set data.validation_fraction above 0."
        )
    return metrics


_HEADINGS = ("Method", "Setting", "Value", "Validation accuracy, %", "Range over seeds", "Validation loss", "")


def _section(candidates: list[Candidate], selected: list[Candidate]) -> Section:
    rows = []
    for candidate in candidates:
        percents = [100 * accuracy for accuracy in candidate.accuracies]
        value = candidate.value
        rows.append(
            (
                candidate.tuned_from,
                candidate.setting,
                f"{value:g}" if isinstance(value, float) else str(value),
                f"{np.mean(percents):.1f}",
                f"{min(percents):.1f} to {max(percents):.1f}",
                f"{np.mean(candidate.losses):.3f}",
                "selected" if candidate in selected else "",
            )
        )
    together = (len(_HEADINGS) - 3,)
    return Section("", _HEADINGS, tuple(rows), names=3, left_aligned=2, together=together)


_CSV_FIELDS = (
    "variant",
    "tuned_from",
    "method",
    "setting",
    "value",
    "seed_index",
    "validation_accuracy",
    "validation_loss",
    "selected",
)


def _records(candidates: list[Candidate], selected: list[Candidate]) -> list[dict[str, Any]]:
    return [
        {
            "variant": candidate.variant,
            "tuned_from": candidate.tuned_from,
            "method": candidate.method,
            "setting": candidate.setting,
            "value": candidate.value,
            "seed_index": seed_index,
            "validation_accuracy": accuracy,
            "validation_loss": loss,
            "selected": candidate in selected,
        }
        for candidate in candidates
        for seed_index, (accuracy, loss) in enumerate(zip(candidate.accuracies, candidate.losses, strict=True))
    ]
