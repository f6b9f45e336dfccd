"""The tables of the diagnostics of one run.

attention.parquet has one row per sequence, masking.parquet one row per pair and masking, and teacher.parquet one row
per pair, teacher and distance (docs/diagnostics.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.benchmarks.evaluation import usable_scores
from rm_methods.diagnostics.pairs import DiagnosedPair, TextTokens, pair_credit
from rm_methods.diagnostics.position_bins import stage_mass
from rm_methods.experiment.diagnosed_runs import MEASURES
from rm_methods.parquet import read_parquet
from rm_methods.reward_models.tokenization import TokenizedItem

if TYPE_CHECKING:
    import pandas

# Columns with their kinds as in `rm_methods.parquet`.
IDENTITY_COLUMNS = {"benchmark": "text", "subset": "text", "item_id": "text", "group": "text"}
ATTENTION_COLUMNS = {
    **IDENTITY_COLUMNS,
    "response_index": "int32",
    "chosen": "boolean",
    "correct": "boolean?",  # null for a tie, or a score that is NaN
    "score": "float32",
    "n_tokens": "int32",
    "n_text_tokens": "int32",
    "truncated": "boolean",
    "layers": "int32s",
    "reward_row": "numbers",
    "reward_row_text": "numbers",
    "reward_row_dropped": "number",
    "received": "numbers",
    "received_text": "numbers",
    "received_dropped": "number",
}
MASKING_COLUMNS = {
    **IDENTITY_COLUMNS,
    "mode": "text",
    "percent": "int32",
    "chosen_score": "float32",
    "rejected_score": "float32",
    "credit": "number",
}
# The distances are null for a pair without a joint text.
DISTANCE_COLUMNS = {
    **IDENTITY_COLUMNS,
    "teacher": "text",
    "distance": "text",
    "before": "number?",
    "after": "number?",
}


def attention_rows(
    pair: DiagnosedPair,
    encoded: TokenizedItem,
    *,
    texts: Sequence[TextTokens],
    scores: np.ndarray,
    masses: Sequence[np.ndarray],
    layers: Sequence[int],
) -> list[dict[str, Any]]:
    """The rows of a pair in attention.parquet.

    Args:
        scores: float32 [2], with everything visible.
        masses: for each response fp32 [2, L]: reward row and received mass.
        layers: the layers that the masses are averaged over, counted from 1.
    """
    chosen, rejected = usable_scores(scores[[pair.better, 1 - pair.better]])
    correct = bool(chosen > rejected) if abs(chosen - rejected) > 0 else None  # neither a tie nor NaN
    rows = []
    for response, (text, mass) in enumerate(zip(texts, masses, strict=True)):
        content = text.is_text.copy()
        content[0] = False  # the attention sink, even where a template prints nothing before the text
        row = identity(pair) | {
            "response_index": response,
            "chosen": response == pair.better,
            "correct": correct,
            "score": float(scores[response]),
            "n_tokens": len(content),
            "n_text_tokens": int(content.sum()),
            "truncated": encoded.truncated[response],
            "layers": list(layers),
        }
        for name, mass_L in zip(MEASURES, mass, strict=True):
            row[name] = stage_mass(mass_L).tolist()
            row[f"{name}_text"] = stage_mass(mass_L[content]).tolist()
            row[f"{name}_dropped"] = float(mass_L[~content].sum())
        rows.append(row)
    return rows


def masking_rows(pairs: Sequence[DiagnosedPair], scores: Mapping[tuple[str, int], np.ndarray]) -> list[dict[str, Any]]:
    """The rows of masking.parquet.

    Args:
        scores: (mode, percent hidden) to float32 [pairs, 2].
    """
    pair_index = np.arange(len(pairs))
    better = np.array([pair.better for pair in pairs])
    rows = []
    for (mode, percent), masked_scores in scores.items():
        chosen = masked_scores[pair_index, better]
        rejected = masked_scores[pair_index, 1 - better]
        credit = pair_credit(chosen, rejected)
        for k, pair in enumerate(pairs):
            row = identity(pair) | {
                "mode": mode,
                "percent": percent,
                "chosen_score": float(chosen[k]),
                "rejected_score": float(rejected[k]),
                "credit": float(credit[k]),
            }
            rows.append(row)
    return rows


def identity(pair: DiagnosedPair) -> dict[str, str]:
    """The columns that say which pair a row is about."""
    item = pair.item
    return {
        "benchmark": pair.benchmark,
        "subset": item.subset,
        "item_id": item.item_id,
        "group": item.group or item.item_id,
    }


def read_diagnostics(source: Path, columns: Mapping[str, str]) -> pandas.DataFrame:
    """Read one of the tables.

    Args:
        columns: of the table, such as `ATTENTION_COLUMNS`.

    Raises:
        DataError: the file is missing or damaged, or has other columns or values of the wrong kind.
    """
    return read_parquet(source, columns, "a table of diagnostics", "diagnose").to_pandas()
