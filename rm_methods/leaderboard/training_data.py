"""The pairs that a reward model was trained on, from files that the user names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.contamination import TRAINING_SPLIT
from rm_methods.errors import UserError
from rm_methods.preferences.pair import PreferencePair
from rm_methods.scoring.data import load_data


def read_training_data(files: Sequence[str]) -> tuple[list[PreferencePair], list[dict[str, Any]]]:
    """The training pairs in files of prepared pairs, or in any preference format.

    Args:
        files: as in `rm-methods score --data`; a file without a column of splits is all training data.

    Returns:
        The pairs of the split "train", and an account of each file: "file", "pairs" of that split, "other_splits"
        (pairs that are left out), "refused" (rows that are not pairs).

    Raises:
        UserError, DataError: a file is missing or unreadable, has no preference pairs, or none of the split "train".
    """
    pairs = []
    accounts: list[dict[str, Any]] = []
    for file in files:
        if not Path(file).exists():
            raise UserError(f"--training-data {file}: no such file. Name a file of preference pairs.")
        data = load_data(file)
        if data.unit != "pairs":
            raise UserError(f"--training-data {file}: holds benchmark items. Name a file of preference pairs.")
        splits = Counter(item.subset for item in data.items)
        if not splits[TRAINING_SPLIT]:
            listed = ", ".join(f"{split} ({count})" for split, count in sorted(splits.items())) or "none"
            raise UserError(
                f"--training-data {file}: no pairs of the split {TRAINING_SPLIT!r}. Its splits are: {listed}. Name the "
                "file that the model was trained on."
            )
        for item in data.items:
            if item.subset == TRAINING_SPLIT:
                chosen, rejected = item.responses
                pair = PreferencePair(
                    pair_id=item.item_id,
                    prompt=item.prompt,
                    chosen=chosen,
                    rejected=rejected,
                    group=item.group,
                    split=item.subset,
                    source=file,
                )
                pairs.append(pair)
        accounts.append(
            {
                "file": file,
                "pairs": splits[TRAINING_SPLIT],
                "other_splits": len(data.items) - splits[TRAINING_SPLIT],
                "refused": data.reading.n_refused,
            }
        )
    return pairs, accounts
