"""The score table: written once per (reward model, benchmark); every metric is a pure function of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from rm_methods.files import read_parquet, written_atomically

COLUMNS = ("item_id", "response_index", "response_hash", "score", "n_tokens", "truncated")


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


def write_scores(rows: list[ScoredResponse], target: str | os.PathLike) -> None:
    """Write a score table to Parquet, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "item_id": pa.array([r.item_id for r in rows], pa.string()),
            "response_index": pa.array([r.response_index for r in rows], pa.int32()),
            "response_hash": pa.array([r.response_hash for r in rows], pa.string()),
            "score": pa.array(np.asarray([r.score for r in rows], dtype=np.float32)),
            "n_tokens": pa.array([r.n_tokens for r in rows], pa.int32()),
            "truncated": pa.array([r.truncated for r in rows], pa.bool_()),
        }
    )
    with written_atomically(target) as path:
        pq.write_table(table, path)


def read_scores(source: str | os.PathLike):
    """Read a score table as a pandas DataFrame with the columns of `ScoredResponse`.

    Raises:
        DataError: if the file is missing, unreadable, or not a score table.
    """
    table = read_parquet(source, COLUMNS, "a score table", "score")
    return table.to_pandas()
