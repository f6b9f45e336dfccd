"""Benchmark cards: what a benchmark is and where it comes from, read in milliseconds."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from rm_methods.card_files import card_files
from rm_methods.errors import ConfigError, UserError, nearest
from rm_methods.validation import schema_problems, unusable_values
from rm_methods.yaml_files import read_yaml

MODULES = Path(__file__).resolve().parent

OPTIONAL = {"has_gold": False, "hub_id": None, "revision": None, "files": {}, "options": {}, "notes": ""}


@dataclass(frozen=True)
class BenchmarkCard:
    """A benchmark as its card describes it.

    Attributes:
        name: the file name of the card without ``.yaml``; what the configuration calls the benchmark.
        title: for tables and documentation.
        module: name of the file in ``rm_methods/benchmarks`` that reads, grades and averages it.
        licence, citation, url: of the data.
        subsets: every subset that an item may have.
        columns: metric -> short heading, for the metrics that stand in the main comparison table.
        chance: what a random scorer gets in those metrics, in [0, 1].
        has_gold: whether labels are gold values of the responses, so that Best-of-N can use the benchmark as a pool.
        hub_id, revision: of the Hugging Face hub, or None.  A revision is a full commit hash.
        files: name -> glob under a local root.  What the names mean is the module's affair.
        options: values that differ from the module's defaults.
        notes: anything a reader of the numbers should know.
    """

    name: str
    title: str
    module: str
    licence: str
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
    notes: str


def list_benchmark_cards() -> list[str]:
    """Names of all benchmarks that have a card, sorted."""
    return list(card_files("benchmarks"))


def benchmark_card_file(name: str) -> Path:
    """The YAML file of a benchmark's card.

    Raises:
        UserError: there is no such card.
    """
    files = card_files("benchmarks")
    if name not in files:
        raise UserError(
            f"Unknown benchmark {name!r}. {nearest(name, files)} To add one, write a card: data/benchmarks/<name>.yaml."
        )
    return files[name]


def load_benchmark_card(name: str) -> BenchmarkCard:
    """Read and check the card of a benchmark.

    Raises:
        UserError: there is no such card.
        ConfigError: it is not YAML, or with all problems of the card at once.
    """
    source = benchmark_card_file(name)
    raw, problems = read_yaml(source)
    if not isinstance(raw, dict):
        raise ConfigError([f"the card must be a mapping of keys to values, found {type(raw).__name__}"], str(source))
    problems += list(unusable_values(raw)) or _problems(raw, name)
    if problems:
        raise ConfigError(problems, str(source))
    raw = OPTIONAL | raw
    return BenchmarkCard(**(raw | {"subsets": tuple(raw["subsets"]), "chance": float(raw["chance"])}))


def benchmark_module(card: BenchmarkCard) -> ModuleType:
    """The Python module that reads, grades and averages the benchmark of `card`."""
    return importlib.import_module(f"rm_methods.benchmarks.{card.module}")


def resolve_benchmark_options(card: BenchmarkCard, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """The options of a benchmark: the module's defaults, then the card's values, then those `given` in the configuration.

    Raises:
        ConfigError: with every unknown option and every value that its schema refuses.
    """
    schemas = benchmark_module(card).OPTIONS
    chosen, where = card.options | (given or {}), f"benchmarks.{card.name}.options"
    problems = [f"{where}.{key}: unknown option. {nearest(key, schemas)}" for key in chosen if key not in schemas]
    for key, value in chosen.items():
        problems += schema_problems(value, schemas.get(key, {}), f"{where}.{key}")
    if "splits" in schemas and not problems:
        unknown = [split for split in chosen.get("splits", []) if split not in card.subsets]
        problems += [
            f"{where}.splits: '{split}' is not a split of {card.name}. {nearest(split, card.subsets)}"
            for split in unknown
        ]
    if problems:
        raise ConfigError(problems)
    return {key: schema["default"] for key, schema in schemas.items()} | chosen


def _problems(raw: dict[str, Any], name: str) -> list[str]:
    """Everything that is wrong with the contents of a card."""
    keys = [field.name for field in fields(BenchmarkCard)]
    problems = [f"{key}: unknown key. {nearest(key, keys)}" for key in raw if key not in keys]
    problems += [f"{key}: missing; every card needs it" for key in keys if key not in raw and key not in OPTIONAL]

    def expect(key: str, ok: bool, allowed: str) -> None:
        if not ok:
            problems.append(f"{key}: {raw[key]!r} is not allowed; expected {allowed}")

    for key, value in raw.items():
        if key in ("title", "licence", "citation", "url"):
            expect(key, _is_text(value), "a text that is not empty")
        elif key == "name":
            expect(key, value == name, f"{name!r}, the name of the file")
        elif key == "module":
            modules = sorted(
                path.stem for path in MODULES.glob("*.py") if "def grade(" in path.read_text(encoding="utf-8")
            )
            expect(key, value in modules, f"the name of a benchmark file in {MODULES}. {nearest(value, modules)}")
        elif key == "subsets":
            expect(
                key,
                isinstance(value, list) and bool(value) and all(map(_is_text, value)),
                "a list of at least one name",
            )
        elif key in ("columns", "files"):
            expect(
                key,
                isinstance(value, dict) and all(map(_is_text, [*value, *value.values()])),
                "a mapping of texts to texts",
            )
        elif key == "options":
            expect(key, isinstance(value, dict), "a mapping")
        elif key == "chance":
            expect(key, isinstance(value, (int, float)) and 0 <= value <= 1, "a number between 0 and 1")
        elif key == "notes":
            expect(key, isinstance(value, str), "a text")
        elif key == "hub_id":
            expect(key, value is None or (_is_text(value) and value.count("/") == 1), "owner/name on the hub, or null")
        elif key == "revision":
            hexadecimal = isinstance(value, str) and len(value) == 40 and set(value) <= set("0123456789abcdef")
            expect(
                key,
                value is None or hexadecimal,
                "a full commit hash of 40 hexadecimal digits in quotation marks, or null",
            )
    if "columns" in raw and raw["columns"] == {}:
        problems.append("columns: empty; at least one metric must stand in the comparison table")
    return problems


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
