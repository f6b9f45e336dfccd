"""Dataset cards: one YAML file per data set, with its origin, its license, and its reader.

How to add one: data/datasets/README.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.card_files import card_files
from rm_methods.errors import ConfigError, DataError, nearest, nearest_path
from rm_methods.preferences.data_sources import DataSource, data_sources
from rm_methods.preferences.dataset_card import DatasetCard, SplitSource
from rm_methods.preferences.file_formats import check_data_format, data_format
from rm_methods.preferences.file_rows import SPLITS
from rm_methods.preferences.readers import READERS, load_reader, option_problems
from rm_methods.validation import schema_problems
from rm_methods.yaml_files import read_yaml

_COMMIT = "a commit of the hub repository: 40 hexadecimal digits"
_TEXT = {"type": "string", "minLength": 1}
_OPTIONAL_TEXT = {"type": ["string", "null"], "minLength": 1}
_WILDCARD = re.compile(r"\[[^]]*\]|[*?]+")
CARD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["name", "title", "hub_id", "revision", "license", "citation", "url", "reader", "splits"],
    "additionalProperties": False,
    "properties": {
        "name": _TEXT,
        "title": _TEXT,
        "hub_id": _OPTIONAL_TEXT,
        "hub_config": _OPTIONAL_TEXT,
        "revision": {"type": ["string", "null"], "pattern": "^[0-9a-f]{40}$", "patternWords": _COMMIT},
        "license": _TEXT,
        "citation": _TEXT,
        "url": _TEXT,
        "reader": _TEXT,
        "options": {"type": "object"},
        "splits": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": False,
                "properties": {
                    "hub": _TEXT,
                    "files": {"type": "array", "minItems": 1, "items": _TEXT},
                    "optional": {"type": "boolean"},
                },
            },
        },
        "local_files": {"type": "string"},
    },
}


def list_dataset_cards() -> list[str]:
    """Names of all cards."""
    return list(card_files("datasets"))


def dataset_card_file(name: str) -> Path:
    """The YAML file of a card.

    Raises:
        ConfigError: no card has this name.
    """
    files = card_files("datasets")
    if name not in files:
        raise ConfigError([f"data.dataset: no card is called '{name}'. {nearest(name, files)}"])
    return files[name]


def load_dataset_card(name: str) -> DatasetCard:
    """Read one card.

    Raises:
        ConfigError: no card has this name, or the card is wrong; gives all its problems.
    """
    path = dataset_card_file(name)
    content, problems = read_yaml(path)
    problems += schema_problems(content, CARD_SCHEMA)
    if isinstance(content, dict):
        problems += _meaning_problems(content, name)
    if problems:
        raise ConfigError(problems, source=str(path))
    splits = {}
    for split, source in content["splits"].items():
        splits[split] = SplitSource(**(source | {"files": tuple(source.get("files", ()))}))
    return DatasetCard(**(content | {"splits": splits}))


def _meaning_problems(content: dict[str, Any], name: str) -> list[str]:
    """Problems that the schema cannot find."""
    problems = []
    if content.get("name") != name:
        problems.append(f"name: is {content.get('name')!r}, but the file is called {name}.yaml; they must agree.")
    reader = content.get("reader")
    options = content.get("options", {})
    if isinstance(reader, str) and reader not in READERS:
        problems.append(f"reader: unknown reader '{reader}'. {nearest(reader, READERS)}")
    elif isinstance(reader, str) and isinstance(options, dict):
        problems += option_problems(reader, options, "options")
    splits = content.get("splits")
    if isinstance(splits, dict):
        for split, source in splits.items():
            problems += _split_problems(f"splits.{split}", source)
    return problems


def _split_problems(where: str, source: Any) -> list[str]:
    if not isinstance(source, dict):
        return []  # the schema reports it
    problems = []
    if "hub" not in source and "files" not in source:
        problems.append(f"{where}: give 'hub' (the hub's split), 'files' (patterns below the local root), or both.")
    for pattern in source.get("files") or ():
        if str(pattern).startswith("/") or ".." in str(pattern).split("/"):
            problems.append(f"{where}.files: {pattern!r} leaves the local root; patterns are relative to it.")
    return problems


def card_for(dataset: str, root: str | Path | None = None) -> tuple[DatasetCard, Path | None]:
    """The card of `data.dataset` and the folder to read from.

    Rows of a single file are in "train", unless the file has a column of splits. In a folder, files belong to splits by
    their names, as on the hub.

    Args:
        dataset: a card's name, the path of a file or folder of TRL-style pairs, or a pattern of paths
            (`shards/*.jsonl`), whose files are read like one.
        root: folder with the files of a card; a relative path starts there. None: the hub, or the working directory.

    Raises:
        ConfigError: neither a card nor a file has this name.
        DataError: the file has an unknown format.
    """
    if dataset in list_dataset_cards():
        return load_dataset_card(dataset), Path(root) if root is not None else None
    path = Path(dataset) if root is None else Path(root) / dataset
    if dataset.strip() and os.path.isdir(path):
        splits = {split: SplitSource(hub=split, optional=split != "train") for split in SPLITS}
        return _card_of_path(path, splits), path
    if os.path.isfile(path):
        check_data_format(path)
        return _card_of_path(path, {"": SplitSource(files=(_escape_glob(path.name),))}), path.parent
    if _WILDCARD.search(dataset):
        return _card_of_pattern(dataset, root)
    looks_like_path = "/" in dataset or data_format(path) is not None
    where = f"no file or folder {path} exists" if looks_like_path else f"no card is called '{dataset}'"
    problem = (
        f"data.dataset: {where}. Give the path of a file or folder of pairs, or the name of a card. "
        f"{nearest_path(path).lstrip() or nearest(dataset, list_dataset_cards())} "
        "For another data set of the hub write a card (data/datasets/README.md)."
    )
    raise ConfigError([problem])


def card_for_test(test: str) -> tuple[DatasetCard, Path]:
    """The card of `data.test`, whose rows are all in the split test, and the folder to read from.

    Args:
        test: the path of a file of TRL-style pairs; a relative path starts in the working directory.

    Raises:
        ConfigError: no such file.
        DataError: the file has an unknown format.
    """
    path = Path(test)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "no such file"
        raise ConfigError(
            [
                f"data.test: {kind}: '{test}' (looked in {Path.cwd()}). Give one file of test pairs; a folder with "
                f"train.* and test.* belongs in data.dataset.{nearest_path(path)}"
            ]
        )
    check_data_format(path)
    return _card_of_path(path, {"test": SplitSource(files=(_escape_glob(path.name),))}), path.parent


def card_of(source: DataSource) -> tuple[DatasetCard, Path | None]:
    """The card of a source and the folder to read from; raises as `card_for`, with the key path of the source."""
    with located(source):
        return card_for(source.dataset, source.root)


@contextmanager
def located(source: DataSource) -> Iterator[None]:
    """Errors inside name the settings of a source in a mixture: `data.sources.1.options` instead of `data.options`.

    Raises:
        ConfigError, DataError: those raised inside, with the key path of the source.
    """

    def named(text: str) -> str:
        return re.sub(r"\bdata\.(dataset|root|options)\b", rf"{source.where}.\1", text)

    try:
        yield
    except ConfigError as error:
        raise ConfigError(map(named, error.problems), error.source) from None
    except DataError as error:
        raise DataError(named(str(error))) from None


def configured_reader_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the first source that is a file of pairs, without those that have their default.

    They also hold for `data.test`, and for a file that is scored with the configuration.

    Args:
        data: the resolved section `data`.
    """
    _, fragments = load_reader("preference_rows")
    for source in data_sources(data):
        if source.dataset not in list_dataset_cards():
            return {name: value for name, value in source.options.items() if value != fragments[name]["default"]}
    return {}


def _card_of_pattern(dataset: str, root: str | Path | None) -> tuple[DatasetCard, Path]:
    """The card of the files that match a pattern, and the folder where the pattern begins."""
    parts = Path(dataset).parts
    first = next(k for k, part in enumerate(parts) if _WILDCARD.search(part))
    folder = Path(root or "", *parts[:first])
    pattern = "/".join(parts[first:])
    try:
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
    except ValueError as error:
        raise ConfigError([f"data.dataset: '{dataset}' is no pattern of files ({error})"]) from None
    if not files:
        raise ConfigError(
            [
                f"data.dataset: no file matches '{dataset}' (looked in {folder.absolute()}). Give the path or a "
                "pattern of files of pairs, such as shards/*.jsonl"
            ]
        )
    for path in files:
        check_data_format(path)
    name = _WILDCARD.sub("", parts[-1].split(".")[0]).strip("-_ ") or folder.absolute().name or "pairs"
    card = _card_of_path(Path(parts[-1]), {"": SplitSource(files=(pattern,))})
    return replace(card, name=name), folder


def _card_of_path(path: Path, splits: dict[str, SplitSource]) -> DatasetCard:
    return DatasetCard(
        name=path.name.split(".")[0] or path.name,
        title=f"pairs in {path.name}",
        hub_id=None,
        revision=None,
        license="unknown",
        citation="none",
        url="",
        reader="preference_rows",
        splits=splits,
    )


def _escape_glob(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
