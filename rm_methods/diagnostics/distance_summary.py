"""The distances of all runs to joint teachers, as one table: mean over pairs and seeds, before and after training."""

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
    "KL(teacher, student) in nats, mean over held-out pairs and over seeds, before > after training; "
    "± is half of a 95% interval over resampled pairs (not seeds). Before: the model that training began from. Pairs "
    f"without a joint text are left out. No interval below {MIN_CLUSTERS} prompts.",
    "Joint: rows of the virtual map over prompt, chosen and rejected; intra: of prompt with each response; inter: "
    "of one response with the other; causal: rows of the map that the model uses; received: attention that each part "
    "of the text receives.",
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
    rows: list[tuple[str, ...]] = []
    records = []
    table = pandas.concat(frames, ignore_index=True)
    for key, distances in table.groupby(["benchmark", "variant", "teacher"], sort=False):
        benchmark, variant, teacher = map(str, key)
        cells = []
        for name in NAMES:
            pairs = distances[distances["distance"] == name].dropna(subset=["before", "after"])
            if pairs.empty:
                cells.append("-")
                continue
            (before, after), (_, low), (_, high) = pooled_means(pairs, ["before", "after"])
            cell = f"{before:.2f} > {after:.2f}"
            cells.append(cell if math.isnan(low) else f"{cell} ±{(high - low) / 2:.2f}")
            records.append(
                {
                    "benchmark": benchmark,
                    "variant": variant,
                    "teacher": teacher,
                    "distance": name,
                    "rows": len(pairs),
                    "before": before,
                    "after": after,
                    "after_low": low,
                    "after_high": high,
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
