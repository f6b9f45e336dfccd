"""Finds methods by scanning folders for cards: this one, and those of the user and of installed packages (sources.py).

A card (`<name>.yaml`) says what a method is, what it needs and which settings it takes.  The Snakefile builds its
graph from cards, the CLI lists them, and the configuration schema is generated from them.  The class (`<name>.py`,
class `Method`) is imported only where the method runs.  Adding a method touches no other file.  Reading cards takes
milliseconds and never imports torch.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rm_methods.errors import ConfigError, UserError, nearest
from rm_methods.methods.sources import card_files, method_sources
from rm_methods.methods.user_code import Settings, class_problem, code_problems, import_code, no_class
from rm_methods.validation import schema_problems
from rm_methods.yaml_files import read_yaml

FOLDER = Path(__file__).parent

CARD_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["title", "citation", "kind", "targets", "cost", "settings"],
    "properties": {
        "title": {"type": "string", "minLength": 1},
        "citation": {"type": "string", "minLength": 1},
        "kind": {"enum": ["trained", "joint", "combined", "external", "content_blind", "computed"]},
        "data": {"enum": ["world", "world with annotators"]},
        "targets": {"type": "array", "items": {"enum": ["noise", "length", "over-optimization", "attention"]}},
        "cost": {"type": "string", "minLength": 1},
        "seed_free": {"type": "boolean", "default": False},
        "scalar_reward": {"type": "boolean", "default": True},
        "control": {"type": "boolean", "default": False},
        "settings": {"type": "object"},
        "requires": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["kind"],
                "properties": {
                    "kind": {"enum": ["trained", "joint"]},
                    "method": {"type": "string"},
                    "builtin": {"type": "array", "items": {"type": "string"}, "default": []},
                    "seeds": {"enum": ["same", "first", "all"], "default": "same"},
                    "at_least": {"type": "integer", "minimum": 1, "default": 1},
                    "modulo": {"type": "string"},
                },
            },
        },
        "zero_stages": {"type": "array", "minItems": 1, "items": {"enum": [0, 1, 2, 3]}},
        "knob": {
            "type": "object",
            "additionalProperties": False,
            "required": ["setting", "values"],
            "properties": {"setting": {"type": "string"}, "values": {"type": "array", "minItems": 2}},
        },
    },
}


@dataclass(frozen=True)
class MethodCard:
    """The facts about a method that are known without importing it.

    Attributes:
        name: file name; the configuration uses it.
        title, citation, targets, cost: for lists, tables and documentation.
        kind: "trained" (a reward model), "joint" (a model that reads two responses together and prefers one),
            "combined" (made of trained runs, without any training), "external" (a model from elsewhere, which is only
            scored), "content_blind" (scores without a model), or "computed" (scores without a model, and knows what
            only the maker of the data knows).
        file: the card, absolute; the code is beside it.
        package: the package that its code is imported from; None for a method in a folder of the user.
        seed_free: only the first seed is run, because all give the same scores, or (combined methods) because the runs
            of all seeds are combined into one.
        scalar_reward: the method scores a response alone.
        control: it shows what an experiment can tell apart, with labels or knowledge that real data does not have;
            `methods: all` leaves it out.
        settings: JSON-schema fragment per setting, each with `default` and `description`; `format: file` marks the
            path of a file, `needs_data` gives the data set that a value needs, as `data` does for all values.
        requires: settings that name another variant whose runs must come first.  Keys: the `kind` and optionally the
            `method` of that variant; `builtin` values that name no variant; `seeds`, the runs that are needed (the
            run's seed, the first of the experiment, or all); `at_least`, the smallest number of them; `modulo`, the
            setting of that variant by which they must differ.
        data: the data set that it needs, "world" or "world with annotators"; None for any.
        zero_stages: stages of DeepSpeed's ZeRO that it can be trained with; 0 is none.
        knob: the one setting that is tuned, and the values tried (`{"setting": name, "values": [...]}`), or None.
    """

    name: str
    title: str
    citation: str
    kind: str
    targets: tuple[str, ...]
    cost: str
    settings: dict[str, dict[str, Any]]
    file: Path
    package: str | None = None
    seed_free: bool = False
    scalar_reward: bool = True
    control: bool = False
    requires: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: str | None = None
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    knob: dict[str, Any] | None = None

    @property
    def without_seed(self) -> bool:
        """Whether any seed gives the same scores.  A combination is also made once, but other runs give another."""
        return self.seed_free and self.without_model

    @property
    def without_model(self) -> bool:
        """Whether neither training nor scoring uses a model."""
        return self.kind in ("content_blind", "computed")

    @property
    def has_weights(self) -> bool:
        """Whether a model is trained, so that backbone and training settings matter."""
        return self.kind in ("trained", "joint")

    @property
    def module(self) -> str:
        """The name of the code for `code_hash`: a module below `rm_methods`, or the absolute path of a file."""
        return f"methods.{self.name}" if self.file.parent == FOLDER else str(self.file.with_suffix(".py"))

    def required_variants(self, settings: dict[str, Any]) -> dict[str, str]:
        """The variants that these settings need a run of, by the setting that names them."""
        return {
            key: settings[key] for key, need in self.requires.items() if settings[key] not in need.get("builtin", [])
        }

    def data_needed(self, settings: dict[str, Any]) -> str | None:
        """The data set that the method needs with these settings, as `data` says it."""
        by_setting = (
            fragment.get("needs_data", {}).get(settings[name])
            for name, fragment in self.settings.items()
            if "needs_data" in fragment
        )
        return self.data or next(filter(None, by_setting), None)

    def files_named(self, settings: dict[str, Any]) -> list[str]:
        """Files that these settings name (`format: file` in the card); a run depends on their content."""
        return [
            settings[name]
            for name, fragment in self.settings.items()
            if fragment.get("format") == "file" and settings[name]
        ]

    @property
    def settings_schema(self) -> dict[str, Any]:
        """JSON schema of the settings object."""
        return {"type": "object", "additionalProperties": False, "properties": self.settings}

    def defaults(self) -> dict[str, Any]:
        """Default value of every setting."""
        return {name: fragment["default"] for name, fragment in self.settings.items()}


def card_problems(content: Any) -> list[str]:
    """All problems of the content of a card."""
    if problems := schema_problems(content, CARD_SCHEMA):
        return problems
    for name, fragment in content["settings"].items():
        missing = [key for key in ("default", "description") if not isinstance(fragment, dict) or key not in fragment]
        if missing:
            problems.append(f"settings.{name}: {' and '.join(missing)} missing")
            continue
        problems += schema_problems(fragment["default"], fragment, f"settings.{name}.default")
    problems += [
        f"requires.{name}: is not a setting" for name in content.get("requires", {}) if name not in content["settings"]
    ]
    if knob := content.get("knob"):
        if knob["setting"] not in content["settings"]:
            return [*problems, f"knob.setting: '{knob['setting']}' is not a setting"]
        fragment = content["settings"][knob["setting"]]
        for k, value in enumerate(knob["values"]):
            problems += schema_problems(value, fragment, f"knob.values.{k}")
    return problems


def method_names() -> tuple[str, ...]:
    """Names of all methods, sorted.

    Raises:
        ConfigError: two methods have one name.
    """
    return tuple(_card_files())


def load_method_card(name: str) -> MethodCard:
    """Read a method's card.

    Raises:
        UserError: unknown method (with the nearest match).
        ConfigError: the card is incomplete or wrong, or its code is missing.
    """
    files = _card_files()
    if name not in files:
        raise UserError(
            f"Unknown method '{name}'. {nearest(name, tuple(files))} For a method outside the package, name its folder "
            "with --methods (in a configuration: methods_path)."
        )
    return _read_card(*files[name])


def load_method(name: str, settings: dict[str, Any]):
    """Import a method's class and make it with its resolved settings (all keys of the card).

    Raises:
        UserError: the user's file cannot be imported, or its class `Method` is missing or not what the card's kind asks
            for.
    """
    card = load_method_card(name)
    if card.file.parent == FOLDER:
        return importlib.import_module(f"rm_methods.methods.{name}").Method(settings)
    module = import_code(card.file.with_suffix(".py"), card.package)
    if not hasattr(module, "Method"):
        classes = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise UserError(f"{module.__file__}: {no_class(card.kind, classes)}")
    if problem := class_problem(module.Method, card.kind):
        raise UserError(f"{module.__file__}: {problem}")
    return module.Method(Settings(settings, card.file.with_suffix(".py")))


def user_code_problems(name: str) -> list[str]:
    """Mistakes in the code of a user's method that show without running it, one sentence each; none for ours."""
    card = load_method_card(name)
    if card.file.parent == FOLDER:
        return []
    return code_problems(card.file.with_suffix(".py"), card.kind, card.settings)


def _card_files() -> dict[str, tuple[Path, str | None]]:
    return card_files(method_sources(FOLDER))


@cache
def _read_card(path: Path, package: str | None) -> MethodCard:
    content, written_wrong = read_yaml(path)
    problems = written_wrong + card_problems(content)
    if not re.fullmatch("[A-Za-z0-9_-]+", path.stem):
        problems.append("the name of a method has letters, digits, `_` and `-` only; rename card and code")
    if not path.with_suffix(".py").is_file():
        problems.append(
            f"{path.with_suffix('.py')} is missing; the code of a method is beside its card. If {path.name} is no "
            "card, move it to another folder"
        )
    if problems:
        raise ConfigError(problems, source=str(path))
    return MethodCard(name=path.stem, file=path, package=package, **(content | {"targets": tuple(content["targets"])}))
