"""The benchmark item and its Parquet file. Pairs, best-of-4, 3 x 3 styles and pools all share one scoring path."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rm_methods.benchmarks.items_hash import ORIGINAL, items_hash
from rm_methods.benchmarks.score_table import response_hash
from rm_methods.errors import DataError, nearest
from rm_methods.parquet import read_metadata, read_parquet, write_rows
from rm_methods.preferences.pair import Message
from rm_methods.preferences.tool_calls import STORED_ROLES

if TYPE_CHECKING:
    import pyarrow

# The columns of an items file, with their kinds as in `rm_methods.parquet`.
ITEM_COLUMNS = {
    "item_id": "text",
    "subset": "text",
    "prompt": "messages",
    "responses": "texts",
    "label": "json",
    "group": "text",
    "meta": "json object",
}
# Keys in the metadata of the file.
_NOTES = "notes"
HASHES = "response_hashes"  # key in the `meta` of an item whose texts are masked
_ROWS_AT_ONCE = 1000
_LONGEST_META = 40  # characters of a value in `meta` that names something, instead of being a text of the source
# Values of `meta` that are names however long they are.  Metrics by source need them.
_NAMES = frozenset({"source"})


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """One prompt with its candidate responses.

    Attributes:
        item_id: unique within the benchmark (content hash, or the source's id qualified by its subset).
        subset: the benchmark's own subset, domain or split.
        prompt: conversation, ends with a user message.
        responses: the candidates' texts, in the order that `label` refers to.
        label: any JSON value that the benchmark defines: index of the best response, "A>B", ...
        group: items of one group share a prompt and are not independent; defaults to item_id.
        meta: further values of the source.
    """

    item_id: str
    subset: str
    prompt: Sequence[Message]
    responses: Sequence[str]
    label: Any
    group: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


def write_items(
    items: Iterable[BenchmarkItem],
    target: str | os.PathLike,
    notes: Sequence[str] = (),
    *,
    original_hash: str | None = None,
) -> None:
    """Write items to Parquet, atomically; `label` and `meta` are stored as JSON text.

    Args:
        notes: remarks for the readers of the figures; kept in the file's metadata.
        original_hash: of the file whose items these are, if their texts are masked (`mask_items`).

    Raises:
        DataError: if two items have the same `item_id` or an item has no response.
    """
    rows = []
    seen = set()
    for item in items:
        if item.item_id in seen:
            raise DataError(f"{target}: item id {item.item_id!r} occurs twice; ids must be unique within a benchmark.")
        if not item.responses:
            raise DataError(f"{target}: item {item.item_id!r} has no response.")
        seen.add(item.item_id)
        rows.append(
            {
                "item_id": item.item_id,
                "subset": item.subset,
                "prompt": list(item.prompt),
                "responses": list(item.responses),
                "label": json.dumps(item.label),
                "group": item.group or item.item_id,
                "meta": json.dumps(item.meta, sort_keys=True),
            }
        )
    metadata = {_NOTES: json.dumps(list(notes))}
    if original_hash is not None:
        metadata[ORIGINAL] = json.dumps(original_hash)
    write_rows(rows, ITEM_COLUMNS, target, metadata=metadata)


def mask_items(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Write a file of items without its texts: each character is an x, so that lengths stay.

    Metrics of the masked file are those of the original: labels, groups and short values of `meta` are kept, the hash
    of each response is in its `meta`, and `items_hash` gives the hash of the original.

    Raises:
        DataError: as `read_items`.
    """
    items = [_masked(item) for item in read_items(source)]
    notes = read_notes(source)
    write_items(items, target, notes, original_hash=items_hash(source))


def response_hashes(item: BenchmarkItem) -> list[str]:
    """The hashes of an item's responses; of masked ones, those of the original texts."""
    return item.meta.get(HASHES) or [response_hash(text) for text in item.responses]


def _masked(item: BenchmarkItem) -> BenchmarkItem:
    return replace(
        item,
        prompt=[{"role": message["role"], "content": "x" * len(message["content"])} for message in item.prompt],
        responses=["x" * len(response) for response in item.responses],
        meta={name: value if name in _NAMES else _short(value) for name, value in item.meta.items()}
        | {HASHES: response_hashes(item)},
    )


def _short(value: Any) -> Any:
    """A value of `meta` without long texts."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_META else ""
    if isinstance(value, list):
        return [_short(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _short(entry) for key, entry in value.items()}
    return value


def read_notes(source: str | os.PathLike) -> list[str]:
    """The notes that `write_items` stored; none for a file without notes.

    Raises:
        DataError: the file is missing or damaged, or its notes are not texts.
    """
    notes = read_metadata(source, _NOTES, "prepare-benchmark") or []
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise DataError(
            f"{source}: `notes` in its metadata is {notes!r:.80}; expected a list of texts. "
            "Run the prepare-benchmark stage again."
        )
    return notes


def read_items(source: str | os.PathLike) -> list[BenchmarkItem]:
    """Read benchmark items in file order.

    Raises:
        DataError: if the file is missing or damaged, has other columns or values of the wrong kind, an id twice, or an
            item without id, prompt or responses; names the row.
    """
    table = read_parquet(source, ITEM_COLUMNS, "a file of benchmark items", "prepare-benchmark", unique=("item_id",))
    items = []
    for number, row in enumerate(_rows(table), start=1):
        if empty := [name for name in ("item_id", "responses") if not row[name]]:
            raise DataError(
                f"{source}, row {number}: '{empty[0]}' is {row[empty[0]]!r}; expected one that is not empty. "
                "Run the prepare-benchmark stage again."
            )
        if unknown := [message["role"] for message in row["prompt"] if message["role"] not in STORED_ROLES]:
            raise DataError(
                f"{source}, row {number}: 'prompt' has the role {unknown[0]!r}. {nearest(unknown[0], STORED_ROLES)} "
                "Run the prepare-benchmark stage again."
            )
        # Equal texts share one object, which saves memory: millions of items have few roles and subsets, and the group
        # is mostly the item's id.
        for message in row["prompt"]:
            message["role"] = sys.intern(message["role"])
        row["subset"] = sys.intern(row["subset"])
        if row["group"] == row["item_id"]:
            row["group"] = row["item_id"]
        row["label"] = json.loads(row["label"])
        row["meta"] = json.loads(row["meta"])
        items.append(BenchmarkItem(**row))
    return items


def _rows(table: pyarrow.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table; only those of one batch are in memory twice."""
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield from batch.to_pylist()
