"""The tables of `rm-methods benchmark`: one for each benchmark, the model beside content-blind rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_methods.benchmarks.contamination_report import contamination_note
from rm_methods.reporting.tables import MISSING, Section, csv_text, latex_text, markdown_text, terminal_text

CONTENT_BLIND = ("longest", "shortest", "random")  # rules that every table shows beside the model
_PARTIES = ("model", *CONTENT_BLIND)


def leaderboard_tables(record: Mapping[str, Any]) -> dict[str, str]:
    """The tables as text by suffix: txt, md, tex, csv.

    Args:
        record: the content of results.json.
    """
    sections = [_section(result) for result in record["benchmarks"]]
    notes = [_reading(record), *_training_data(record)]
    notes += [note for result in record["benchmarks"] for note in _notes(result)]
    return {
        "txt": terminal_text(sections, notes),
        "md": markdown_text(sections, notes),
        "tex": latex_text(sections, notes),
        "csv": csv_text(_records(record)),
    }


def _section(result: Mapping[str, Any]) -> Section:
    main = [name for name in result["main"] if name in result["metrics"]]
    names = [*main, *(name for name in result["metrics"] if name not in main)]
    rows = []
    for name in names:
        values = result["metrics"][name]
        rows.append((name, *(_value(values[party], with_interval=party == "model") for party in _PARTIES)))
    title = f"{result['title']}: {result['items']:,} items, {result['responses']:,} responses"
    rules = (len(main),) if len(main) < len(names) else ()
    return Section(title, ("metric, %", *_PARTIES), tuple(rows), rules=rules)


def _value(estimate: Mapping[str, Any] | None, *, with_interval: bool) -> str:
    if estimate is None or estimate["value"] is None:
        return MISSING
    text = f"{100 * estimate['value']:.1f}"
    if not with_interval or estimate["low"] is None:
        return text
    reach = 100 * max(estimate["high"] - estimate["value"], estimate["value"] - estimate["low"])
    return f"{text} ±{reach:.1f}"


def _reading(record: Mapping[str, Any]) -> str:
    model = record["model"]
    computation = record["benchmarks"][0]["computation"]
    tokens = f"at most {model['settings']['max_length']:,} tokens"
    if computation.get("protocol") == "official":
        tokens = "tokens as in each benchmark's official script"
    return (
        f"{model['name']}"
        + (f" @ {model['revision']}" if model["revision"] else "")
        + f", {computation.get('precision', 'no model')}, {tokens}. "
        "The range behind ± covers 95% over items. longest, shortest and random do not read the text."
    )


def _training_data(record: Mapping[str, Any]) -> list[str]:
    """One note for each file of training pairs, so that rows that were not compared are seen."""
    notes = []
    for data in record.get("training_data", ()):
        refused = f", {data['refused']:,} rows are not pairs and were not compared" if data["refused"] else ""
        other = f", {data['other_splits']:,} pairs of other splits left out" if data["other_splits"] else ""
        notes.append(f"Training data {data['file']}: {data['pairs']:,} pairs{refused}{other}.")
        notes += [f"Training data {data['file']}: {note}" for note in data["notes"]]
    return notes


def _notes(result: Mapping[str, Any]) -> list[str]:
    name = result["benchmark"]
    computation = result["computation"]
    how = "was cut to the longest length"
    if computation.get("protocol") == "strict":
        how = "was too long, so it has no score"
    counts = (
        f"{name}: {100 * result['tie_rate']:.1f}% of the comparisons have equal scores ({result['tie_rule']}); "
        f"{result['truncated']:,} of {result['items']:,} items have a response that {how}"
    )
    if result["not_scored"]:
        counts += f"; {result['not_scored']:,} have a score that is not finite, which earns nothing"
    excluded = [f"{entry['count']:,} rows: {reason}" for reason, entry in result["excluded"].items()]
    left_out = [f"{name}: left out {'; '.join(excluded)}."] if excluded else []
    official = []
    if computation.get("protocol") == "official":
        length = computation["max_length"]
        cut = f"cut to {length:,} tokens at the {computation['truncation_side']}" if length else "not cut"
        official = [f"{name}: texts are {cut}, as in {result['official_source']}. Here: {computation['precision']}."]
    overlap = [contamination_note(result["contamination"])] if "contamination" in result else []
    notes = [f"{name}: {note}" for note in result["notes"]]
    return [f"{counts}.", *official, *left_out, *overlap, *notes]


def _records(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = []
    for result in record["benchmarks"]:
        for name, values in result["metrics"].items():
            for party in _PARTIES:
                estimate = values[party] or {}
                records.append(
                    {
                        "model": record["model"]["name"] if party == "model" else party,
                        "benchmark": result["benchmark"],
                        "metric": name,
                        "value": estimate.get("value"),
                        "low": estimate.get("low"),
                        "high": estimate.get("high"),
                        "items": estimate.get("items"),
                        "groups": estimate.get("groups"),
                    }
                )
    return records
