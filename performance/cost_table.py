"""The table of performance/method_costs.py, and the figure of its costs beside the quality of a comparison."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from performance.harness.benchmark import FOLDER
from performance.harness.machine import ROOT
from performance.harness.page import number, wrapped
from performance.harness.record import check_record, ratio
from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.methods.registry import load_method_card, method_names

BASELINE = "bradley_terry"
RECORD = FOLDER / "results" / "method_costs.json"
FIGURE = ROOT / "docs" / "images" / "method_costs.png"


@dataclass(frozen=True)
class Cost:
    """One row of the table.

    Attributes:
        method, title: of the method.
        step, scoring: seconds relative to Bradley-Terry (`record.ratio`); None without a measured baseline.
        cpu: the same of the CPU seconds of a step, median.
        once: seconds before the first step beyond those of Bradley-Terry; None if they are no more than one of its
            steps, in some round.
        memory_bytes: peak of the process, median.
        needs: titles of the methods whose runs it requires.
    """

    method: str
    title: str
    step: Mapping[str, float] | None
    cpu: float | None
    scoring: Mapping[str, float] | None
    once: float | None
    memory_bytes: float
    needs: tuple[str, ...]


def costs_of(record: Mapping[str, Any]) -> list[Cost]:
    """The rows of a record, the cheapest step first."""
    sides = record["cases"][0].get("sides", {})
    base = sides.get(BASELINE)
    rows = []
    for name, side in sides.items():
        values = {key: [detail[key] for detail in side["details"]] for key in ("scoring_seconds", "before")}
        step, cpu, scoring, once = None, None, None, None
        if base is not None:
            base_values = {key: [detail[key] for detail in base["details"]] for key in values}
            step = ratio(side["seconds"], base["seconds"])
            cpu = ratio(side["cpu_seconds"], base["cpu_seconds"])["median"]
            scoring = ratio(values["scoring_seconds"], base_values["scoring_seconds"])
            more = [mine - others for mine, others in zip(values["before"], base_values["before"], strict=True)]
            once = statistics.median(more) if min(more) > statistics.median(base["seconds"]) else None
        rows.append(
            Cost(
                method=name,
                title=title_of(name),
                step=step,
                cpu=cpu,
                scoring=scoring,
                once=once,
                memory_bytes=statistics.median(side["peak_memory_bytes"]),
                needs=tuple(side["details"][0]["needs"]),
            )
        )
    return sorted(rows, key=lambda row: (row.step["median"] if row.step else 0.0, row.title))


def title_of(name: str) -> str:
    """Title of a method without what it has in parentheses; the name of one that is no longer registered."""
    return load_method_card(name).title.partition(" (")[0] if name in method_names() else name


def conclusion(record: Mapping[str, Any]) -> str:
    """Which methods cost clearly more or less, in sentences; empty without a measured Bradley-Terry."""
    others = [row for row in costs_of(record) if row.step and row.method != BASELINE]
    if not others:
        return ""
    base = record["cases"][0]["sides"][BASELINE]
    scoring = statistics.median(detail["scoring_seconds"] for detail in base["details"])
    longer = [f"{row.title} {row.step['median']:.2f}" for row in others if row.step and row.step["lowest"] > 1.1]
    shorter = [f"{row.title} {row.step['median']:.2f}" for row in others if row.step and row.step["highest"] < 0.9]
    names = f" ({', '.join(reversed(longer))})" if longer else ""
    sentences = [
        f"**In every round, a step of {len(longer)} of {len(others)} methods takes more than 1.1 times as long as one "
        f"of Bradley-Terry{names}.**"
    ]
    if shorter:
        sentences.append(f"Less than 0.9 times: {', '.join(shorter)}.")
    rest = len(others) - len(longer) - len(shorter)
    if rest:
        sentences.append(f"The rest ({rest}) is within these limits in at least one round.")
    sentences.append(
        f"A step of Bradley-Terry with {base['amount']} of {base['details'][0]['scored_pairs']} pairs takes "
        f"{statistics.median(base['seconds']):.3g} s; scoring both responses of a pair, {1000 * scoring:.3g} ms."
    )
    return " ".join(sentences)


def table(record: Mapping[str, Any]) -> str:
    """The conclusion, the table, and the figure if the record has a comparison's quality."""

    def times(value: Mapping[str, float] | None) -> str:
        return f"{value['median']:.2f} ({value['lowest']:.2f} to {value['highest']:.2f})" if value else ""

    header = [
        "method",
        "step, times Bradley-Terry",
        "CPU s of a step, times",
        "scoring, times Bradley-Terry",
        "once, more seconds",
        "peak memory",
        "needs a run of",
    ]
    lines = []
    for row in costs_of(record):
        is_base = row.method == BASELINE
        cells = [
            row.title,
            "1" if is_base else times(row.step),
            "1" if is_base else f"{row.cpu:.2f}" if row.cpu is not None else "",
            "1" if is_base else times(row.scoring),
            number(row.once) if row.once is not None else "",
            f"{row.memory_bytes / 2**30:.2f} GiB",
            ", ".join(row.needs),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    rows = ["| " + " | ".join(header) + " |", "|---|---:|---:|---:|---:|---:|---|", *lines]
    parts = [wrapped(conclusion(record)), "\n".join(rows), figure_lines(record)]
    return "\n\n".join(part for part in parts if part)


def figure_lines(record: Mapping[str, Any]) -> str:
    """The figure and what it shows; empty without quality."""
    if "quality" not in record:
        return ""
    left_out = sorted({dot["label"] for dot in record["quality"]["dots"]} - {dot.label for dot in dots_of(record)})
    note = (
        f"Vertical: difference from Bradley-Terry in the experiment `{record['quality']['source']}`, with its 95% "
        "interval; filled dots differ significantly after Holm's correction. Horizontal: time of a step, without "
        "runs that a method requires and without what comes once."
    )
    if left_out:
        note += f" Not drawn, as no training of theirs was timed: {', '.join(left_out)}."
    return f"![Time of a training step against quality](images/{FIGURE.name})\n\n{wrapped(note)}"


def read_quality(path: Path) -> dict[str, Any]:
    """The differences from Bradley-Terry of a finished comparison.

    Args:
        path: its table.csv, or the folder that holds it.

    Raises:
        UserError: no table, or its reference is not Bradley-Terry.
    """
    from rm_methods.reporting.sentences import method_label

    file = path / "table.csv" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such table. Give the table.csv of a finished comparison, or its folder.")
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["role"] in ("trained", "combined")]
    references = {row["reference"] for row in rows}
    methods = {row["variant"]: row["method"] for row in rows}
    if {methods.get(name) for name in references} != {BASELINE} or len(references) != 1:
        names = ", ".join(sorted(references))
        raise UserError(f"{file}: its reference is {names or 'missing'}; it must be a variant of {BASELINE}.")
    (reference,) = references
    dots = [
        {
            "method": row["method"],
            "label": method_label(row["variant"], row["method"], row["title"]),
            "column": row["heading"],
            "difference": float(row["difference"] or 0.0) if row["variant"] == reference else float(row["difference"]),
            "interval": [float(row[key]) for key in ("diff_low", "diff_high")] if row["diff_low"] else None,
            "verdict": row["verdict"],
        }
        for row in rows
        if row["difference"] or row["variant"] == reference
    ]
    return {"source": source_of(file), "dots": dots}


def source_of(file: Path) -> str:
    """The experiment of a table, and its level of noise if it has one, for the caption."""
    parts = file.resolve().parent.parts
    if "comparison" not in parts[1:]:
        return parts[-1]
    place = len(parts) - 1 - parts[::-1].index("comparison")
    return "/".join((parts[place - 1], *parts[place + 1 :]))


def dots_of(record: Mapping[str, Any]) -> list:
    """Dots of the figure, for every column, with the cost of the method."""
    from rm_methods.comparison.cost_figure import Dot

    steps = {row.method: row.step["median"] for row in costs_of(record) if row.step}
    return [
        Dot(
            label=dot["label"],
            column=dot["column"],
            cost=steps[dot["method"]],
            difference=dot["difference"],
            interval=tuple(dot["interval"]) if dot["interval"] else None,
            verdict=dot["verdict"],
        )
        for dot in record["quality"]["dots"]
        if dot["method"] in steps
    ]


def draw_figure(record: Mapping[str, Any], target: Path) -> None:
    """Draw the quality of a record against the time of a step.

    Raises:
        UserError: the record has fewer than two methods of the comparison.
    """
    from rm_methods.comparison.cost_figure import draw_dots
    from rm_methods.reporting.figures import save_figure

    dots = dots_of(record)
    if len({dot.label for dot in dots}) < 2:
        raise UserError(
            f"{record['quality']['source']}: fewer than two of its methods were measured; nothing is drawn."
        )
    save_figure(lambda: draw_dots(dots, "time of a training step, relative to Bradley-Terry"), [target])


@click.command()
@click.option(
    "--table", "path", type=click.Path(exists=True, path_type=Path), help="Its quality replaces the record's."
)
@click.option("--record", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=RECORD)
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), default=FIGURE)
def main(path: Path | None, record: Path, figure: Path) -> None:
    """Put the quality of a finished comparison into the record, and draw the figure of cost against quality."""
    content = check_record(read_json(record), record)
    if path is not None:
        content["quality"] = read_quality(path)
    if "quality" not in content:
        raise UserError(f"{record}: has no quality; give --table.")
    draw_figure(content, figure)
    write_json(record, content)
    click.echo(f"wrote {figure} and {record}; next: python -m performance page")
