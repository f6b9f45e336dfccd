"""Whether a data set has a split, found out before anything is prepared, and with as little reading as possible."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError
from rm_methods.preferences.cards import card_of
from rm_methods.preferences.data_sources import data_sources
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.file_formats import data_format, file_rows
from rm_methods.preferences.file_rows import SPLIT_SYNONYMS, find_files, split_name

_CHUNK = 1 << 22  # bytes
_OVERLAP = 1 << 10  # bytes; longer than the name of a column and a split


def lacks_split(data: Mapping[str, Any], split: str) -> bool:
    """Whether prepared pairs surely have no such split: no source has it, and no fraction or test file makes it.

    Args:
        data: the resolved section `data`.
        split: "test", "validation", or a name that a reader gives.
    """
    is_made = data.get(f"{split}_fraction", 0) > 0 or (split == "test" and data["test"])
    if is_made:
        return False
    return all(has_split(*card_of(source), source.options, split) is False for source in data_sources(data))


def has_split(card: DatasetCard, root: Path | None, options: dict[str, Any], split: str) -> bool | None:
    """Whether a data set has a split.

    Args:
        card, root: from `cards.card_for`.
        options: the resolved options of the reader.
        split: "test" or "validation".

    Returns:
        True, False, or None if only prepare can tell: a reader makes its splits itself, or a file cannot be read
        (prepare says why).  True for a file of JSON may be wrong if an object inside a row has the column of
        splits; False is never wrong.
    """
    if card.reader == "world":
        from rm_methods.preferences.world import splits_of

        return None if split in splits_of(options) else False
    if not card.splits or "by_instruction" in card.splits:
        return None
    source = card.splits.get(split)
    if source is not None:
        return source.hub is not None if root is None else bool(find_files(root, source))
    if "" not in card.splits:
        return False
    if root is None:
        return None
    column = options.get("split_field")
    if column is None:
        return False
    try:
        return any(_file_has_split(path, column, split) for path in find_files(root, card.splits[""]))
    except DataError:
        return None


def _file_has_split(path: Path, column: str, split: str) -> bool:
    form = data_format(path)
    if form == ".parquet":
        from rm_methods.parquet import parquet_columns

        if column not in parquet_columns(path):
            return False
    if form in (".json", ".jsonl") and _text_has_split(path, column, split):
        return True
    return any(
        isinstance(value := fields.get(column), str) and split_name(value) == split for _, fields in file_rows(path)
    )


def _text_has_split(path: Path, column: str, split: str) -> bool:
    """Whether the text of a JSON file has the column with the split as its value.

    A hundred times as fast as parsing the rows.  A quotation mark inside a JSON text has a backslash before it, so the
    text of a response does not count.
    """
    names = {split, *(synonym for synonym, name in SPLIT_SYNONYMS.items() if name == split)}
    values = "|".join(map(re.escape, sorted(names)))
    pattern = re.compile(rf'"{re.escape(column)}"\s*:\s*"\s*(?:{values})\s*"'.encode(), re.IGNORECASE)
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    before = b""
    try:
        with opened(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                if pattern.search(before + chunk):
                    return True
                before = (before + chunk)[-_OVERLAP:]
    except (OSError, EOFError):
        return False  # the reading of the rows, which follows, says what is wrong
    return False
