"""The pairs that a reward model was trained on, from files that the user names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.contamination import TRAINING_SPLIT
from rm_methods.errors import UserError, nearest_path
from rm_methods.parquet import parquet_columns
from rm_methods.preferences.cards import card_for
from rm_methods.preferences.pair import PAIR_COLUMNS, PreferencePair, read_pairs
from rm_methods.preferences.readers import read_dataset


def read_training_data(files: Sequence[str]) -> tuple[list[PreferencePair], list[dict[str, Any]]]:
    """The training pairs in files of prepared pairs, or in any preference format.

    Args:
        files: files that `rm-methods score --data` reads. A file without a column of splits is all training data.

    Returns:
        The pairs of the split "train", and an account of each file: "file", "pairs" of that split, "other_splits"
        (pairs that are left out), "refused" (rows that are not pairs), "notes" (the reader's remarks).

    Raises:
        UserError, DataError: a file is missing or unreadable, or has no pairs of the split "train".
    """
    training = []
    accounts: list[dict[str, Any]] = []
    for file in files:
        if not Path(file).exists():
            raise UserError(
                f"--training-data {file}: no such file. Name a file of preference pairs.{nearest_path(file)}"
            )
        pairs, n_refused, notes = _read(file)
        splits = Counter(pair.split for pair in pairs)
        if not splits[TRAINING_SPLIT]:
            listed = ", ".join(f"{split} ({count})" for split, count in sorted(splits.items())) or "none"
            raise UserError(
                f"--training-data {file}: no pairs of the split {TRAINING_SPLIT!r}. Its splits are: {listed}. Name the "
                "file that the model was trained on."
            )
        training += [pair for pair in pairs if pair.split == TRAINING_SPLIT]
        accounts.append(
            {
                "file": file,
                "pairs": splits[TRAINING_SPLIT],
                "other_splits": len(pairs) - splits[TRAINING_SPLIT],
                "refused": n_refused,
                "notes": notes,
            }
        )
    return training, accounts


def _read(file: str) -> tuple[list[PreferencePair], int, list[str]]:
    """All pairs of a file, the number of rows that are not pairs, and the reader's remarks."""
    path = Path(file)
    columns = parquet_columns(path) if path.suffix == ".parquet" and path.is_file() else []
    if set(PAIR_COLUMNS) <= set(columns):
        return read_pairs(path), 0, []
    card, root = card_for(file)
    pairs, _, report = read_dataset(card, root, {})
    return pairs, sum(entry["count"] for entry in report.dropped.values()), report.notes
