"""What a comparison is once it is computed: the one thing that every table and figure is made from."""

from __future__ import annotations

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
    """Rows (trained variants first, content-blind ones last), columns, and the footnotes that belong below every
    table."""

    columns: tuple[Column, ...]
    rows: tuple[VariantRow, ...]
    reference: str | None
    notes: tuple[str, ...]

    def best_rows(self, column: int) -> set[int]:
        """Indices of the rows with the highest mean of a column, content-blind rows included: if one of them leads,
        the table says so."""
        means = {
            index: row.cells[column].estimate.mean
            for index, row in enumerate(self.rows)
            if row.cells[column] is not None
        }
        means = {index: mean for index, mean in means.items() if mean == mean}
        return {index for index, mean in means.items() if mean >= max(means.values()) - 1e-12}


@dataclass(frozen=True)
class ComparisonResult:
    """The comparison, the files written (by name), and the text of the terminal table."""

    comparison: Comparison
    files: dict[str, Path]
    text: str
