"""Readable lists for the terminal: methods, benchmarks, data sets, and the metrics of one evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from rm_methods.preferences.read_report import tally_lines, unread_notes


def listing(what: str) -> str:
    """A table of all methods, benchmarks or datasets, with the names and settings that a configuration uses."""
    return {"methods": _methods, "benchmarks": _benchmarks, "datasets": _datasets}[what]()


def preparation_text(report: dict[str, Any]) -> str:
    """The rows that `prepare_items` read, left out and noticed, as lines of text."""
    counts = f"{report['n_rows']:,} rows read, {report['n_items']:,} items with {report['n_responses']:,} responses"
    lines = [f"{report['benchmark']}: {counts}"]
    lines += tally_lines("left out", report["excluded"])
    lines += tally_lines("kept", report["counted"])
    notes = [*report["notes"], *unread_notes(report["unread"])]
    return "\n".join([*lines, *(f"  {note}" for note in notes)])


def training_text(summary: dict[str, Any]) -> str:
    """The number of training pairs of a run, and how many of them were cut or dropped."""
    counts = [f"{name} {count:,}" for name, count in summary.get("truncation", {}).items() if count]
    about = f"{summary['variant']} seed {summary['seed']}: {summary['data']['pairs']:,} training pairs"
    return f"{about}, {', '.join(counts) or 'none cut or dropped'}"


def metrics_text(result: dict[str, Any]) -> str:
    """The metrics of one evaluation, one benchmark after another."""
    lines = []
    for name, entry in result["benchmarks"].items():
        counts = f"{entry['n_scored']} of {entry['n_total']} items scored, {entry['n_truncated']} responses truncated"
        lines.append(f"{name}: {counts}, tie rate {100 * entry['tie_rate']:.2f}% ({entry['tie_rule']})")
        if missing := entry["n_total"] - entry["n_scored"]:
            lines.append(
                f"  WARNING: {missing} of {entry['n_total']} items have a score that is not finite; it earns nothing."
            )
        lines += [f"  {metric:<28} {_percent(value)}" for metric, value in entry["metrics"].items()]
        lines += [f"  {note}" for note in entry["notes"]]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "undefined: no items in one of its parts" if value is None else f"{100 * value:6.2f}%"


def _methods() -> str:
    from rm_methods.methods.registry import load_method_card, method_names

    rows: list[tuple[str, ...]] = []
    for name in method_names():
        card = load_method_card(name)
        settings = "\n".join(f"{key}={value}" for key, value in card.defaults().items())
        rows.append((name, card.title, card.kind.replace("_", "-"), ", ".join(card.targets) or "-", settings or "-"))
    return _table(("name", "title", "kind", "targets", "settings and defaults"), rows)


def _benchmarks() -> str:
    from rm_methods.benchmarks.cards import list_benchmark_cards, load_benchmark_card

    rows = []
    for name in list_benchmark_cards():
        card = load_benchmark_card(name)
        rows.append((card.name, card.title, ", ".join(card.columns.values()), card.hub_id or "-", card.license))
    return _table(("name", "title", "columns", "hub id", "license"), rows)


def _datasets() -> str:
    from rm_methods.preferences.cards import list_dataset_cards, load_dataset_card

    rows = []
    for name in list_dataset_cards():
        card = load_dataset_card(name)
        rows.append((card.name, card.title, card.reader, card.hub_id or "-", card.license))
    return _table(("name", "title", "reader", "hub id", "license"), rows)


def _table(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for position, heading in enumerate(header):
        # Users copy the names, so they are never cut or broken.
        table.add_column(
            heading,
            no_wrap=position == 0,
            overflow="fold",
            min_width=max(len(row[0]) for row in rows) if position == 0 else None,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    out = StringIO()
    Console(file=out, width=max(100, shutil.get_terminal_size().columns)).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))
