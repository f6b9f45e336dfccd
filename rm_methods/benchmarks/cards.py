"""Benchmark cards: the description and origin of every benchmark, read in milliseconds."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from rm_methods.card_files import card_files
from rm_methods.errors import ConfigError, UserError, nearest
from rm_methods.validation import kind_of, schema_problems, unusable_values
from rm_methods.yaml_files import read_yaml

# The modules of `rm_methods.benchmarks` that read, grade and average a benchmark (data/benchmarks/README.md).
MODULES = (
    "alpaca_eval_pool",
    "auto_j",
    "helpsteer3",
    "hh_rlhf",
    "judge_bench",
    "llmbar",
    "ppe_correctness",
    "ppe_preference",
    "prepared_splits",
    "rewardbench",
    "rewardbench2",
    "rm_bench",
    "rmb",
    "tldr",
    "ultrafeedback",
)

# Ends the name of a split's metric over pairs that are matched on length (rm_methods.benchmarks.length_control).
LENGTH_CONTROLLED_SUFFIX = "_length_controlled"

OPTIONAL: dict[str, Any] = {
    "has_gold": False,
    "hub_id": None,
    "revision": None,
    "files": {},
    "options": {},
    "official": {},
    "notes": "",
}


@dataclass(frozen=True)
class BenchmarkCard:
    """The content of a benchmark's card.

    Attributes:
        name: the file name of the card without ``.yaml``; the benchmark's name in configurations.
        title: for tables and documentation.
        module: one of `MODULES`.
        license, citation, url: of the data.
        subsets: every subset that an item may have.
        columns: metric -> short heading, for the metrics of the main comparison table.
        chance: the expected value of those metrics for a random scorer, in [0, 1].
        has_gold: whether labels are gold values of the responses; then Best-of-N can use the benchmark as a pool.
        hub_id, revision: of the Hugging Face hub, or None. A revision is a full commit hash.
        files: name -> glob under a local root. The module defines what the names mean.
        options: values that differ from the module's defaults.
        official: how the official script tokenizes: `max_length` (null for no truncation), `truncation_side`,
            `keeps_double_bos`, and `source`, the file that says so; empty without a script.
        notes: remarks for the readers of the numbers.
    """

    name: str
    title: str
    module: str
    license: str
    citation: str
    url: str
    subsets: tuple[str, ...]
    columns: dict[str, str]
    chance: float
    has_gold: bool
    hub_id: str | None
    revision: str | None
    files: dict[str, str]
    options: dict[str, Any]
    official: dict[str, Any]
    notes: str

    def columns_with(self, options: Mapping[str, Any]) -> dict[str, str]:
        """The columns that a benchmark with these options has.

        A column of a split, also with length controlled, needs the split in `splits`.
        """
        splits = options.get("splits")
        if splits is None:
            return self.columns
        left_out = set(self.subsets) - set(splits)
        return {
            metric: heading
            for metric, heading in self.columns.items()
            if metric.removesuffix(LENGTH_CONTROLLED_SUFFIX) not in left_out
        }


def list_benchmark_cards() -> list[str]:
    """Names of all benchmarks that have a card, sorted."""
    return list(card_files("benchmarks"))


def benchmark_card_file(name: str) -> Path:
    """The YAML file of a benchmark's card.

    Raises:
        UserError: no card has this name.
    """
    files = card_files("benchmarks")
    if name not in files:
        advice = "To add one, write a card: data/benchmarks/<name>.yaml."
        raise UserError(f"Unknown benchmark {name!r}. {nearest(name, files)} {advice}")
    return files[name]


def load_benchmark_card(name: str) -> BenchmarkCard:
    """Read and check the card of a benchmark.

    Raises:
        UserError: no card has this name.
        ConfigError: the card is not YAML, or its content is wrong; gives all problems together.
    """
    source = benchmark_card_file(name)
    raw, problems = read_yaml(source)
    if not isinstance(raw, dict):
        raise ConfigError([f"the card must be a mapping of keys to values, found {kind_of(raw)}"], str(source))
    problems += list(unusable_values(raw)) or _problems(raw, name)
    if problems:
        raise ConfigError(problems, str(source))
    raw = OPTIONAL | raw
    return BenchmarkCard(**(raw | {"subsets": tuple(raw["subsets"]), "chance": float(raw["chance"])}))


def benchmark_module(card: BenchmarkCard) -> ModuleType:
    """The Python module that reads, grades and averages the benchmark of `card`."""
    return importlib.import_module(f"rm_methods.benchmarks.{card.module}")


def resolve_benchmark_options(card: BenchmarkCard, user_options: dict[str, Any] | None = None) -> dict[str, Any]:
    """The options of a benchmark: the module's defaults, then the card's values, then those `given` in the
    configuration.

    Raises:
        ConfigError: with every unknown option and every value that its schema refuses.
    """
    schemas = benchmark_module(card).OPTIONS
    options = card.options | (user_options or {})
    where = f"benchmarks.{card.name}.options"
    problems = []
    for key, value in options.items():
        if key not in schemas:
            problems.append(f"{where}.{key}: unknown option. {nearest(key, schemas)}")
        else:
            problems += schema_problems(value, schemas[key], f"{where}.{key}")
    if "splits" in schemas and not problems:
        for split in options.get("splits", []):
            if split not in card.subsets:
                problems.append(
                    f"{where}.splits: '{split}' is not a split of {card.name}. {nearest(split, card.subsets)}"
                )
    if problems:
        raise ConfigError(problems)
    return {key: schema["default"] for key, schema in schemas.items()} | options


def _problems(raw: dict[str, Any], name: str) -> list[str]:
    """All problems of the content of a card."""
    keys = [field.name for field in fields(BenchmarkCard)]
    problems = [f"{key}: unknown key. {nearest(key, keys)}" for key in raw if key not in keys]
    problems += [f"{key}: missing; every card needs it" for key in keys if key not in raw and key not in OPTIONAL]
    for key, (allowed, fits) in _RULES.items():
        if key in raw and not fits(raw[key]):
            problems.append(f"{key}: {raw[key]!r} is not allowed; expected {allowed}")
    if "name" in raw and raw["name"] != name:
        problems.append(f"name: {raw['name']!r} is not allowed; expected {name!r}, the name of the file")
    if "module" in raw and raw["module"] not in MODULES:
        problems.append(
            f"module: {raw['module']!r} is not allowed; expected the name of a benchmark module. "
            f"{nearest(str(raw['module']), MODULES)}"
        )
    if raw.get("columns") == {}:
        problems.append("columns: empty; the comparison table needs at least one metric")
    return problems


def _is_official(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return value == {}
    return (
        set(value) == {"max_length", "truncation_side", "keeps_double_bos", "source"}
        and (value["max_length"] is None or isinstance(value["max_length"], int))
        and value["truncation_side"] in ("left", "right")
        and isinstance(value["keeps_double_bos"], bool)
        and _is_text(value["source"])
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _maps_texts_to_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, [*value, *value.values()]))


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _is_hub_id(value: Any) -> bool:
    return value is None or (_is_text(value) and value.count("/") == 1)


def _is_revision(value: Any) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40}", value) is not None)


# Key of a card -> what is allowed, and whether a value is. JSON Schema would take as long to import as the rest.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "title": ("a text that is not empty", _is_text),
    "license": ("a text that is not empty", _is_text),
    "citation": ("a text that is not empty", _is_text),
    "url": ("a text that is not empty", _is_text),
    "subsets": ("a list of at least one name", _is_list_of_texts),
    "columns": ("a mapping of texts to texts", _maps_texts_to_texts),
    "files": ("a mapping of texts to texts", _maps_texts_to_texts),
    "options": ("a mapping", lambda value: isinstance(value, dict)),
    "official": (
        "a mapping with max_length, truncation_side (left or right), keeps_double_bos and source",
        _is_official,
    ),
    "chance": ("a number between 0 and 1", _is_share),
    "notes": ("a text", lambda value: isinstance(value, str)),
    "hub_id": ("owner/name on the hub, or null", _is_hub_id),
    "revision": ("a full commit hash of 40 hexadecimal digits in quotation marks, or null", _is_revision),
}
