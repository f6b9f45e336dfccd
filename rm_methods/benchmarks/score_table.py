"""The score table: written once per (reward model, benchmark); every metric is a pure function of it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.errors import DataError, UserError
from rm_methods.files import written_atomically
from rm_methods.parquet import read_parquet, write_parquet

# A score is NaN where the model could not score.
SCORE_COLUMNS = {
    "item_id": "text", "response_index": "integer", "response_hash": "text", "score": "number", "n_tokens": "integer",
    "truncated": "boolean",
}  # fmt: skip
FORMATS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class ScoredResponse:
    """One row of a score table.

    Attributes:
        item_id: the benchmark item.
        response_index: position of the response in the item, from 0.
        response_hash: of the response text, so that a table can be checked against the items it is used with.
        score: the reward (float32); NaN where the model could not score, never dropped.
        n_tokens: tokens of prompt and response together as the model read them (0 for content-blind scorers).
        truncated: whether any text was cut to fit the model.
    """

    item_id: str
    response_index: int
    response_hash: str
    score: float
    n_tokens: int
    truncated: bool


def response_hash(text: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a response text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def check_table_format(target: str | os.PathLike) -> None:
    """Refuse a score table whose suffix names no format.

    Raises:
        UserError: with the suffixes that are allowed.
    """
    if Path(target).suffix not in FORMATS:
        raise UserError(f"--out {target}: the suffix names no format of a score table. Allowed: {', '.join(FORMATS)}.")


def write_scores(rows: Sequence[ScoredResponse], target: str | os.PathLike) -> None:
    """Write a score table, atomically, in the format of its suffix; any suffix but .csv and .jsonl is Parquet."""
    _write(_table(rows), target)


def write_row_scores(rows: Sequence[tuple[str, int | None, ScoredResponse]], target: str | os.PathLike) -> None:
    """Write the score table of a user's file, atomically: columns `file` and `row`, then those of `ScoredResponse`.

    Args:
        rows: (file, row counted from 1 or None, scored response); a pair that the file repeats is repeated here.
    """
    import pyarrow as pa

    table = _table([response for _, _, response in rows])
    table = table.add_column(0, "row", pa.array([row for _, row, _ in rows], pa.int64()))
    _write(table.add_column(0, "file", pa.array([file for file, _, _ in rows], pa.string())), target)


def _table(rows: Sequence[ScoredResponse]):
    import pyarrow as pa

    return pa.table(
        {
            "item_id": pa.array([r.item_id for r in rows], pa.string()),
            "response_index": pa.array([r.response_index for r in rows], pa.int32()),
            "response_hash": pa.array([r.response_hash for r in rows], pa.string()),
            "score": pa.array(np.asarray([r.score for r in rows], dtype=np.float32)),
            "n_tokens": pa.array([r.n_tokens for r in rows], pa.int32()),
            "truncated": pa.array([r.truncated for r in rows], pa.bool_()),
        }
    )


def _write(table, target: str | os.PathLike) -> None:
    import pyarrow.csv

    suffix = Path(target).suffix
    if suffix not in FORMATS[1:]:
        write_parquet(table, target)
        return
    with written_atomically(target) as path:
        if suffix == ".csv":
            pyarrow.csv.write_csv(table, path)
        else:
            path.write_text(
                "".join(json.dumps(_without_nan(row)) + "\n" for row in table.to_pylist()), encoding="utf-8"
            )


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a score that is not finite becomes null."""
    return row | {"score": row["score"] if math.isfinite(row["score"]) else None}


def read_scores(source: str | os.PathLike):
    """Read a score table as a pandas DataFrame with the columns of `ScoredResponse`.

    Raises:
        DataError: if the file is missing, unreadable, or not a score table; or a column holds values of another kind.
    """
    if Path(source).suffix in FORMATS[1:]:
        raise DataError(
            f"{source}: score tables are read from Parquet only. "
            f"Score again with --out {Path(source).with_suffix('.parquet')}."
        )
    return read_parquet(source, SCORE_COLUMNS, "a score table", "score").to_pandas()
