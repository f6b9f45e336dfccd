"""What a comparison is once it is computed: the one thing that every table and figure is made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rm_methods.comparison.contamination import BenchmarkContamination
from rm_methods.comparison.ranks import RankTable
from rm_methods.reporting.footnotes import counts_items_only
from rm_methods.reporting.sentences import method_label
from rm_methods.statistics.cell import Cell
from rm_methods.statistics.column import LINES, Role
from rm_methods.statistics.intervals import Estimate


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        benchmark, metric: as in metrics.json.
        heading: for readers.
        chance: what a random scorer gets, in the units of the credits; None without such a level.
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
    """One row of the table.

    Attributes:
        variant, method: names in the configuration; title: of the method, for readers.
        role: see `rm_methods.statistics.column`.
        seeds: of all runs; n_models: how many different models they are (runs of equal weights are one).
        cells: in the order of the columns, None where the variant lacks the column.
    """

    variant: str
    method: str
    title: str
    role: Role
    seeds: tuple[int, ...]
    n_models: int
    seed_free: bool
    scalar_reward: bool
    cost: Cost
    cells: tuple[Cell | None, ...]

    @property
    def content_blind(self) -> bool:
        return self.role == "content_blind"

    @property
    def is_line(self) -> bool:
        """Whether the row is a scorer without training, to read the others against."""
        return self.role in LINES

    @property
    def has_equal_runs(self) -> bool:
        """Whether some runs of the variant have the same weights."""
        return self.n_models < len(self.seeds)

    @property
    def label(self) -> str:
        return method_label(self.variant, self.method, self.title)

    def counts_items_only(self, estimate: Estimate) -> bool:
        """Whether an interval of the row leaves out what another training would change."""
        return counts_items_only(estimate, fixed=self.is_line)

    @property
    def counts_seeds(self) -> bool:
        """Whether the row's intervals hold all that another training would change."""
        return self.is_line or (self.role == "trained" and self.n_models > 1)


@dataclass(frozen=True)
class Comparison:
    """What every table and figure is made from.

    Attributes:
        rows: trained variants first, content-blind ones last.
        reference: name of the variant that the others are compared with, or None.
        correction: the family that Holm's correction counts: "column" or "table".
        detectable: least detectable difference of each column, NaN where no variant is tested.
        ranks: mean ranks over the columns; None with fewer than four columns or without paired seeds.
        verdict: sentences that say what was found.
        notes: footnotes.
        contamination: overlap of each benchmark with the training pairs; empty if it is not asked for.
    """

    columns: tuple[Column, ...]
    rows: tuple[VariantRow, ...]
    reference: str | None
    correction: str = "column"
    detectable: tuple[float, ...] = ()
    ranks: RankTable | None = None
    verdict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    contamination: tuple[BenchmarkContamination, ...] = ()

    @property
    def reference_row(self) -> VariantRow | None:
        return next((row for row in self.rows if row.variant == self.reference), None)

    def best_rows(self, column: int) -> set[int]:
        """Indices of the rows with the highest mean of a column; computed and external rows do not take part.

        A single run and a combination of runs are left out: another training would give another number, and no interval
        of theirs says how much.
        """
        means = {}
        for index, row in enumerate(self.rows):
            cell = row.cells[column]
            is_ranked = row.counts_seeds and row.role not in ("computed", "external")
            if is_ranked and cell is not None and not math.isnan(cell.estimate.mean):
                means[index] = cell.estimate.mean
        highest = max(means.values(), default=math.nan)
        return {index for index, mean in means.items() if mean >= highest - 1e-12}


@dataclass(frozen=True)
class ComparisonResult:
    """The comparison, the files written (by name), and the text of the terminal table."""

    comparison: Comparison
    files: dict[str, Path]
    text: str
