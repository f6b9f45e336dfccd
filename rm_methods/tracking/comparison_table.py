"""Reads what the comparison of an experiment found from its tables, so that MLflow shows what the tables say."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_methods.reporting.sentences import method_label, verdict_word
from rm_methods.reporting.tables import VERDICT_MARK
from rm_methods.tracking.records import legal_name

_DIGITS = 4  # MLflow shows all digits that it has; table.csv among the artifacts has them
_TOLERANCE = 1e-6  # between a mean in the table and the mean of the runs


@dataclass(frozen=True)
class ColumnResult:
    """One variant in one column of the table; shares from 0 to 1, NaN where undefined.

    Attributes:
        metric: "<benchmark>/<metric>"; heading: for readers.
        mean, low, high: over the seeds, with the 95% interval; difference, ...: from the reference.
        n_seeds: number of different models.
        verdict: as `verdict_word` says.
    """

    metric: str
    heading: str
    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    n_seeds: int
    verdict: str

    def values(self) -> dict[str, float]:
        """Metrics of a variant's run in MLflow: the mean has the name that it has in the runs of the seeds.

        MLflow sorts names, and these sort behind nearly all benchmarks, so the means come first.
        """
        values = {
            self.metric: self.mean,
            f"value_interval/{self.metric}/low": self.low,
            f"value_interval/{self.metric}/high": self.high,
            f"value_interval/{self.metric}/seeds": float(self.n_seeds),
            f"vs_reference/{self.metric}": self.difference,
            f"vs_reference/{self.metric}/low": self.difference_low,
            f"vs_reference/{self.metric}/high": self.difference_high,
        }
        return {name: round(value, _DIGITS) for name, value in values.items() if not math.isnan(value)}


@dataclass(frozen=True)
class ComparisonTable:
    """The comparison that is stored in an experiment's folder.

    Attributes:
        rows: variant -> its columns, in the order of the table.
        labels: variant -> label for readers.
        reference: variant that the others are compared with, "" without.
        verdict: sentences, "" without.
        markdown: the whole table.
    """

    rows: Mapping[str, Sequence[ColumnResult]]
    labels: Mapping[str, str]
    reference: str
    verdict: str
    markdown: str

    def problem(self, values: Mapping[str, Mapping[str, Sequence[float]]]) -> str | None:
        """How the table differs from the runs, None if it does not.

        Args:
            values: variant -> "<benchmark>/<metric>" -> value of each seed.
        """
        missing = [variant for variant in values if variant not in self.rows]
        if missing:
            return f"the comparison table has no row {missing[0]}"
        for variant, columns in self.rows.items():
            for column in columns:
                of_seeds = values.get(variant, {}).get(column.metric, ())
                if len(of_seeds) != column.n_seeds:
                    continue  # of runs with equal weights, the table counts one
                mean = sum(of_seeds) / len(of_seeds)
                if abs(mean - column.mean) > _TOLERANCE:
                    return (
                        f"the comparison table has {column.mean:.4f} for {variant} on {column.metric}, and its runs "
                        f"have {mean:.4f}"
                    )
        return None


def read_comparison(folder: Path) -> ComparisonTable | str:
    """The tables in the folder of a comparison, or why they cannot be used."""
    try:
        markdown = (folder / "table.md").read_text(encoding="utf-8")
        with (folder / "table.csv").open(encoding="utf-8", newline="") as stream:
            records = list(csv.DictReader(stream))
        if not records:
            return f"{folder / 'table.csv'} has no rows"
        rows: dict[str, list[ColumnResult]] = {}
        labels = {}
        for record in records:
            rows.setdefault(record["variant"], []).append(_column(record))
            labels[record["variant"]] = method_label(record["variant"], record["method"], record["title"])
        reference = records[0]["reference"]
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        return f"{folder / 'table.csv'} or table.md cannot be read ({type(error).__name__}: {error})"
    lines = [line for line in markdown.splitlines() if line.startswith(VERDICT_MARK)]
    verdict = lines[0].removeprefix(VERDICT_MARK) if lines else ""
    return ComparisonTable(rows=rows, labels=labels, reference=reference, verdict=verdict, markdown=markdown)


def _column(record: Mapping[str, str]) -> ColumnResult:
    difference = _number(record["difference"])
    mean = _number(record["mean"])
    return ColumnResult(
        metric=legal_name(f"{record['benchmark']}/{record['metric']}"),
        heading=record["heading"],
        mean=mean,
        low=_number(record["low"]),
        high=_number(record["high"]),
        difference=difference,
        difference_low=_number(record["diff_low"]),
        difference_high=_number(record["diff_high"]),
        n_seeds=int(record["n_seeds"]),
        verdict=verdict_word(record["verdict"], mean, difference),
    )


def _number(text: str) -> float:
    return float(text) if text else math.nan
