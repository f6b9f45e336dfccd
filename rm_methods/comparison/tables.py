"""One comparison, four tables: terminal text, Markdown, LaTeX (all rounded to 0.1%), and tidy CSV (full precision)."""

from __future__ import annotations

import math

from rm_methods.comparison.result import Comparison, VariantRow
from rm_methods.reporting.sentences import DETECTABLE, DIFFERENCE, points, reach_text
from rm_methods.reporting.tables import (
    MISSING,
    WIDTH,
    Section,
    csv_text,
    latex_text,
    markdown_text,
    terminal_text,
)
from rm_methods.statistics.cell import Cell, Difference
from rm_methods.statistics.intervals import Estimate

COST_HEADINGS = ("Seeds", "Tokens", "Time", "Memory")
CSV_FIELDS = (
    "variant",
    "method",
    "title",
    "role",
    "benchmark",
    "metric",
    "heading",
    "mean",
    "low",
    "high",
    "standard_error",
    "seed_share",
    "seed_freedom",
    "item_freedom",
    "basis",
    "n_seeds",
    "n_items",
    "n_groups",
    "reference",
    "difference",
    "diff_low",
    "diff_high",
    "diff_basis",
    "p",
    "p_holm",
    "correction",
    "n_paired_seeds",
    "pairing",
    "verdict",
    "detectable_difference",
    "mean_rank",
    "rank_low",
    "rank_high",
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


def cell_text(cell: Cell | None, row: VariantRow) -> str:
    """Mean and half of its interval in percent: ``83.1 ±1.2``; ``83.1 (±1.2)`` where seeds are not counted.

    ``±>50`` says that nothing is known; an em dash, that the variant lacks the column; § is an interval of seeds only.
    """
    if cell is None or math.isnan(cell.estimate.mean):
        return MISSING
    return f"{100 * cell.estimate.mean:.1f}{_reach(cell.estimate, row)}" + _mark(cell.estimate)


def difference_cell_text(cell: Cell | None, row: VariantRow) -> str:
    """Difference from the reference in points, as `cell_text`; * is significant; empty for the reference itself."""
    if cell is None or cell.difference is None or math.isnan(cell.difference.estimate.mean):
        return "" if cell is not None and cell.verdict == "reference" else MISSING
    difference = cell.difference.estimate
    star = "*" if cell.verdict == "significant" else ""
    return f"{points(difference.mean)}{_reach(difference, row)}{_mark(difference)}{star}"


def _reach(estimate: Estimate, row: VariantRow) -> str:
    if math.isnan(estimate.half_width):
        return ""
    # With two seeds an interval may be wider than all that a share can be.
    text = f"{100 * estimate.half_width:.1f}" if estimate.half_width < 0.5 else ">50"
    return reach_text(text, items_only=row.counts_items_only(estimate))


def _mark(estimate: Estimate) -> str:
    return "§" if estimate.basis == "seeds" else ""


def method_text(row: VariantRow) -> str:
    """The row's label, and † without a scalar reward."""
    return row.label + ("" if row.scalar_reward else " †")


def cost_texts(row: VariantRow) -> tuple[str, str, str, str]:
    """Seeds, tokens, wall time and peak memory for readers."""
    return (
        str(row.n_models),
        _count(row.cost.tokens),
        _duration(row.cost.wall_seconds),
        _bytes(row.cost.peak_memory_bytes),
    )


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
    """Row indices of the trained variants, and of the others (content-blind, computed), without empty blocks."""
    blind = [index for index, row in enumerate(comparison.rows) if row.is_line]
    trained = [index for index, row in enumerate(comparison.rows) if not row.is_line]
    return [block for block in (trained, blind) if block]


def section(comparison: Comparison) -> Section:
    """The comparison as one table: trained variants, then the others; columns of benchmarks, then of cost."""
    blocks = _blocks(comparison)
    order = [index for block in blocks for index in block]
    with_difference = comparison.reference_row is not None
    width = 2 if with_difference else 1  # columns of a benchmark: the value, and its difference from the reference
    column_best = [comparison.best_rows(column) for column in range(len(comparison.columns))]
    best = {
        (position, 1 + width * column)
        for position, index in enumerate(order)
        for column, rows in enumerate(column_best)
        if index in rows
    }
    rows = []
    for index in order:
        row = comparison.rows[index]
        texts = [method_text(row)]
        for cell in row.cells:
            texts.append(cell_text(cell, row))
            if with_difference:
                texts.append(difference_cell_text(cell, row))
        rows.append((*texts, *cost_texts(row)))
    rules = [len(blocks[0])] if len(blocks) > 1 else []
    shows_detectable = any(not math.isnan(value) for value in comparison.detectable)
    if with_difference and shows_detectable:
        rules.append(len(rows))
        rows.append((DETECTABLE, *_detectable_texts(comparison), *[""] * len(COST_HEADINGS)))
    headings = ["Method"]
    for column in comparison.columns:
        headings += [column.heading, DIFFERENCE] if with_difference else [column.heading]
    return Section(
        title="",
        headings=(*headings, *COST_HEADINGS),
        rows=tuple(rows),
        together=(width,) * len(comparison.columns) + (len(COST_HEADINGS),),
        rules=tuple(rules),
        best=frozenset(best),
        italic=frozenset(k for k, index in enumerate(order) if comparison.rows[index].is_line),
    )


def _detectable_texts(comparison: Comparison) -> list[str]:
    texts = []
    for value in comparison.detectable:
        texts += ["", MISSING if math.isnan(value) else f"{100 * value:.1f}"]
    return texts


def rank_sections(comparison: Comparison) -> list[Section]:
    """The mean ranks as a table; empty where they are not defined."""
    ranks = comparison.ranks
    if ranks is None:
        return []
    labels = {row.variant: row.label for row in comparison.rows}
    rows = tuple((labels[r.variant], f"{r.mean:.2f}", f"{r.low:.2f} to {r.high:.2f}") for r in ranks.ranks)
    title = (
        f"Mean rank over {ranks.n_columns} columns and {ranks.n_seeds} seeds; two methods are told apart where they "
        f"differ by {ranks.critical_difference:.2f} or more"
    )
    return [Section(title, ("Method", "Mean rank", "95% interval"), rows)]


def _notes_on_lines(comparison: Comparison) -> list[str]:
    """Names the rows that are computed from what only the maker of the data knows, and those from elsewhere."""
    labels = [row.label for row in comparison.rows if row.role == "computed"]
    notes = [f"Computed, not trained, so neither ranked nor tested: {', '.join(labels)}."] if labels else []
    external = [row.label for row in comparison.rows if row.role == "external"]
    if external:
        notes.append(
            f"From elsewhere, not trained here, so neither ranked nor tested: {', '.join(external)}. Each is one fixed "
            "model: its interval counts items only, that of its difference also the seeds of the other row."
        )
    return notes


def terminal_table(comparison: Comparison, width: int = WIDTH) -> str:
    """Monospace table of at most `width` columns, the verdict, and footnotes."""
    notes = [
        ">: best mean of the column, content-blind rows included.",
        *_notes_on_lines(comparison),
        *comparison.notes,
    ]
    sections = [section(comparison), *rank_sections(comparison)]
    return terminal_text(sections, notes, width, verdict=comparison.verdict)


def markdown_table(comparison: Comparison) -> str:
    """A GitHub table: the best mean of a column is bold, content-blind rows are last and in italics."""
    notes = [
        "Bold: best mean of the column, content-blind rows included. Italic: rows without training.",
        *_notes_on_lines(comparison),
        *comparison.notes,
    ]
    return markdown_text([section(comparison), *rank_sections(comparison)], notes, verdict=comparison.verdict)


def latex_table(comparison: Comparison) -> str:
    """A booktabs tabular with its footnotes, to be \\input inside a table environment."""
    notes = [
        "Bold: best mean of the column, content-blind rows (last block) included.",
        *_notes_on_lines(comparison),
        *comparison.notes,
    ]
    return latex_text([section(comparison), *rank_sections(comparison)], notes, verdict=comparison.verdict)


def csv_table(comparison: Comparison) -> str:
    """One line per (variant, column) that exists, fractions in full precision, empty where undefined."""
    records = [
        _csv_record(comparison, row, number, cell)
        for row in comparison.rows
        for number, cell in enumerate(row.cells)
        if cell is not None
    ]
    return csv_text(records, CSV_FIELDS)


def _limits(estimate: Estimate, lowest: float) -> tuple[float, float]:
    """The limits of an interval, cut to what a share (or a difference of shares) can be; few seeds reach beyond."""
    if not lowest <= estimate.mean <= 1:
        return estimate.low, estimate.high
    return max(estimate.low, lowest), min(estimate.high, 1.0)


def _csv_record(comparison: Comparison, row: VariantRow, number: int, cell: Cell) -> dict[str, object]:
    column = comparison.columns[number]
    law = cell.estimate.law
    low, high = _limits(cell.estimate, lowest=0.0)
    record: dict[str, object] = {
        "variant": row.variant,
        "method": row.method,
        "title": row.title,
        "role": row.role,
        "benchmark": column.benchmark,
        "metric": column.metric,
        "heading": column.heading,
        "mean": cell.estimate.mean,
        "low": low,
        "high": high,
        "standard_error": cell.estimate.standard_error,
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
    if law is not None:
        record |= {"seed_share": law.seed_share, "seed_freedom": law.seed_freedom, "item_freedom": law.item_freedom}
    if cell.difference is not None:
        record |= _difference_record(comparison, number, cell, cell.difference)
    if comparison.ranks is not None:
        for rank in comparison.ranks.ranks:
            if rank.variant == row.variant:
                record |= {"mean_rank": rank.mean, "rank_low": rank.low, "rank_high": rank.high}
    return record


def _difference_record(comparison: Comparison, number: int, cell: Cell, difference: Difference) -> dict[str, object]:
    estimate = difference.estimate
    low, high = _limits(estimate, lowest=-1.0)
    record: dict[str, object] = {
        "difference": estimate.mean,
        "diff_low": low,
        "diff_high": high,
        "diff_basis": estimate.basis,
        "n_paired_seeds": estimate.n_seeds,
        "pairing": difference.pairing,
    }
    if cell.tested:
        record |= {
            "p": difference.p_value,
            "p_holm": cell.p_holm,
            "correction": comparison.correction,
            "detectable_difference": comparison.detectable[number],
        }
    return record
