"""Readable lists for the terminal: methods, benchmarks, data sets, and the metrics of one evaluation."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rm_methods.preferences.read_report import tally_lines, unread_notes
from rm_methods.run_card import MANY_LEFT_OUT, trained_pairs
from rm_methods.validation import BOUNDS, KINDS

# With fewer, the comparison tests nothing.
_LEAST_SEEDS = 3
# Kind of a method's card -> what it means.
_KINDS = {
    "trained": "trained: a reward model that scores each response alone",
    "joint": "joint: a model that reads two responses together and prefers one",
    "combined": "combined: made of trained runs, without training",
    "external": "external: a model from elsewhere, which is only scored",
    "content_blind": "content-blind: scores without a model",
    "computed": "computed: scores without a model, and knows what only the maker of the data knows",
}


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
    pairs = trained_pairs(summary)
    about = f"{summary['variant']} seed {summary['seed']}"
    if pairs is None:
        return f"{about}: {summary['data']['pairs']:,} training pairs"
    loud = "WARNING: " if pairs.share_left_out > MANY_LEFT_OUT else ""
    return f"{loud}{about}: training pairs used: {pairs}"


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


def configuration_text(config: Mapping[str, Any]) -> str:
    """What a resolved configuration would run, on one line.

    >>> config = {"experiment": "x", "seeds": [0, 1], "benchmarks": {"world": {}}}
    >>> configuration_text(config | {"methods": {"longest": {"method": "longest"}}})
    'experiment x: 1 run; 1 variant: longest; 2 seeds: 0, 1; 1 benchmark: world'
    """
    from rm_methods.config.resolve import runs

    counts = [
        _counted("run", runs(config), most=0),
        _counted("variant", config["methods"]),
        _counted("seed", config["seeds"]),
        _counted("benchmark", config["benchmarks"]),
    ]
    return f"experiment {config['experiment']}: {'; '.join(counts)}"


def remarks(config: Mapping[str, Any]) -> list[str]:
    """What a resolved configuration allows, but its author may not want; a sentence each."""
    texts = []
    seeds = len(config["seeds"])
    if seeds < _LEAST_SEEDS and not config["tuning"]["enabled"]:
        texts.append(
            f"With {seeds} seed{'s' if seeds > 1 else ''}, no difference between methods can be tested. "
            f"{_LEAST_SEEDS} or more are needed, for example `seeds: [0, 1, 2]`."
        )
    training = config["training"]
    if training["early_stopping"]["patience"] and training["keep"] == "last":
        texts.append(
            "training.early_stopping is on, and training.keep is last: the weights of the last step are kept, not "
            "those of the best validation. `keep: best` keeps the best."
        )
    return texts


def _counted(noun: str, values: Iterable[Any], most: int = 12) -> str:
    """The number of values, and their names as far as they fit on a line."""
    names = list(map(str, values))
    if not names:
        return f"no {noun}s"
    count = f"{len(names)} {noun}{'s' if len(names) != 1 else ''}"
    if not most:
        return count
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{count}: {', '.join(names[:most])}{more}"


def method_page(name: str) -> str:
    """A method's card for readers: facts, every setting with type, default and description, and YAML to copy.

    Raises:
        UserError: unknown method, with the nearest name.
    """
    from rm_methods.methods.registry import load_method_card

    card = load_method_card(name)
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    facts = {
        "source": card.citation,
        "kind": _KINDS[card.kind],
        "targets": ", ".join(card.targets),
        "cost": card.cost,
        "data": card.data or "",
        "needs": "; ".join(f"{key}: {_need_text(need)}" for key, need in card.requires.items()),
        "seeds": "only the first seed runs" if card.seed_free else "",
        "tuned": f"{card.knob['setting']} in {', '.join(map(_yaml_value, card.knob['values']))}" if card.knob else "",
        "code": str(card.file.with_suffix(".py")),
    }
    lines = [f"{card.name}: {card.title}", ""]
    for heading, text in facts.items():
        if text:
            lines += _indented(text, width, first=f"{heading:<8} ", rest=" " * 9)
    lines += ["", "Settings" if card.settings else "No settings."]
    for setting, fragment in card.settings.items():
        lines += ["", f"  {setting}: {_type_text(fragment)}; default {_yaml_value(fragment['default'])}"]
        lines += _indented(fragment["description"], width, first="      ", rest="      ")
    if card.has_weights:
        shared = ["lora"] if card.kind == "joint" or "learning_rate" in card.settings else ["learning_rate", "lora"]
        lines += ["", f"Also {' and '.join(shared)}, as under `training`."]
    settings = ", ".join(f"{key}: {_yaml_value(value)}" for key, value in card.defaults().items())
    lines += ["", "In a configuration (settings that you leave out have their defaults):", "", "methods:"]
    return "\n".join([*lines, f"  {card.name}: {{{settings}}}"])


def _indented(text: str, width: int, *, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _need_text(need: Mapping[str, Any]) -> str:
    """What a setting that names a variant may name."""
    text = f"a variant of method {need['method']}" if "method" in need else f"a {need['kind']} variant"
    if builtin := need.get("builtin"):
        text += f", or {' or '.join(builtin)}"
    if need.get("seeds") == "all":
        text += f" (all seeds, at least {need.get('at_least', 1)})"
    return text


def _type_text(fragment: Mapping[str, Any]) -> str:
    """The values that a fragment of JSON schema allows, in words."""
    choices = [_type_text(choice) for choice in fragment.get("anyOf", ())]
    if choices:
        return " or ".join(choices)
    if "enum" in fragment:
        return " or ".join(map(_yaml_value, fragment["enum"]))
    kinds = fragment.get("type", [])
    words = [KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    text = " or ".join(words) or "any value"
    if "items" in fragment:
        text += f" (each {_type_text(fragment['items'])})"
    bounds = [f"{BOUNDS[rule]} {fragment[rule]}" for rule in BOUNDS if rule in fragment]
    return text + (f", {' and '.join(bounds)}" if bounds else "")


def _yaml_value(value: Any) -> str:
    """A value on one line of YAML."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _percent(value: float | None) -> str:
    return "undefined: no items in one of its parts" if value is None else f"{100 * value:6.2f}%"


def _methods() -> str:
    from rm_methods.methods.registry import load_method_card, method_names

    titles = {name: " ".join(load_method_card(name).title.split()) for name in method_names()}
    width = max(map(len, titles))
    return "\n".join(f"{name:<{width}}  {title}" for name, title in titles.items())


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
