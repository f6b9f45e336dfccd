"""Finds methods by scanning this folder for cards.  Reading cards costs milliseconds and never imports torch.

A card (`<name>.yaml`) says what a method is, what it needs and which settings it takes; the Snakefile builds the DAG from
cards, the CLI lists them, the configuration schema and the table in the documentation are generated from them.  The class
(`<name>.py`, class `Method`) is imported only where the method runs.  Adding a method touches no other file.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rm_methods.errors import ConfigError, UserError, nearest
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
        "kind": {"enum": ["trained", "joint", "combined", "content_blind"]},
        "targets": {"type": "array", "items": {"enum": ["noise", "length", "over-optimization", "attention"]}},
        "cost": {"type": "string", "minLength": 1},
        "seed_free": {"type": "boolean", "default": False},
        "scalar_reward": {"type": "boolean", "default": True},
        "settings": {"type": "object"},
        "code": {"type": "array", "items": {"type": "string"}},
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
    """What is known about a method without importing it.

    Attributes:
        name: file name; how the configuration calls it.
        title, citation, targets, cost: for lists, tables and documentation.
        kind: "trained" (a reward model), "joint" (a model that reads two responses together and prefers one), "combined" (made of trained
            runs without any training), or "content_blind" (scores without a model).
        seed_free: only the first seed is run: all give the same scores, or (combined methods) the runs of all seeds go into one.
        scalar_reward: the method scores a response alone.
        settings: JSON-schema fragment per setting, each with `default` and `description`; `format: file` for one that names a file.
        requires: settings that name another variant whose runs must be there first: the `kind` (and, if given, the `method`) that it must
            be of, `builtin` values that are no variants, whose `seeds` are needed (that of the run, the first of the experiment, or all),
            how many there must be `at_least`, and (`modulo`) by which setting of that variant they must differ.
        zero_stages: stages of DeepSpeed's ZeRO that it can be trained with; 0 is none.
        knob: the one setting that is tuned, and the values tried (`{"setting": name, "values": [...]}`); None if there is none.
        code: files and folders below the package that the method uses besides its own file and the stages' code.
    """

    name: str
    title: str
    citation: str
    kind: str
    targets: tuple[str, ...]
    cost: str
    settings: dict[str, dict[str, Any]]
    seed_free: bool = False
    scalar_reward: bool = True
    requires: dict[str, dict[str, Any]] = field(default_factory=dict)
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    knob: dict[str, Any] | None = None
    code: tuple[str, ...] = ()

    @property
    def without_seed(self) -> bool:
        """Whether any seed gives the same scores.  A combination of runs is made once, too, but of other runs it would be another."""
        return self.seed_free and self.kind == "content_blind"

    @property
    def has_weights(self) -> bool:
        """Whether a model is trained, so that backbone and training settings matter."""
        return self.kind in ("trained", "joint")

    def required_variants(self, settings: dict[str, Any]) -> dict[str, str]:
        """The variants that these settings need a run of, by the setting that names them."""
        return {
            key: settings[key] for key, need in self.requires.items() if settings[key] not in need.get("builtin", [])
        }

    def files_named(self, settings: dict[str, Any]) -> list[str]:
        """Files that these settings name (`format: file` in the card): what they hold is part of what a run depends on."""
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

    def files(self) -> tuple[Path, ...]:
        """The files that make the method: an edit of one of them reruns the method's runs and no others."""
        own = [FOLDER / f"{self.name}.py", FOLDER / f"{self.name}.yaml"]
        used = [FOLDER.parent / name for name in self.code]
        return (*own, *(file for path in used for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])))


def card_problems(content: Any) -> list[str]:
    """Everything wrong with the content of a card, empty if nothing is."""
    if problems := schema_problems(content, CARD_SCHEMA):
        return problems
    for name, fragment in content["settings"].items():
        missing = [key for key in ("default", "description") if not isinstance(fragment, dict) or key not in fragment]
        if missing:
            problems.append(f"settings.{name}: {' and '.join(missing)} missing")
            continue
        problems += schema_problems(fragment["default"], fragment, f"settings.{name}.default")
    problems += [
        f"code: '{name}' is not below rm_methods/"
        for name in content.get("code", ())
        if not (FOLDER.parent / name).exists()
    ]
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


@cache
def method_names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def load_card(name: str) -> MethodCard:
    """Read a method's card.

    Raises:
        UserError: unknown method (with the nearest match).
        ConfigError: the card is incomplete or wrong.
    """
    if name not in method_names():
        raise UserError(f"Unknown method '{name}'. {nearest(name, method_names())}")
    path = FOLDER / f"{name}.yaml"
    content, written_wrong = read_yaml(path)
    if problems := written_wrong + card_problems(content):
        raise ConfigError(problems, source=str(path))
    return MethodCard(
        name=name, **(content | {"targets": tuple(content["targets"]), "code": tuple(content.get("code", ()))})
    )


def load_method(name: str, settings: dict[str, Any]):
    """Import a method's class and make it with its resolved settings (`MethodCard.defaults` filled in by the configuration)."""
    load_card(name)
    return importlib.import_module(f"rm_methods.methods.{name}").Method(settings)
