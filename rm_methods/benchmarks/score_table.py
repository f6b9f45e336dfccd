"""The score table: written once per reward model and benchmark. Every metric is a pure function of it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.errors import DataError, UserError
from rm_methods.files import written_atomically
from rm_methods.parquet import in_groups, read_metadata, read_parquet, table_of_columns, table_of_rows, write_tables

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import pyarrow

# The columns of a score table, with their kinds as in `rm_methods.parquet`.
SCORE_COLUMNS = {
    "item_id": "text",
    "response_index": "int32",
    "response_hash": "text",
    "score": "float32",  # NaN if the model could not score the response
    "n_tokens": "int32",
    "truncated": "boolean",
}
_ROW_COLUMNS = {"file": "text", "row": "integer?"}  # before them, in the table of a user's file
_PREFERENCES = "preferences"  # key in the metadata of the file
# Of an item's n responses: n lists of n logits that the first response is better than the second, averaged over both
# orders; None where the model could not tell, and 0 on the diagonal.
Preferences = list[list[float | None]]
TABLE_FORMATS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One row of a score table.

    Attributes:
        item_id: the benchmark item.
        response_index: position of the response in the item, from 0.
        response_hash: of the response text; shows whether a table belongs to the items it is used with.
        score: the reward (float32); NaN if the model could not score the response, which is never dropped.
        n_tokens: tokens of prompt and response together, as the model read them (0 for content-blind scorers).
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
        UserError: with the allowed suffixes.
    """
    if Path(target).suffix not in TABLE_FORMATS:
        allowed = ", ".join(TABLE_FORMATS)
        raise UserError(f"--out {target}: the suffix names no format of a score table. Allowed: {allowed}.")


def write_scores(
    rows: Iterable[ScoredResponse], target: str | os.PathLike, preferences: Mapping[str, Preferences] | None = None
) -> None:
    """Write a score table, atomically, in the format of its suffix; any suffix but .csv and .jsonl is Parquet.

    Args:
        rows: of an iterator, only a part is in memory at a time.
        preferences: of a joint model, by item, kept in the metadata of a Parquet file.
    """
    metadata = {_PREFERENCES: json.dumps(preferences)} if preferences else None
    tables = (table_of_columns(_columns(part), SCORE_COLUMNS) for part in in_groups(rows))
    _write(tables, SCORE_COLUMNS, target, metadata)


def write_row_scores(rows: Iterable[tuple[str, int | None, ScoredResponse]], target: str | os.PathLike) -> None:
    """Write the score table of a user's file, atomically: columns `file` and `row`, then those of `ScoredResponse`.

    Args:
        rows: (file, row counted from 1 or None, scored response); a pair that the file repeats is repeated here. Of an
            iterator, only a part is in memory at a time.
    """
    columns = _ROW_COLUMNS | SCORE_COLUMNS
    _write(_row_tables(rows, columns), columns, target)


def _row_tables(
    rows: Iterable[tuple[str, int | None, ScoredResponse]], columns: Mapping[str, str]
) -> Iterator[pyarrow.Table]:
    for part in in_groups(rows):
        places: dict[str, list[Any]] = {"file": [file for file, _, _ in part], "row": [row for _, row, _ in part]}
        yield table_of_columns(places | _columns([response for _, _, response in part]), columns)


def _columns(rows: Sequence[ScoredResponse]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in SCORE_COLUMNS}


def _write(
    tables: Iterable[pyarrow.Table],
    columns: Mapping[str, str],
    target: str | os.PathLike,
    metadata: Mapping[str, str] | None = None,
) -> None:
    import pyarrow.csv

    suffix = Path(target).suffix
    if suffix == ".csv":
        schema = table_of_rows([], columns).schema
        with written_atomically(target) as path, pyarrow.csv.CSVWriter(path, schema) as writer:
            for table in tables:
                writer.write_table(table)
    elif suffix == ".jsonl":
        with written_atomically(target) as path, open(path, "w", encoding="utf-8", newline="\n") as file:
            for table in tables:
                for row in table.to_pylist():
                    file.write(json.dumps(_without_nan(row)) + "\n")
    else:
        write_tables(tables, table_of_rows([], columns).replace_schema_metadata(metadata).schema, target)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a score that is not finite becomes null."""
    return row | {"score": row["score"] if math.isfinite(row["score"]) else None}


def read_scores(source: str | os.PathLike) -> pandas.DataFrame:
    """`read_score_table` as a pandas DataFrame."""
    return read_score_table(source).to_pandas()


def read_score_table(source: str | os.PathLike) -> pyarrow.Table:
    """Read a score table, with the columns of `ScoredResponse`.

    Raises:
        DataError: the file is missing, unreadable or not a score table, or a column has values of another kind.
    """
    if Path(source).suffix in (".csv", ".jsonl"):
        raise DataError(
            f"{source}: score tables are read from Parquet only. "
            f"Score again with --out {Path(source).with_suffix('.parquet')}."
        )
    return read_parquet(source, SCORE_COLUMNS, "a score table", "score")


def read_preferences(source: str | os.PathLike) -> dict[str, Preferences] | None:
    """What a joint model preferred in each item, from the metadata of a score table; None for other models.

    Raises:
        DataError: the file is missing or damaged, or the metadata is something else.
    """
    stored = read_metadata(source, _PREFERENCES, "score")
    if stored is None:
        return None
    is_right = isinstance(stored, dict) and all(_is_square(matrix) for matrix in stored.values())
    if not is_right:
        raise DataError(f"{source}: `{_PREFERENCES}` in its metadata is damaged. Run the score stage again.")
    return stored


def preference_arrays(preferences: Mapping[str, Preferences]) -> dict[str, np.ndarray]:
    """Preferences as arrays, float32 [n, n] by item; NaN where the model could not tell."""
    import numpy as np

    return {item_id: np.array(matrix, dtype=np.float32) for item_id, matrix in preferences.items()}


def _is_square(matrix: Any) -> bool:
    if not isinstance(matrix, list):
        return False
    return all(
        isinstance(row, list) and len(row) == len(matrix) and all(x is None or isinstance(x, int | float) for x in row)
        for row in matrix
    )
