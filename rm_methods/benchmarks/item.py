"""The benchmark item and its Parquet file: pairs, best-of-4, 3 x 3 styles and pools all go through one scoring path."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_methods.errors import DataError
from rm_methods.files import read_parquet, written_atomically
from rm_methods.preferences.file_rows import ROLES
from rm_methods.preferences.pair import Message

COLUMNS = ("item_id", "subset", "prompt", "responses", "label", "group", "meta")
_NOTES = b"notes"


@dataclass(frozen=True)
class BenchmarkItem:
    """One prompt with its candidate responses.

    Attributes:
        item_id: unique within the benchmark (content hash, or the source's id qualified by its subset).
        subset: the benchmark's own subset, domain or split.
        prompt: conversation, ends with a user message.
        responses: the candidates' texts, in the order that `label` speaks of.
        label: the benchmark's own, any JSON value: index of the best response, "A>B", ...
        group: items of one group share a prompt and are not independent; defaults to item_id.
        meta: anything else the source knows.
    """

    item_id: str
    subset: str
    prompt: Sequence[Message]
    responses: Sequence[str]
    label: Any
    group: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


def write_items(items: Iterable[BenchmarkItem], target: str | os.PathLike, notes: Sequence[str] = ()) -> None:
    """Write items to Parquet, atomically; `label` and `meta` are stored as JSON text.

    Args:
        notes: what a reader of the figures must know about these items; kept in the file's metadata.

    Raises:
        DataError: if two items have the same `item_id` or an item has no response.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("item_id", pa.string()),
            ("subset", pa.string()),
            ("prompt", pa.list_(message)),
            ("responses", pa.list_(pa.string())),
            ("label", pa.string()),
            ("group", pa.string()),
            ("meta", pa.string()),
        ]
    )
    rows, seen = [], set()
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
    with written_atomically(target) as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata({_NOTES: json.dumps(list(notes))})), path)


def read_notes(source: str | os.PathLike) -> list[str]:
    """What `write_items` was told about the items of a file, none for a file without notes."""
    import pyarrow.parquet as pq

    return json.loads((pq.read_schema(source).metadata or {}).get(_NOTES, b"[]"))


def read_items(source: str | os.PathLike) -> list[BenchmarkItem]:
    """Read benchmark items in file order.

    Raises:
        DataError: if the file is missing, is not Parquet, or has other columns; or, with the row, if a field is of
            another kind or an item id occurs twice, which would count the item twice.
    """
    table = read_parquet(source, COLUMNS, "a file of benchmark items", "prepare")
    items, first_row = [], {}
    for row, fields in enumerate(table.to_pylist(), start=1):
        try:
            item = _item(fields)
        except ValueError as error:
            raise DataError(f"{source}, row {row}: {error}. Run the prepare stage again.") from None
        if item.item_id in first_row:
            raise DataError(
                f"{source}, row {row}: item id {item.item_id!r} occurs twice, first in row {first_row[item.item_id]}."
            )
        first_row[item.item_id] = row
        items.append(item)
    return items


def _item(fields: dict[str, Any]) -> BenchmarkItem:
    """An item from a row of its file.

    Raises:
        ValueError: naming the field that is of another kind.
    """
    for name in ("item_id", "subset", "label", "group", "meta"):
        _check(isinstance(fields[name], str), name, fields[name], "text")
    _check(fields["item_id"] != "", "item_id", "", "text that is not empty")
    prompt, responses = fields["prompt"], fields["responses"]
    _check(
        isinstance(prompt, list) and prompt != [] and all(map(_is_message, prompt)),
        "prompt",
        prompt,
        "a list of messages",
    )
    is_texts = isinstance(responses, list) and responses != [] and all(isinstance(text, str) for text in responses)
    _check(is_texts, "responses", responses, "a list of texts")
    label, meta = _from_json("label", fields["label"]), _from_json("meta", fields["meta"])
    _check(isinstance(meta, dict), "meta", fields["meta"], "a JSON object")
    return BenchmarkItem(**(fields | {"label": label, "meta": meta}))


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)


def _from_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"'{name}' is {text!r:.60}; expected JSON") from None


def _check(is_right: bool, name: str, value: Any, expected: str) -> None:
    if not is_right:
        raise ValueError(f"'{name}' is {value!r:.60}; expected {expected}")
