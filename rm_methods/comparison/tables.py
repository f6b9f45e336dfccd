"""One comparison, four tables: terminal text, Markdown, LaTeX (all rounded to 0.1%), and tidy CSV (full precision)."""

from __future__ import annotations

import math

import numpy as np

from rm_methods.comparison.result import Column, Comparison, VariantRow
from rm_methods.reporting.tables import (
    MISSING,
    WIDTH,
    Section,
    csv_text,
    latex_text,
    markdown_text,
    terminal_text,
)
from rm_methods.statistics.cell import Cell
from rm_methods.statistics.intervals import Estimate

_FIRST = 2  # columns that name the row, before those of the benchmarks
COST_HEADINGS = ("Tokens", "Time", "Memory")
CSV_FIELDS = (
    "variant",
    "method",
    "benchmark",
    "metric",
    "heading",
    "mean",
    "low",
    "high",
    "standard_error",
    "degrees_of_freedom",
    "basis",
    "n_seeds",
    "n_items",
    "n_groups",
    "reference",
    "difference",
    "diff_low",
    "diff_high",
    "p",
    "p_holm",
    "n_paired_seeds",
    "pairing",
    "verdict",
    "chance",
    "tie_rate",
    "n_scored",
    "n_total",
    "n_truncated",
    "content_blind",
    "scalar_reward",
    "seed_free",
    "tokens",
    "wall_seconds",
    "peak_memory_bytes",
)


def cell_text(cell: Cell | None) -> str:
    """Mean ± half-width in percent with its marks, e.g. ``83.1 ±1.2*``.

    ``±>50`` says that nothing is known; an em dash, that the variant lacks the column.

    Marks: * significant difference to the reference, ‡ interval of items only, § interval of seeds only.
    """
    if cell is None or math.isnan(cell.estimate.mean):
        return MISSING
    text = f"{100 * cell.estimate.mean:.1f}"
    if not math.isnan(cell.estimate.half_width):
        # With two seeds an interval may be wider than all that a share can be.
        text += f" ±{100 * cell.estimate.half_width:.1f}" if cell.estimate.half_width < 0.5 else " ±>50"
    text += {"items": "‡", "seeds": "§"}.get(cell.estimate.basis, "")
    return text + ("*" if cell.verdict == "significant" else "")


def method_text(row: VariantRow) -> str:
    """Variant, with its method where that has another name, and † where there is no scalar reward."""
    name = row.variant if row.variant == row.method else f"{row.variant} ({row.method})"
    return name + ("" if row.scalar_reward else " †")


def cost_texts(row: VariantRow) -> tuple[str, str, str]:
    """Tokens, wall time and peak memory for readers."""
    return _count(row.cost.tokens), _duration(row.cost.wall_seconds), _bytes(row.cost.peak_memory_bytes)


def _count(value: float | None) -> str:
    if value is None:
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value / size < 999.5 else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds == 0:
        return "0 s"
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{seconds / 60:.1f} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _bytes(value: float | None) -> str:
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    mebibytes = value / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def _blocks(comparison: Comparison) -> list[list[int]]:
    """Row indices of the trained and of the content-blind variants, without empty blocks."""
    blind = [index for index, row in enumerate(comparison.rows) if row.content_blind]
    trained = [index for index, row in enumerate(comparison.rows) if not row.content_blind]
    return [block for block in (trained, blind) if block]


def section(comparison: Comparison) -> Section:
    """The comparison as one table: trained variants, then content-blind ones; columns of benchmarks, then of cost."""
    blocks = _blocks(comparison)
    order = [index for block in blocks for index in block]
    column_best = [comparison.best_rows(column) for column in range(len(comparison.columns))]
    best = {
        (position, _FIRST + column)
        for position, index in enumerate(order)
        for column, rows in enumerate(column_best)
        if index in rows
    }
    rows = []
    for index in order:
        row = comparison.rows[index]
        rows.append((method_text(row), str(len(row.seeds)), *map(cell_text, row.cells), *cost_texts(row)))
    return Section(
        title="",
        headings=("Method", "Seeds", *(column.heading for column in comparison.columns), *COST_HEADINGS),
        rows=tuple(rows),
        names=_FIRST,
        together=(1,) * len(comparison.columns) + (len(COST_HEADINGS),),
        rules=(len(blocks[0]),) if len(blocks) > 1 else (),
        best=frozenset(best),
        italic=frozenset(k for k, index in enumerate(order) if comparison.rows[index].content_blind),
    )


def terminal_table(comparison: Comparison, width: int = WIDTH) -> str:
    """Monospace table of at most `width` columns, and its footnotes."""
    notes = [">: best mean of the column, content-blind rows included.", *comparison.notes]
    return terminal_text([section(comparison)], notes, width)


def markdown_table(comparison: Comparison) -> str:
    """A GitHub table: the best mean of a column is bold, content-blind rows are last and in italics."""
    notes = [
        "Bold: best mean of the column, content-blind rows included. Italic: content-blind scorers.",
        *comparison.notes,
    ]
    return markdown_text([section(comparison)], notes)


def latex_table(comparison: Comparison) -> str:
    """A booktabs tabular with its footnotes, to be \\input inside a table environment."""
    notes = ["Bold: best mean of the column, content-blind rows (last block) included.", *comparison.notes]
    return latex_text([section(comparison)], notes)


def csv_table(comparison: Comparison) -> str:
    """One line per (variant, column) that exists, fractions in full precision, empty where undefined."""
    records = [
        _csv_record(comparison, row, column, cell)
        for row in comparison.rows
        for column, cell in zip(comparison.columns, row.cells, strict=True)
        if cell is not None
    ]
    return csv_text(records, CSV_FIELDS)


def _limits(estimate: Estimate, lowest: float) -> tuple[float, float]:
    """The limits of an interval, cut to what a share (or a difference of shares) can be; few seeds reach beyond."""
    if not lowest <= estimate.mean <= 1:
        return estimate.low, estimate.high
    return float(np.clip(estimate.low, lowest, 1.0)), float(np.clip(estimate.high, lowest, 1.0))


def _csv_record(comparison: Comparison, row: VariantRow, column: Column, cell: Cell) -> dict[str, object]:
    low, high = _limits(cell.estimate, lowest=0.0)
    record: dict[str, object] = {
        "variant": row.variant,
        "method": row.method,
        "benchmark": column.benchmark,
        "metric": column.metric,
        "heading": column.heading,
        "mean": cell.estimate.mean,
        "low": low,
        "high": high,
        "standard_error": cell.estimate.standard_error,
        "degrees_of_freedom": cell.estimate.degrees_of_freedom,
        "basis": cell.estimate.basis,
        "n_seeds": cell.estimate.n_seeds,
        "n_items": cell.estimate.n_items,
        "n_groups": cell.estimate.n_clusters,
        "reference": comparison.reference,
        "verdict": cell.verdict,
        "chance": column.chance,
        "tie_rate": cell.tie_rate,
        "n_scored": cell.n_scored,
        "n_total": cell.n_total,
        "n_truncated": cell.n_truncated,
        "content_blind": row.content_blind,
        "scalar_reward": row.scalar_reward,
        "seed_free": row.seed_free,
        "tokens": row.cost.tokens,
        "wall_seconds": row.cost.wall_seconds,
        "peak_memory_bytes": row.cost.peak_memory_bytes,
    }
    if cell.difference is not None:
        difference = cell.difference.estimate
        low, high = _limits(difference, lowest=-1.0)
        record |= {
            "difference": difference.mean,
            "diff_low": low,
            "diff_high": high,
            "p": cell.difference.p_value,
            "p_holm": cell.p_holm,
            "n_paired_seeds": difference.n_seeds,
            "pairing": cell.difference.pairing,
        }
    return record
