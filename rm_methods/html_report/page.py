"""Writes `report.html`: verdict, table, figures and protocol of an experiment in one file, which needs no network.

Tables of Best-of-N, PPO and diagnostics are taken from the Markdown files of their stages, figures from their SVG
files.  So the page says what these files say.  What is missing is named, and the rest is shown.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rm_methods.comparison.cost_figure import MAX_NAMES, costed_rows, write_cost_figure
from rm_methods.comparison.figures import write_figures
from rm_methods.comparison.result import Comparison, VariantRow
from rm_methods.comparison.tables import cell_text, csv_table, difference_cell_text, latex_table, method_text
from rm_methods.experiment.diagnosed_runs import MEASURES, figure_names
from rm_methods.experiment.layout import Layout, pool_stem
from rm_methods.files import write_text
from rm_methods.html_report.glance import glances, relative_cost, verdict_word
from rm_methods.html_report.protocol import protocol, resolved_name
from rm_methods.html_report.stored_results import StoredResults, stored_results
from rm_methods.reporting.sentences import DIFFERENCE, span
from rm_methods.yaml_files import yaml_text

ASSETS = Path(__file__).parent
MAX_SVG_BYTES = 400_000  # of a figure with many marks; above this, its PNG is smaller and faster
MISSING_SHOWN = 12
LICENSE_WORDS = "Texts of the data set are not in this page."


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        title: above it; caption: what to see; source: as a data URI.
    """

    title: str
    caption: str
    source: str


@dataclass(frozen=True)
class TableCell:
    """A cell of the sortable table: text, sort key, and CSS class."""

    text: str
    key: float | str
    style: str = ""


def write_report(config: Mapping[str, Any], folder: Path, out: Path) -> str:
    """Write the report of an experiment, as far as its results are there.

    Args:
        config: resolved configuration.
        folder: of the experiment's results.
        out: HTML file to write.

    Returns:
        What the page shows, in one or two sentences.

    Raises:
        DataError: a record in the folder cannot be read.
    """
    results = stored_results(config, folder)
    write_text(out, report_html(results))
    return _summary(results, out)


def report_html(results: StoredResults) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    comparison = results.comparison
    template = environment.get_template("page.html.jinja")
    return template.render(
        title=results.config["experiment"],
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        script=(ASSETS / "page.js").read_text(encoding="utf-8"),
        lead=_lead(results),
        banners=_banners(results),
        verdict=comparison.verdict if comparison else (),
        glances=glances(comparison) if comparison else [],
        reference=comparison.reference_row.label if comparison and comparison.reference_row else "",
        headings=_headings(comparison) if comparison else [],
        table=_table(comparison) if comparison else [],
        notes=comparison.notes if comparison else (),
        downloads=_downloads(results),
        figures=_figures(results),
        overoptimization=_overoptimization(results),
        attention=_attention(results),
        protocol=protocol(results),
        configuration=yaml_text(dict(results.config)),
        license_words=LICENSE_WORDS,
    )


def _summary(results: StoredResults, out: Path) -> str:
    finished = results.n_runs - len(results.missing)
    text = f"{out}: {finished} of {results.n_runs} runs"
    if results.problems:
        return f"{text}. Their comparison is not shown: {results.problems[0]}"
    return text if results.is_complete else f"{text}. The page names the others."


def _lead(results: StoredResults) -> str:
    """The size of the experiment in one or two sentences."""
    comparison = results.comparison
    if comparison is None:
        return "The finished runs are not shown." if results.problems else "No run is finished yet."
    n_methods = len([row for row in comparison.rows if not row.is_line])
    seeds = sorted({len(row.seeds) for row in comparison.rows if row.role == "trained"})
    items = sorted({cell.estimate.n_items for row in comparison.rows for cell in row.cells if cell is not None})
    parts = [f"{n_methods} method{'s' if n_methods != 1 else ''}"]
    if seeds:
        parts.append(f"{span(seeds)} seed{'s' if seeds[-1] != 1 else ''} each")
    parts.append(f"{len(comparison.columns)} column{'s' if len(comparison.columns) != 1 else ''}")
    if items and items[-1]:
        parts.append(f"{span(items)} items a column")
    counts = sorted({run.trained_pairs.used for run in results.runs if run.trained_pairs})
    trained = f" Trained on {span(counts)} pairs." if counts else ""
    return ", ".join(parts) + f".{trained}"


def _banners(results: StoredResults) -> list[str]:
    """Warnings above everything else."""
    banners = []
    if results.missing:
        finished = results.n_runs - len(results.missing)
        shown = ", ".join(results.missing[:MISSING_SHOWN])
        more = f" and {len(results.missing) - MISSING_SHOWN} more" if len(results.missing) > MISSING_SHOWN else ""
        banners.append(
            f"This experiment is not finished: {finished} of {results.n_runs} runs are evaluated. Numbers will change. "
            f"Missing: {shown}{more}."
        )
    banners += [f"Results that are not shown: {problem}" for problem in results.problems]
    return banners


def _headings(comparison: Comparison) -> list[str]:
    headings = ["Method"]
    for column in comparison.columns:
        headings.append(column.heading)
        if comparison.reference_row is not None:
            headings.append(DIFFERENCE)
    return [*headings, "Cost", "Seeds"]


def _table(comparison: Comparison) -> list[list[TableCell]]:
    """Rows of the sortable table; a missing number sorts last."""
    rows = []
    reference = comparison.reference_row
    best = [comparison.best_rows(number) for number in range(len(comparison.columns))]
    for index, row in enumerate(comparison.rows):
        cells = [TableCell(method_text(row), method_text(row).lower(), _row_style(comparison, row))]
        for number, cell in enumerate(row.cells):
            mean = cell.estimate.mean if cell is not None else float("nan")
            cells.append(TableCell(cell_text(cell, row), mean, "best" if index in best[number] else ""))
            if reference is not None:
                difference = cell.difference.estimate.mean if cell is not None and cell.difference else float("nan")
                style = verdict_word(cell).replace(" ", "-")
                cells.append(TableCell(difference_cell_text(cell, row), difference, style))
        cost = relative_cost(row, reference) if reference is not None else ""
        cells.append(TableCell(cost, row.cost.tokens or float("nan")))
        cells.append(TableCell(str(row.n_models), row.n_models))
        rows.append(cells)
    return rows


def _row_style(comparison: Comparison, row: VariantRow) -> str:
    if row.variant == comparison.reference:
        return "reference"
    return "line" if row.is_line else ""


def _downloads(results: StoredResults) -> list[tuple[str, str]]:
    """(name, data URI) of the table in other forms, and of the configuration."""
    files = {resolved_name(results.config): yaml_text(dict(results.config))}
    if results.comparison is not None:
        files |= {"table.csv": csv_table(results.comparison), "table.tex": latex_table(results.comparison)}
    return [(name, _data_uri(text.encode(), "text/plain;charset=utf-8")) for name, text in files.items()]


def _figures(results: StoredResults) -> dict[str, Figure]:
    """The figures of the comparison, drawn for this page: those on disk may be of other runs."""
    comparison = results.comparison
    if comparison is None:
        return {}
    figures = {}
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "comparison.svg"
        write_figures(comparison, [path, path.with_suffix(".png")])
        figures["comparison"] = Figure("All methods, all columns", _comparison_caption(comparison), _image(path))
        if comparison.reference_row is not None:
            path = Path(scratch) / "cost.svg"
            if write_cost_figure(comparison, [path, path.with_suffix(".png")]):
                figures["cost"] = Figure("Cost and quality", _cost_caption(comparison), _image(path))
    return figures


def _comparison_caption(comparison: Comparison) -> str:
    if comparison.reference_row is None:
        return "Each dot is a mean over seeds, each line its 95% interval."
    return (
        f"Look at the right panels: a dot is a method's difference from {comparison.reference_row.label}, a line its "
        "95% interval. A filled dot differs significantly after Holm's correction; an open one is not shown to differ."
    )


def _cost_caption(comparison: Comparison) -> str:
    assert comparison.reference_row is not None
    names = f" Only the {MAX_NAMES - 1} highest are named." if len(costed_rows(comparison)) > MAX_NAMES else ""
    return (
        f"Up is better than {comparison.reference_row.label}, right is more training. A method far to the right must "
        f"be clearly above the line to be worth its cost.{names}"
    )


def _overoptimization(results: StoredResults) -> dict[str, Any]:
    """Those tables and figures of Best-of-N and PPO that are written already."""
    folder = Layout(results.folder).overoptimization
    pools = [*results.config["overoptimization"]["best_of_n"]["pools"]]
    figures = []
    for pool in pools:
        path = folder / f"{pool_stem(pool)}.svg"
        if path.exists():
            caption = (
                "Gold and proxy reward of the response that each reward model picks from n. Where gold falls while the "
                "proxy still rises, the reward model is over-optimized."
            )
            figures.append(Figure(f"Best-of-N ({pool})", caption, _image(path)))
    if (folder / "ppo.svg").exists():
        caption = "Gold and proxy while PPO trains a policy against each reward model, with 95% intervals over seeds."
        figures.append(Figure("PPO", caption, _image(folder / "ppo.svg")))
    tables = [
        (title, _markdown(path))
        for title, path in (("Best-of-N", folder / "best_of_n_table.md"), ("PPO", folder / "ppo_table.md"))
        if path.exists()
    ]
    wanted = bool(pools) or results.config["overoptimization"]["ppo"]["enabled"]
    return {"wanted": wanted, "figures": figures, "tables": tables}


def _attention(results: StoredResults) -> dict[str, Any]:
    """Those tables and figures of the diagnostics that are written already."""
    folder = Layout(results.folder).diagnostics
    figures = []
    for name in figure_names(results.config) if results.config["diagnostics"]["benchmarks"] else ():
        path = folder / f"{name}.svg"
        if path.exists():
            figures.append(Figure(_attention_title(name), _attention_caption(name), _image(path)))
    tables = [
        (title, _markdown(path))
        for title, path in (
            ("Attention and masking", folder / "table.md"),
            ("Distance from the teacher's attention", folder / "teacher_distance.md"),
        )
        if path.exists()
    ]
    return {"wanted": bool(results.config["diagnostics"]["benchmarks"]), "figures": figures, "tables": tables}


def _attention_title(name: str) -> str:
    """The title of a figure of the diagnostics, from the name of its file."""
    for measure, words in MEASURES.items():
        for version, meaning in (("raw", ""), ("controlled", ", at equal lengths, without tokens of the template")):
            benchmark, separator, _ = name.partition(f"_attention_{measure}_{version}")
            if separator:
                return f"{words[0].upper()}{words[1:]}{meaning} ({benchmark})"
    benchmark, _, subsets = name.partition("_masking")
    return f"Accuracy with the start of the text hidden{', by subset' if subsets else ''} ({benchmark})"


def _attention_caption(name: str) -> str:
    if "_masking" in name:
        return "Accuracy when the start of the text is hidden. A model that reads the text loses accuracy."
    if "_attention_received_" in name:
        return "How much attention each part of the text gets from all later positions."
    return "Where the position of the reward looks, by part of the text. A flat line means that all parts count alike."


def _markdown(path: Path) -> str:
    """A stored Markdown table as HTML; raw HTML in it is shown as text."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text(encoding="utf-8"))


def _image(svg: Path) -> str:
    """A figure as a data URI: the SVG, or the PNG beside it where the SVG is large."""
    png = svg.with_suffix(".png")
    if svg.stat().st_size > MAX_SVG_BYTES and png.exists():
        return _data_uri(png.read_bytes(), "image/png")
    return _data_uri(svg.read_bytes(), "image/svg+xml")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
