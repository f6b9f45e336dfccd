"""The two tables that diagnosing a run leaves: attention.parquet, one row a sequence, and masking.parquet, one row a pair and masking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.benchmarks.evaluation import usable_scores
from rm_methods.diagnostics.pairs import DiagnosedPair, TextTokens, pair_credit
from rm_methods.diagnostics.position_bins import stage_mass
from rm_methods.experiment.diagnosed_runs import MEASURES
from rm_methods.parquet import read_parquet, write_parquet
from rm_methods.reward_models.tokenization import TokenizedItem

if TYPE_CHECKING:
    import pandas

IDENTITY = {"benchmark": "string", "subset": "string", "item_id": "string", "group": "string"}
ATTENTION_COLUMNS = {
    **IDENTITY,
    "response_index": "int32", "chosen": "bool", "correct": "bool", "score": "float32",
    "n_tokens": "int32", "n_text_tokens": "int32", "truncated": "bool", "layers": "int32 list",
    "reward_row": "float64 list", "reward_row_text": "float64 list", "reward_row_dropped": "float64",
    "received": "float64 list", "received_text": "float64 list", "received_dropped": "float64",
}  # fmt: skip
MASKING_COLUMNS = {
    **IDENTITY,
    "mode": "string", "percent": "int32", "chosen_score": "float32", "rejected_score": "float32", "credit": "float64",
}  # fmt: skip

# Kinds of the module `parquet`, where a table is read.
_KINDS = {
    "string": "text", "int32": "integer", "bool": "boolean", "float32": "number", "float64": "number", "int32 list": "integers",
    "float64 list": "numbers",
}  # fmt: skip
_MAY_BE_MISSING = ("correct", "before", "after")  # a tie or NaN; a pair without a joint text

DISTANCE_COLUMNS = {**IDENTITY, "teacher": "string", "distance": "string", "before": "float64", "after": "float64"}


def attention_rows(
    pair: DiagnosedPair,
    encoded: TokenizedItem,
    texts: Sequence[TextTokens],
    scores: np.ndarray,
    masses: Sequence[np.ndarray],
    layers: Sequence[int],
) -> list[dict[str, Any]]:
    """The rows of a pair in attention.parquet (docs/diagnostics.md).

    Args:
        scores: float32 [2], with everything visible.
        masses: for each response fp32 [2, L]: reward row and received mass.
        layers: averaged over, counted from 1.
    """
    chosen, rejected = usable_scores(scores[[pair.better, 1 - pair.better]])
    correct = bool(chosen > rejected) if abs(chosen - rejected) > 0 else None  # neither a tie nor NaN
    rows = []
    for response, (text, mass) in enumerate(zip(texts, masses, strict=True)):
        content = text.is_text.copy()
        content[0] = False  # the sink, also where a template prints nothing before the text
        row = _identity(pair) | {
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
    """The rows of masking.parquet (docs/diagnostics.md).

    Args:
        scores: (mode, percent hidden) to float32 [pairs, 2].
    """
    index, better = np.arange(len(pairs)), np.array([pair.better for pair in pairs])
    rows = []
    for (mode, percent), own in scores.items():
        chosen, rejected = own[index, better], own[index, 1 - better]
        columns = (chosen.tolist(), rejected.tolist(), pair_credit(chosen, rejected).tolist())
        for pair, *values in zip(pairs, *columns, strict=True):
            named = zip(("chosen_score", "rejected_score", "credit"), values, strict=True)
            rows.append(_identity(pair) | {"mode": mode, "percent": percent, **dict(named)})
    return rows


def _identity(pair: DiagnosedPair) -> dict[str, str]:
    item = pair.item
    return {
        "benchmark": pair.benchmark,
        "subset": item.subset,
        "item_id": item.item_id,
        "group": item.group or item.item_id,
    }


def write_rows(rows: Sequence[dict[str, Any]], columns: Mapping[str, str], target: Path) -> None:
    """Write rows to Parquet, atomically."""
    import pyarrow as pa

    def kind(name: str):
        value = pa.type_for_alias(name.removesuffix(" list"))
        return pa.list_(value) if name.endswith(" list") else value

    schema = pa.schema({name: kind(alias) for name, alias in columns.items()})
    write_parquet(pa.Table.from_pylist(list(rows), schema=schema), target)


def read_rows(source: Path, columns: Mapping[str, str]) -> pandas.DataFrame:
    """Read such a file.

    Raises:
        DataError: the file is missing or damaged, or has other columns or values of the wrong kind.
    """
    kinds = {name: _KINDS[alias] + ("?" if name in _MAY_BE_MISSING else "") for name, alias in columns.items()}
    return read_parquet(source, kinds, "a table of diagnostics", "diagnose").to_pandas()
