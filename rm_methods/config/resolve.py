"""Configuration: YAML files, checked against one JSON schema and the cards; every problem is reported at once.

Imports nothing heavy: the Snakefile resolves the configuration in every job.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from yaml import YAMLError

from rm_methods.config.conflicts import conflicts, workflow_problems
from rm_methods.config.data_section import no_folder, resolve_data, with_sources
from rm_methods.config.method_folders import stored_method_folders, use_method_folders, with_more_folders
from rm_methods.config.path_settings import expand_paths
from rm_methods.config.variants import across_noise, names_without_noise, tuning_grid
from rm_methods.errors import ConfigError, nearest
from rm_methods.files import content_hash, write_text
from rm_methods.methods import registry
from rm_methods.methods.sources import named_folder_problems, use_folders_of_stored
from rm_methods.preferences.data_sources import data_sources
from rm_methods.validation import kind_of, schema_problems, unusable_values
from rm_methods.yaml_files import load_yaml, parse_yaml, read_yaml, yaml_text

SCHEMA_FILE = Path(__file__).with_name("config.schema.yaml")
# Keys of a resolved entry of `methods`.
_RESOLVED = ("method", "settings", "learning_rate", "lora", "label_noise", "tuned_from")

_EMPTY = (
    "the file has no keys; a configuration needs at least `experiment`, `data` and `methods` "
    "(config/quickstart.yaml is an example)"
)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of an experiment."""
    return load_yaml(SCHEMA_FILE)


def section_defaults(*keys: str) -> dict[str, Any]:
    """The defaults of a section of the schema, for instance of ("overoptimization", "ppo")."""
    fragment = schema()
    for key in keys:
        fragment = fragment["properties"][key]
    section: dict[str, Any] = {}
    _fill(section, fragment)
    return section


def load_config(
    paths: Iterable[str | Path],
    overrides: Iterable[Mapping[str, Any]] = (),
    *,
    methods: Sequence[str | Path] = (),
    before_workflow: bool = False,
) -> dict[str, Any]:
    """Read YAML files and resolve the result; later files override earlier ones.

    Args:
        overrides: values that override the files, in order; merged like files.
        methods: folders of methods besides those that `methods_path` names.
        before_workflow: see `resolve`.

    Raises:
        ConfigError: a file is missing or is not YAML, or anything in it is wrong.
    """
    merged: dict[str, Any] = {}
    paths = [Path(p) for p in paths]
    problems = []
    for path in paths:
        content, written_wrong = read_yaml(path)
        problems += written_wrong
        if content is None:
            raise ConfigError([_EMPTY], source=str(path))
        if not isinstance(content, dict):
            raise ConfigError(
                [f"the file must have keys with values, such as `experiment: my_name`; it is {kind_of(content)}"],
                source=str(path),
            )
        if problem := _card_problem(Path(path), content):
            raise ConfigError([problem], source=str(path))
        content = with_sources(content)
        problems += replacement_problems(merged, content)
        merged = merge(merged, content)
    for override in overrides:
        override = with_sources(override)
        problems += replacement_problems(merged, override)
        merged = merge(merged, override)
    if methods:
        merged["methods_path"] = with_more_folders(merged.get("methods_path", []), methods)
    source = ", ".join(map(str, paths)) or "the configuration"
    try:
        config = resolve(merged, source, before_workflow=before_workflow)
    except ConfigError as error:
        raise ConfigError(dict.fromkeys([*problems, *error.problems_with_file(source)]), source) from None
    if problems:
        raise ConfigError(problems, source)
    return config


def _card_problem(path: Path, content: Mapping[str, Any]) -> str | None:
    """What to do with a card that is given as a configuration; None for another file.

    Every card has a title, which no configuration has.
    """
    if "title" not in content or content.keys() & schema()["properties"].keys():
        return None
    guide = "see config/README.md"
    if "reader" in content:
        return f"is the card of a data set. Write a configuration with `data: {{dataset: {path.stem}}}`, {guide}"
    if "module" in content:
        return f"is the card of a benchmark. Write a configuration with `benchmarks: {{{path.stem}: {{}}}}`, {guide}"
    return (
        f"is the card of a method. Write a configuration with `methods_path: {path.parent}` and "
        f"`methods: {{{path.stem}: {{}}}}` into another file, see docs/adding-a-method.md"
    )


def workflow_config(files: Iterable[str | Path], assignments: Iterable[str], default: str | Path) -> dict[str, Any]:
    """The configuration of a workflow, read from the files that Snakemake was given.

    Snakemake's reader accepts duplicate keys and knows only YAML 1.1, so its result is not used.

    Args:
        files: of `--configfile`.
        assignments: of `--config`: texts `key=value`, whose values are YAML.
        default: file to read if none is given.

    Raises:
        ConfigError: as `load_config`.
    """
    overrides: list[dict[str, Any]] = []
    problems = []
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        try:
            value, written_wrong = parse_yaml(text, f" of --config {key}")
        except YAMLError:
            value, written_wrong = text, []
        overrides.append({key: value})
        problems += written_wrong
    if problems:
        raise ConfigError(problems, "--config")
    return load_config(list(files) or [default], overrides, before_workflow=True)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; mappings are merged, anything else is replaced.

    A key of `over` that ends with `!` replaces a mapping, too; with the value null it removes the key of `base`.

    >>> merge({"methods": {"a": {}, "b": {"x": 1}}}, {"methods": {"a!": None, "b!": {}, "c": {}}})
    {'methods': {'b': {}, 'c': {}}}
    """
    merged = dict(base)
    for key, value in over.items():
        name, is_replaced = _without_mark(key)
        before = None if is_replaced else merged.get(name)
        if is_replaced and value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = merge(before if isinstance(before, Mapping) else {}, value)
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def replacement_problems(base: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> list[str]:
    """Keys that end with `!` and that `merge` would not do justice to, one sentence each.

    Args:
        base, over: as for `merge`.
        where: key path of both.
    """
    problems = []
    for key, value in over.items():
        name, is_replaced = _without_mark(key)
        path = f"{where}.{name}" if where else str(name)
        if is_replaced and name in over:
            problems.append(f"{path}: written with and without `!`; keep one")
        if is_replaced and value is None and name not in base:
            problems.append(f"{path}!: null removes nothing, because no earlier file has it. {nearest(name, base)}")
        if isinstance(value, Mapping):
            before = {} if is_replaced else base.get(name)
            problems += replacement_problems(before if isinstance(before, Mapping) else {}, value, path)
    return problems


def _without_mark(key: Any) -> tuple[Any, bool]:
    """A key without a final `!`, and whether it had one."""
    if isinstance(key, str) and len(key) > 1 and key.endswith("!"):
        return key[:-1], True
    return key, False


def resolve(
    config: Mapping[str, Any], source: str = "the configuration", *, before_workflow: bool = False
) -> dict[str, Any]:
    """Fill in all defaults, expand paths, and check everything that can be checked before anything runs.

    Args:
        config: as written by the user; a resolved configuration stays unchanged.
        before_workflow: also check what a whole workflow needs and a single verb may do without: a folder for results
            that can be written, and a tracking address that can be used.

    Returns:
        A new dictionary in which every key of the schema is present, all options are complete, `methods` holds every
        variant of the axes (noise_levels, tuning), and `methods.<variant>` has `method`, `settings`, `learning_rate`
        (None: that of `training`), `lora` (by default that of `training.lora`),
        `label_noise` (None: as prepared) and `tuned_from` (the variant whose grid it belongs to, or None).

    Raises:
        ConfigError: with every problem found, each with its key path, the value seen, and what is allowed.
    """
    config = with_sources(config)
    problems = schema_problems(config, schema())
    resolved: dict[str, Any] = _with_text_keys(config)
    if wrong := use_method_folders(resolved, schema()["properties"]["methods_path"]):
        raise ConfigError(dict.fromkeys([*problems, *wrong]), source)  # nothing else can be said about the methods
    if resolved.get("methods") == "all":
        # Computed rows and controls know what real data does not tell, or compare a method with itself; external rows
        # need a name of a model.
        cards = [registry.load_method_card(name) for name in registry.method_names()]
        resolved["methods"] = {
            card.name: {} for card in cards if card.kind not in ("computed", "external") and not card.control
        }
    if not isinstance(resolved.get("methods"), dict):
        raise ConfigError(problems or ["methods: at least one is needed"], source)
    _expand_gold(resolved)
    _fill(resolved, schema())
    resolved = expand_paths(resolved, schema(), "", problems)
    resolved["methods"] = _resolve_methods(resolved, problems)
    if isinstance(resolved.get("data"), dict):
        resolve_data(resolved["data"], schema()["properties"]["data"]["items"], problems)
    if isinstance(resolved.get("benchmarks"), dict):
        for name, entry in resolved["benchmarks"].items():
            if entry is None or (isinstance(entry, dict) and isinstance(entry.get("options", {}), dict)):
                resolved["benchmarks"][name] = _resolve_benchmark(name, entry or {}, problems)
        _fill_in_world_splits(config, resolved, problems)
    if not problems:
        problems += conflicts(resolved)
    if not problems and before_workflow:
        problems += workflow_problems(resolved)
    if problems:
        raise ConfigError(dict.fromkeys(problems), source)
    return resolved


def reference_variant(config: Mapping[str, Any]) -> str:
    """The variant that the others are compared with (on several levels of noise, the name that it has without
    noise)."""
    named = config["comparison"]["reference"]
    if named:
        return named
    names = names_without_noise(config)
    trained = [
        base for base, name in names.items() if registry.load_method_card(config["methods"][name]["method"]).has_weights
    ]
    if "bradley_terry" in names:
        return "bradley_terry"
    return (trained or list(names))[0]


def runs(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(variant, seed) of every run; a variant whose scores do not depend on the seed runs with the first seed only."""
    return [
        (name, seed)
        for name, entry in config["methods"].items()
        for seed in (config["seeds"][:1] if registry.load_method_card(entry["method"]).seed_free else config["seeds"])
    ]


def write_resolved(config: Mapping[str, Any]) -> Path:
    """Store a resolved configuration under the hash of its content and return the path; never overwrites a file."""
    path = Path(config["results"]) / config["experiment"] / "config" / f"{content_hash(config)}.yaml"
    if not path.exists():
        write_text(path, yaml_text(dict(config)))
    return path


def read_resolved(path: str | Path) -> dict[str, Any]:
    """Read a configuration that `write_resolved` stored, perhaps on another machine.

    Unlike `load_config`, it does not look for the files that the configuration names.

    Raises:
        ConfigError: the file is not a resolved configuration.
    """
    config = load_yaml(path)
    needed = ("experiment", "results", "seeds", "data", "backbone", "methods")
    if not isinstance(config, dict) or any(key not in config for key in needed):
        raise ConfigError([f"is not a resolved configuration, which has the keys {', '.join(needed)}"], str(path))
    _fill(config, schema())
    folders = stored_method_folders(config)
    use_folders_of_stored(folders)
    problems: list[str] = []
    for name, entry in config["methods"].items():
        problems += _resolved_problems(entry, f"methods.{name}")
    if problems:
        problems = [*named_folder_problems(folders, "methods_path"), *problems]
        raise ConfigError(problems, str(path))
    return config


def _resolve_methods(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """All variants, with the tuned settings below those of the configuration, and crossed with the axes."""
    entries = config["methods"]
    if all(isinstance(entry, dict) and set(entry) == set(_RESOLVED) for entry in entries.values()):
        for name, entry in entries.items():
            problems += _resolved_problems(entry, f"methods.{name}")
        return entries
    tuned = _tuned_settings(config, problems)
    # Entries that are no mappings have been reported already.
    mappings = {name: entry or {} for name, entry in entries.items() if entry is None or isinstance(entry, dict)}
    resolved = {
        name: _resolve_method(name, entry, tuned, config["training"], problems) for name, entry in mappings.items()
    }
    if problems:
        return resolved
    tuning = config["tuning"]
    config["noise_levels"] = [{"kind": "symmetric"} | level for level in config["noise_levels"]]
    try:
        if tuning["enabled"]:
            resolved = tuning_grid(
                resolved, tuning["learning_rates"], tuning["knobs"], config["training"]["learning_rate"]
            )
        return across_noise(resolved, config["noise_levels"]) if config["noise_levels"] else resolved
    except ConfigError as error:
        problems += error.problems
        return resolved


def _resolved_problems(entry: dict[str, Any], where: str) -> list[str]:
    """The problems of a resolved entry of `methods`, which may come from an edited file."""
    properties = schema()["properties"]
    training = properties["training"]["properties"]
    noise = properties["noise_levels"]["items"]
    parts = {
        "method": {"enum": list(registry.method_names())},
        "settings": {"type": "object"},
        "learning_rate": {"anyOf": [{"type": "null"}, training["learning_rate"]]},
        "lora": training["lora"],
        "label_noise": noise | {"type": ["object", "null"], "required": ["rate", "kind"]},
        "tuned_from": {"type": ["string", "null"]},
    }
    problems = schema_problems(entry, {"type": "object", "properties": parts}, where)
    if problems:
        return problems
    card = registry.load_method_card(entry["method"])
    return schema_problems(
        entry["settings"], card.settings_schema | {"required": list(card.settings)}, f"{where}.settings"
    )


def _resolve_method(
    variant: str, entry: dict[str, Any], tuned: dict[str, Any], training: Any, problems: list[str]
) -> dict[str, Any]:
    where = f"methods.{variant}"
    name = entry.get("method", variant)
    if name not in registry.method_names():
        hint = nearest(str(name), registry.method_names())
        problems.append(
            f"{where}: unknown method '{name}'. {hint} A variant whose name is not a method's needs `method: <name>`; "
            "a method of yours needs its folder in `methods_path`."
        )
        return dict.fromkeys(_RESOLVED) | {"method": name, "settings": {}}
    card = registry.load_method_card(name)
    settings = {key: value for key, value in (tuned.get(name, {}) | entry).items() if key != "method"}
    # Methods with a separate budget (teachers) have a learning rate among their settings.
    learning_rate = (
        settings.pop("learning_rate", None) if card.kind == "trained" and "learning_rate" not in card.settings else None
    )
    if learning_rate is not None:
        problems += schema_problems(
            learning_rate, schema()["properties"]["training"]["properties"]["learning_rate"], f"{where}.learning_rate"
        )
    lora = _resolve_lora(settings, training, where, problems) if card.has_weights else None
    problems += schema_problems(settings, card.settings_schema, where)
    settings = expand_paths(settings, card.settings_schema, where, problems)
    return {
        "method": name,
        "settings": card.defaults() | settings,
        "learning_rate": learning_rate,
        "lora": lora,
        "label_noise": None,
        "tuned_from": None,
    }


def _resolve_lora(settings: dict[str, Any], training: Any, where: str, problems: list[str]) -> dict[str, Any] | None:
    """LoRA of a variant: its keys, which are removed from `settings`, override `training.lora`; null trains all
    weights."""
    common = training.get("lora") if isinstance(training, dict) else None
    if "lora" not in settings:
        return copy.deepcopy(common)
    changes = settings.pop("lora")
    fragment = schema()["properties"]["training"]["properties"]["lora"]
    problems += schema_problems(changes, fragment, f"{where}.lora")
    if not isinstance(changes, dict):
        return None
    resolved = (common if isinstance(common, dict) else {}) | changes
    _fill(resolved, fragment)
    return resolved


def _tuned_settings(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """The file that `tuned` names: settings by method."""
    if not isinstance(config["tuned"], str):
        return {}
    try:
        content = load_yaml(config["tuned"])
    except ConfigError as error:
        problems += [
            f"tuned: '{config['tuned']}': {problem}. Give a file that `rm-methods tune` wrote, or null"
            for problem in error.problems
        ]
        return {}
    settings = content.get("settings") if isinstance(content, dict) else None
    if (
        not isinstance(settings, dict)
        or not all(isinstance(entry, dict) for entry in settings.values())
        or list(unusable_values(settings))
    ):
        problems.append(
            f"tuned: '{config['tuned']}' has no `settings:` by method. Give a file that `rm-methods tune` wrote, or "
            "null"
        )
        return {}
    if unknown := [name for name in settings if name not in registry.method_names()]:
        problems.append(
            f"tuned: '{config['tuned']}' has settings of an unknown method '{unknown[0]}'. "
            f"{nearest(unknown[0], registry.method_names())}"
        )
    return settings


def _resolve_benchmark(name: str, entry: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    from rm_methods.benchmarks.cards import list_benchmark_cards, load_benchmark_card, resolve_benchmark_options

    where = f"benchmarks.{name}"
    entry = {"root": None, "options": {}} | entry
    if name not in list_benchmark_cards():
        problems.append(f"{where}: unknown benchmark. {nearest(name, list_benchmark_cards())}")
        return entry
    card = load_benchmark_card(name)
    if entry["root"] is not None and card.module == "prepared_splits":
        problems.append(
            f"{where}.root: is not used, because this benchmark is made of the experiment's pairs; remove it"
        )
    elif isinstance(entry["root"], str) and not os.path.isdir(entry["root"]):
        problems.append(no_folder(f"{where}.root", entry["root"]))
    try:
        entry["options"] = resolve_benchmark_options(card, entry["options"])
    except ConfigError as error:
        problems += error.problems
    return entry


def _fill_in_world_splits(config: Mapping[str, Any], resolved: dict[str, Any], problems: list[str]) -> None:
    """Let the benchmark `world` have all test splits of the experiment's world, unless the user names some."""
    from rm_methods.preferences.world.generator import test_splits_of

    if problems or "world" not in resolved["benchmarks"]:
        return
    written = config["benchmarks"]["world"] or {}
    worlds = [source for source in data_sources(resolved["data"]) if source.dataset == "world"]
    if worlds and "splits" not in written.get("options", {}):
        resolved["benchmarks"]["world"]["options"]["splits"] = list(test_splits_of(worlds[0].options))


def _with_text_keys(value: Any) -> Any:
    """A copy without the entries whose key is not text; they have been reported."""
    if isinstance(value, Mapping):
        return {key: _with_text_keys(inside) for key, inside in value.items() if isinstance(key, str)}
    return [_with_text_keys(inside) for inside in value] if isinstance(value, list) else value


def _expand_gold(config: dict[str, Any]) -> None:
    """`gold: <source>` is short for `gold: {source: <source>}`."""
    section = config.get("overoptimization")
    if isinstance(section, dict) and isinstance(section.get("gold"), str):
        section["gold"] = {"source": section["gold"]}


def _fill(value: dict[str, Any], fragment: Mapping[str, Any]) -> None:
    """Fill in defaults of the schema, also inside objects that are absent."""
    for key, part in fragment.get("properties", {}).items():
        if key not in value and "default" in part:
            value[key] = copy.deepcopy(part["default"])
        if isinstance(value.get(key), dict) and "properties" in part:
            _fill(value[key], part)
