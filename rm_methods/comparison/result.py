"""What a comparison is once it is computed: the one thing that every table and figure is made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rm_methods.statistics.cell import Cell


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        benchmark, metric: as in metrics.json.
        heading: for readers.
        chance: what a random scorer gets, in the units of the credits; None if there is no such level.
    """

    benchmark: str
    metric: str
    heading: str
    chance: float | None = None


@dataclass(frozen=True)
class Cost:
    """Mean cost of training one run; None where no run recorded it."""

    tokens: float | None = None
    wall_seconds: float | None = None
    peak_memory_bytes: float | None = None


@dataclass(frozen=True)
class VariantRow:
    """One row of the table; `cells` are in the order of the columns, None where the variant lacks the column."""

    variant: str
    method: str
    seeds: tuple[int, ...]
    seed_free: bool
    scalar_reward: bool
    content_blind: bool
    cost: Cost
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Rows (trained variants first, content-blind ones last), columns, and the footnotes of every table."""

    columns: tuple[Column, ...]
    rows: tuple[VariantRow, ...]
    reference: str | None
    notes: tuple[str, ...]

    def best_rows(self, column: int) -> set[int]:
        """Indices of the rows with the highest mean of a column, content-blind rows included."""
        means = {}
        for index, row in enumerate(self.rows):
            cell = row.cells[column]
            if cell is not None and not math.isnan(cell.estimate.mean):
                means[index] = cell.estimate.mean
        highest = max(means.values(), default=math.nan)
        return {index for index, mean in means.items() if mean >= highest - 1e-12}


@dataclass(frozen=True)
class ComparisonResult:
    """The comparison, the files written (by name), and the text of the terminal table."""

    comparison: Comparison
    files: dict[str, Path]
    text: str
