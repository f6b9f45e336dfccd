"""The credit file: what every item earned in every metric. The evaluate stage writes it, the comparison reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rm_methods.parquet import table_of_columns, write_parquet

# With their kinds as in `rm_methods.parquet`. A metric is the sum over its strata of weight x mean credit.
CREDIT_COLUMNS = {
    "benchmark": "text",
    "metric": "text",
    "item_id": "text",
    "group": "text",
    "stratum": "text",
    "weight": "finite",
    "credit": "number?",
}


def write_credits(credits: Mapping[str, Sequence[Any]], target: str | os.PathLike) -> None:
    """Write credits to Parquet, atomically.

    Args:
        credits: the values of each of `CREDIT_COLUMNS`.
    """
    write_parquet(table_of_columns(credits, CREDIT_COLUMNS), target)
