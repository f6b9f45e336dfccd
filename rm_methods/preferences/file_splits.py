"""Finds benchmarks of held-out pairs that would be empty, before anything is prepared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.preferences.cards import card_for
from rm_methods.preferences.file_formats import data_format, file_rows
from rm_methods.preferences.file_rows import find_files, split_name

_MOST_ROWS = 200_000  # a second or two; a longer file without a test pair until there passes


def empty_split_problems(config: Mapping[str, Any]) -> list[str]:
    """Benchmarks made of held-out pairs whose split the files of the data set do not have.

    Local files of pairs are looked at; of the hub and of other readers only `rm-methods prepare` knows the splits.

    Args:
        config: resolved.

    Returns:
        One sentence for each such benchmark.
    """
    if "heldout" not in config["benchmarks"]:
        return []
    data = config["data"]
    card, root = card_for(data["dataset"], data["root"])
    if card.reader != "pairs" or root is None:
        return []
    missing = [
        split
        for split in config["benchmarks"]["heldout"]["options"]["splits"]
        if not data.get(f"{split}_fraction") and not _has_split(card, root, split, data["options"]["split_field"])
    ]
    return [
        f"benchmarks.heldout: needs pairs of the split '{split}', but {data['dataset']} has none; set "
        f"data.{split}_fraction (0.1 holds out a tenth of the prompts), or give a folder with train.jsonl and "
        f"{split}.jsonl"
        for split in missing
    ]


def _has_split(card: Any, root: Path, split: str, column: str | None) -> bool:
    """Whether a file is of the split by its name, or has a row of it; True if the files cannot be read."""
    try:
        if split in card.splits:
            return bool(find_files(root, card.splits[split]))
        if "" not in card.splits or column is None:
            return False
        return any(_has_row(path, split, column) for path in find_files(root, card.splits[""]) if data_format(path))
    except UserError:
        return True  # the prepare stage reports a broken file, with its row


def _has_row(path: Path, split: str, column: str) -> bool:
    for number, fields in file_rows(path):
        value = fields.get(column)
        if number > _MOST_ROWS or (isinstance(value, str) and split_name(value) == split):
            return True
    return False
