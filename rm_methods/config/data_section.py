"""The section `data`: its short form, the sources of a mixture, and the options of their readers.

Imports nothing heavy: the Snakefile resolves the configuration in every job.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.errors import ConfigError, UserError
from rm_methods.preferences.data_sources import DataSource, data_sources
from rm_methods.preferences.dataset_card import DatasetCard


def with_sources(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with `data: [...]` written out as `data: {sources: [...]}`."""
    return {**config, "data": {"sources": config["data"]}} if isinstance(config.get("data"), list) else config


def resolve_data(data: dict[str, Any], source_schema: Mapping[str, Any], problems: list[str]) -> None:
    """Complete the options of the readers, and the names and weights of a mixture; check the files that are named.

    Args:
        data: the section with defaults, changed in place.
        source_schema: of an entry of `data.sources`.
        problems: gets one sentence for each problem.
    """
    if "sources" in data:
        problems += _misplaced(data)
        _resolve_sources(data, source_schema, problems)
    elif "dataset" not in data:
        problems.append("data: missing dataset. Name one data set, or write sources: a list of several.")
        return
    elif not _resolve_single(data, problems):
        return
    if isinstance(data["test"], str):
        _check_test_file(data["test"], problems)


def _misplaced(data: Mapping[str, Any]) -> list[str]:
    """Settings of a single data set beside `sources`."""
    problems = []
    if "dataset" in data:
        problems.append(
            f"data.dataset: is {data['dataset']!r}, but data.sources names the data, too; keep one of them (a later "
            "file removes the other by `dataset!: null` or `sources!: null`)"
        )
    for key, unset in (("root", None), ("options", {})):
        if data[key] != unset:
            problems.append(f"data.{key}: is not used beside data.sources; write it into the sources that it is for")
    return problems


def _resolve_single(data: dict[str, Any], problems: list[str]) -> bool:
    """Resolve the options of a single data set; returns whether its settings can be read at all."""
    if not _is_typed(data):
        return False
    (source,) = data_sources(data)
    if source.root is not None and not os.path.isdir(source.root):
        problems.append(no_folder("data.root", source.root))
        return False
    read = _read_source(source, problems)
    if read is not None:
        data["options"] = read[2]
    return True


def _is_typed(entry: Mapping[str, Any]) -> bool:
    """Whether the values have the types of the schema, which reports others."""
    return (
        isinstance(entry.get("dataset"), str)
        and isinstance(entry.get("options"), dict)
        and isinstance(entry["root"], str | None)
    )


def _read_source(source: DataSource, problems: list[str]) -> tuple[DatasetCard, Path | None, dict[str, Any]] | None:
    """The card, the folder and the options of a source; None with a sentence for each problem."""
    from rm_methods.preferences.cards import card_of, located
    from rm_methods.preferences.readers import resolve_reader_options

    try:
        card, root = card_of(source)
        with located(source):
            return card, root, resolve_reader_options(card, source.options)
    except ConfigError as error:
        problems += error.problems_with_file()
    except UserError as error:
        problems.append(f"{source.where}.dataset: {error}")
    return None


def _resolve_sources(data: dict[str, Any], source_schema: Mapping[str, Any], problems: list[str]) -> None:
    """Complete every source, and check them against each other."""
    if not isinstance(data["sources"], list):
        return  # the schema reports it, and entries that are no mappings
    defaults = {key: part["default"] for key, part in source_schema["properties"].items() if "default" in part}
    entries = [defaults | (entry if isinstance(entry, dict) else {}) for entry in data["sources"]]
    if any(entry["weight"] is not None for entry in entries):
        for entry in entries:
            entry["weight"] = 1 if entry["weight"] is None else entry["weight"]
    data["sources"] = entries
    files: list[set[str]] = []
    for number, entry in enumerate(entries):
        where = f"data.sources.{number}"
        files.append(set())
        if not _is_typed(entry):
            continue
        if entry["root"] is not None and not os.path.isdir(entry["root"]):
            problems.append(no_folder(f"{where}.root", entry["root"]))
            continue
        source = DataSource(where, entry["dataset"], entry["root"], entry["options"])
        read = _read_source(source, problems)
        if read is None:
            continue
        card, root, entry["options"] = read
        if entry["name"] is None:
            # Every name of a file gives one that `sources.name` allows.
            entry["name"] = re.sub(r"[^A-Za-z0-9._-]+", "_", card.name).strip("._-")[:50] or "pairs"
        files[number] = _named_files(source, card, root)
        problems += _repeated(number, entries, files)


def _named_files(source: DataSource, card: DatasetCard, root: Path | None) -> set[str]:
    """The files of a source that names files; none for a card, whose options may choose parts of its files."""
    from rm_methods.preferences.cards import list_dataset_cards
    from rm_methods.preferences.file_rows import files_of_card

    if root is None or source.dataset in list_dataset_cards():
        return set()
    return {os.path.realpath(path) for path in files_of_card(card, root)}


def _repeated(number: int, entries: list[dict[str, Any]], files: list[set[str]]) -> list[str]:
    """What a source repeats of those before it: its data, one of its files, or its name."""
    entry = entries[number]
    for other in range(number):
        where = f"data.sources.{number}.dataset: '{entry['dataset']}'"
        if shared := sorted(files[number] & files[other]):
            return [f"{where} reads {shared[0]}, which data.sources.{other} reads, too; a file belongs to one source"]
        if all(entry[key] == entries[other].get(key) for key in ("dataset", "root", "options")):
            return [f"{where} with these options is data.sources.{other}, too; keep one of them"]
        if entry["name"] == entries[other]["name"]:
            return [
                f"data.sources.{number}.name: '{entry['name']}' is the name of data.sources.{other}, too; give each "
                "source a name, such as `name: second`"
            ]
    return []


def _check_test_file(test: str, problems: list[str]) -> None:
    from rm_methods.preferences.cards import card_for_test

    try:
        card_for_test(test)
    except ConfigError as error:
        problems += error.problems
    except UserError as error:
        problems.append(f"data.test: {error}")


def no_folder(where: str, path: str) -> str:
    """The sentence on a local folder that does not exist."""
    return (
        f"{where}: no such folder: '{path}' (looked in {Path.cwd()}). Name the folder that holds the files, or null "
        "for the hub"
    )
