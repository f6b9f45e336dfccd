"""The prepared preference pair and its Parquet file: the contract between `prepare` and everything after it."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_methods.errors import ListsFields
from rm_methods.files import content_hash
from rm_methods.parquet import read_parquet, write_rows

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class PreferencePair(ListsFields):
    """One comparison: under `prompt`, `chosen` was preferred to `rejected`.

    Attributes:
        pair_id: content hash of prompt, chosen and rejected *before* any label noise, so a flipped pair keeps its id.
        prompt: the conversation up to the answer, ends with a user message.
        chosen, rejected: the text of the last assistant turn, nothing else.  Tool calls follow the text as records
            (rm_methods.preferences.tool_calls).
        strength: how sure the label is, in the units of the source (larger is surer), or None.
        group: hash of the prompt.  A split never cuts a group.
        split: "train", "validation", "test", or a name that the reader gives.
        source: card name and, if any, the file or subset.
        meta: further values of the source; {"flipped": True} marks injected label noise.
        margin, target, weight: a method's `transform_pairs` may set them for training; they are never stored. Reward
            margin, probability that `chosen` really is better, weight of the pair in the loss.
        file, row: the source of a pair that a reader made, never stored: path (or hub name), and row counted from 1; ""
            and None for other pairs.
    """

    pair_id: str
    prompt: Sequence[Message]
    chosen: str
    rejected: str
    group: str
    split: str
    source: str
    strength: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    margin: float = 0.0
    target: float = 1.0
    weight: float = 1.0
    file: str = ""
    row: int | None = None


def make_pair(
    prompt: Sequence[Message],
    chosen: str,
    rejected: str,
    *,
    split: str,
    source: str,
    strength: float | None = None,
    meta: dict[str, Any] | None = None,
    file: str = "",
    row: int | None = None,
) -> PreferencePair:
    """A pair with its `pair_id` and `group` computed from its content."""
    messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
    return PreferencePair(
        pair_id=content_hash([messages, chosen, rejected]),
        prompt=messages,
        chosen=chosen,
        rejected=rejected,
        group=prompt_group(messages),
        split=split,
        source=source,
        strength=strength,
        meta=meta or {},
        file=file,
        row=row,
    )


def prompt_group(prompt: Sequence[Message]) -> str:
    """Hash of a prompt, ignoring case, white space and Unicode forms: near-identical prompts are one group."""
    return content_hash([[m["role"], _folded(m["content"])] for m in prompt])


def _folded(text: str) -> str:
    """The text with single blanks, in Unicode's caseless compatibility form (The Unicode Standard, toNFKC_Casefold).

    It no longer distinguishes "é" of one and of two characters, full-width and ordinary letters, "ß" and "ss", or kinds
    of spaces. Invisible formatting characters (zero-width spaces, soft hyphens, byte-order marks) are removed.
    """
    if not text.isascii():
        text = "".join(letter for letter in text if letter.isascii() or unicodedata.category(letter) != "Cf")
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.lower().split())


# The columns of prepared pairs, with their kinds as in `rm_methods.parquet`.
PAIR_COLUMNS = {
    "pair_id": "text",
    "prompt": "messages",
    "chosen": "text",
    "rejected": "text",
    "strength": "finite?",
    "group": "text",
    "split": "text",
    "source": "text",
    "meta": "json object",
}


def write_pairs(pairs: Iterable[PreferencePair], target: str | os.PathLike) -> None:
    """Write pairs to Parquet, atomically. `meta` is stored as JSON text."""
    rows = []
    for pair in pairs:
        row = {name: getattr(pair, name) for name in PAIR_COLUMNS}
        rows.append(row | {"meta": json.dumps(pair.meta, sort_keys=True)})
    write_rows(rows, PAIR_COLUMNS, target)


def read_pairs(source: str | os.PathLike, splits: Iterable[str] | None = None) -> list[PreferencePair]:
    """Read prepared pairs, only those of `splits` if given, in file order.

    Raises:
        DataError: if the file is missing or damaged, or has other columns or values of the wrong kind.
    """
    table = read_parquet(source, PAIR_COLUMNS, "a file of prepared pairs", "prepare")
    allowed_splits = None if splits is None else set(splits)
    return [
        PreferencePair(**(row | {"meta": json.loads(row["meta"])}))
        for row in table.to_pylist()
        if allowed_splits is None or row["split"] in allowed_splits
    ]
