"""The summary of the diagnostics of all runs: tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.config.resolve import reference_variant
from rm_methods.diagnostics.distance_summary import distance_tables
from rm_methods.diagnostics.figures import write_figures
from rm_methods.diagnostics.findings import read_findings
from rm_methods.diagnostics.tables import csv_of_findings, notes, sections
from rm_methods.experiment.diagnosed_runs import left_out
from rm_methods.experiment.layout import DIAGNOSTICS_TABLES, DISTANCE_TABLES
from rm_methods.files import write_text
from rm_methods.reporting.tables import latex_text, markdown_text, terminal_text


def write_summary(config: Mapping[str, Any], folder: Path, out: Path) -> str:
    """Write the tables and figures of an experiment's diagnostics.

    Their names are `experiment.layout.DIAGNOSTICS_TABLES` and `experiment.diagnosed_runs.figure_names`.

    Args:
        config: resolved configuration.
        folder: of the experiment's results.
        out: folder to write to.

    Returns:
        The terminal tables.

    Raises:
        UserError, DataError: see `read_findings`.
    """
    findings = read_findings(config, folder)
    tables = sections(findings)
    footnotes = notes(findings, left_out(config))
    texts = (
        terminal_text(tables, footnotes),
        markdown_text(tables, footnotes),
        csv_of_findings(findings),
        latex_text(tables, footnotes),
    )
    for name, text in zip(DIAGNOSTICS_TABLES, texts, strict=True):
        write_text(out / name, text)
    if distances := distance_tables(config, folder):
        for name, text in zip(DISTANCE_TABLES, distances, strict=True):
            write_text(out / name, text)
    for benchmark in config["diagnostics"]["benchmarks"]:
        write_figures(findings, benchmark, reference_variant(config), out)
    return texts[0] + (f"\n{distances[0]}" if distances else "")
