"""The distances to joint teachers of all runs as one table: mean over pairs and seeds, before and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.diagnostics.findings import pooled_means
from rm_methods.diagnostics.records import DISTANCE_COLUMNS, read_diagnostics
from rm_methods.experiment.diagnosed_runs import diagnosed_runs, teachers
from rm_methods.experiment.layout import DISTANCE_FILES, Layout
from rm_methods.reporting.tables import Section, csv_text, latex_text, markdown_text, terminal_text
from rm_methods.statistics.bootstrap import MIN_CLUSTERS

NAMES = {"joint": "Joint", "intra": "Intra", "inter": "Inter", "causal": "Causal", "received": "Received"}
CSV_FIELDS = (
    "benchmark",
    "variant",
    "teacher",
    "distance",
    "rows",
    "before",
    "after",
    "after_low",
    "after_high",
)
NOTES = [
    "KL(teacher, student) in nats, mean over pairs that were not trained on and over seeds, before > after training; ± is half of a 95% "
    "interval over resampled pairs (not seeds). Before: the model that training began from. Pairs without a joint text are left out. "
    f"Below {MIN_CLUSTERS} prompts there is no interval.",
    "Joint: rows of the virtual map over prompt, chosen and rejected; intra: of prompt with each response; inter: of one response with the "
    "other; causal: rows of the map that the model uses; received: attention that each part of the text receives.",
]


def distance_tables(config: Mapping[str, Any], folder: Path) -> tuple[str, str, str, str] | None:
    """The table as terminal text, Markdown, CSV and LaTeX; None if the experiment has no joint variant.

    Raises:
        DataError: a file is missing or unreadable.
    """
    import pandas

    frames = []
    for variant, seed in diagnosed_runs(config):
        if teachers(config, variant):
            path = Layout(folder).diagnosed_run(variant, seed) / DISTANCE_FILES[0]
            frames.append(read_diagnostics(path, DISTANCE_COLUMNS).assign(variant=variant, seed=seed))
    if not frames:
        return None
    rows, records = [], []
    table = pandas.concat(frames, ignore_index=True)
    for (benchmark, variant, teacher), own in table.groupby(["benchmark", "variant", "teacher"], sort=False):
        cells = []
        for name in NAMES:
            part = own[own["distance"] == name].dropna(subset=["before", "after"])
            if part.empty:
                cells.append("-")
                continue
            value, low, high = pooled_means(part, ["before", "after"])
            few = math.isnan(low[1])
            cells.append(f"{value[0]:.2f} > {value[1]:.2f}" + ("" if few else f" ±{(high[1] - low[1]) / 2:.2f}"))
            records.append(
                {
                    "benchmark": benchmark,
                    "variant": variant,
                    "teacher": teacher,
                    "distance": name,
                    "rows": len(part),
                    "before": value[0],
                    "after": value[1],
                    "after_low": low[1],
                    "after_high": high[1],
                }
            )
        rows.append((benchmark, variant, teacher, *cells))
    title = "Distance to the joint teacher, before > after training"
    headings = ("Data", "Method", "Teacher", *NAMES.values())
    tables = [Section(title, headings, tuple(rows), names=3, left_aligned=3, once=True)]
    return (
        terminal_text(tables, NOTES),
        markdown_text(tables, NOTES),
        csv_text(records, CSV_FIELDS),
        latex_text(tables, NOTES),
    )
