"""Reference pages made from what the code itself reads: the schema, the command line, the cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from rm_methods.benchmarks.cards import list_benchmark_cards, load_benchmark_card
from rm_methods.cli import GROUPS
from rm_methods.config.resolve import schema
from rm_methods.methods.registry import load_method_card, method_names
from rm_methods.preferences.cards import list_dataset_cards, load_dataset_card


def configuration_page() -> str:
    """Every setting with its type, default and description."""
    lines = [
        "# Configuration",
        "",
        "Every setting, with its default. [How to write a configuration](../config/README.md) has examples. "
        "`rm-methods check --config FILE` reports all mistakes at once.",
        "",
    ]
    for name, fragment in schema()["properties"].items():
        lines += [f"## {name}", "", _text(fragment.get("description", "")), ""]
        rows = list(_settings(name, fragment))
        if len(rows) > 1:
            lines += ["| setting | values | default | meaning |", "|---|---|---|---|", *rows, ""]
        else:
            lines += [f"Values: {_values(fragment)}. Default: {_default(fragment)}.", ""]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Every verb with its options."""
    lines = ["# Command line", "", "`rm-methods VERB --help` prints the same text.", ""]
    for heading, verbs in GROUPS.items():
        lines += [f"## {heading}", ""]
        for verb in verbs:
            context = click.Context(verb, info_name=f"rm-methods {verb.name}")
            lines += [f"### {verb.name}", "", "```text", verb.get_help(context), "```", ""]
    return "\n".join(lines) + "\n"


def cards_page() -> str:
    """Every method, benchmark and data set by its card."""
    lines = ["# Cards", "", "## Methods", "", "| name | title | kind | source |", "|---|---|---|---|"]
    for name in method_names():
        method = load_method_card(name)
        page = f"[{name}](../docs/methods/{name}.md)"
        lines.append(f"| {page} | {_text(method.title)} | {method.kind} | {_text(method.citation)} |")
    lines += ["", "## Benchmarks", "", "| name | title | license | source |", "|---|---|---|---|"]
    for name in list_benchmark_cards():
        benchmark = load_benchmark_card(name)
        lines.append(
            f"| {name} | {_text(benchmark.title)} | {_text(benchmark.license)} | {_text(benchmark.citation)} |"
        )
    lines += ["", "## Data sets", "", "| name | title | license | source |", "|---|---|---|---|"]
    for name in list_dataset_cards():
        dataset = load_dataset_card(name)
        lines.append(f"| {name} | {_text(dataset.title)} | {_text(dataset.license)} | {_text(dataset.citation)} |")
    return "\n".join(lines) + "\n"


def _settings(path: str, fragment: Mapping[str, Any]) -> Iterator[str]:
    """Table rows of a setting and of all settings below it."""
    below = fragment.get("properties", {})
    if not below:
        yield f"| `{path}` | {_values(fragment)} | {_default(fragment)} | {_text(fragment.get('description', ''))} |"
    for name, inner in below.items():
        yield from _settings(f"{path}.{name}", inner)
    inside = fragment.get("additionalProperties")
    if isinstance(inside, Mapping) and inside.get("properties"):
        yield from _settings(f"{path}.<name>", inside)
    items = fragment.get("items")
    if isinstance(items, Mapping) and items.get("properties"):
        yield from _settings(f"{path}.<number>", items)


def _values(fragment: Mapping[str, Any]) -> str:
    if "enum" in fragment:
        return ", ".join(f"`{_value(value)}`" for value in fragment["enum"])
    kinds = fragment.get("type", "any")
    words = [kinds] if isinstance(kinds, str) else list(kinds)
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {fragment[key]}" for key, sign in limits.items() if key in fragment]
    return " or ".join(words) + (f", {', '.join(bounds)}" if bounds else "")


def _default(fragment: Mapping[str, Any]) -> str:
    return f"`{_value(fragment['default'])}`" if "default" in fragment else "required"


def _value(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(text: str) -> str:
    """One line that a Markdown table takes, in which nothing is read as HTML or as a link."""
    return " ".join(str(text).split()).replace("|", r"\|").replace("<", "&lt;").replace("[", r"\[")
