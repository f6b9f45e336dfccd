"""Footnotes that tables share: how intervals, differences and marks are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rm_methods.statistics.cell import POWER, Cell
from rm_methods.statistics.column import MIN_SEEDS, Role
from rm_methods.statistics.corrections import ALPHA
from rm_methods.statistics.intervals import Estimate


@dataclass(frozen=True)
class NotedRow:
    """What the footnotes need to know about a row.

    Attributes:
        label: for readers; role: see `rm_methods.statistics.column`.
        n_models: how many different models the row stands for.
        fixed: no training would change the row.
        cells: in the order of the columns.
    """

    label: str
    role: Role
    n_models: int
    fixed: bool
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class TableWords:
    """Words that differ between tables: what values are measured in, and what the items are called."""

    values: str = "Percent"
    differences: str = "in points, "
    items: str = "items"


def counts_items_only(estimate: Estimate, fixed: bool) -> bool:
    """Whether an interval leaves out what another training would change; it is then printed in parentheses."""
    return estimate.basis == "items" and not fixed


def interval_notes(rows: Sequence[NotedRow], words: TableWords) -> list[str]:
    """What the intervals of the values count."""
    estimates = [(row, cell.estimate) for row in rows for cell in row.cells if cell is not None]
    bases = {estimate.basis for _, estimate in estimates}
    notes = []
    if "seeds and items" in bases:
        notes.append(
            f"{words.values}, mean over seeds ± half of a 95% interval that counts both seeds and {words.items}. The "
            "variance between the seeds of a method is averaged with that of all trained methods of the column."
        )
    if any(counts_items_only(estimate, row.fixed) for row, estimate in estimates):
        notes.append(
            f"(±): one model only, so the interval counts {words.items}. Another training would change it by more."
        )
    if "members and items" in bases:
        notes.append(
            f"A combination of runs is one model. Its interval counts its members (jackknife) and {words.items}."
        )
    if "seeds" in bases:
        notes.append("§: a metric without per-item credits. Its interval counts seeds, not items.")
    if "nothing" in bases:
        notes.append("A mean without ± has no interval: it is a single value, or its values are all equal.")
    return notes


def difference_notes(
    rows: Sequence[NotedRow], reference: NotedRow, headings: Sequence[str], family: str, words: TableWords
) -> list[str]:
    """How differences from the reference were tested, and which were not.

    Args:
        headings: of the columns.
        family: what Holm's correction counts.
    """
    cells = [(row, cell) for row in rows for cell in row.cells if cell is not None]
    notes = [f"Difference: from {reference.label}, {words.differences}on the same {words.items}, paired by seed."]
    if any(cell.tested for _, cell in cells):
        notes.append(f"*: the difference is significant at the {ALPHA:.0%} level (Holm's correction over {family}).")
        notes.append(
            f"Detectable difference: a true difference of this size would be significant with {POWER:.0%} probability "
            "(median over the tested methods)."
        )
    notes += _uncorrected_note(rows, headings, family)
    untested = [row.label for row in rows if row.role == "combined" and row is not reference]
    if untested:
        notes.append(
            f"Not tested: {', '.join(untested)}. A combination of runs is one model, so its difference from the mean "
            f"of the runs of {reference.label} has no p value."
        )
    few: dict[str, int] = {}
    undefined: dict[str, list[str]] = {}
    for row in rows:
        for heading, cell in zip(headings, row.cells, strict=True):
            if cell is None or cell.difference is None or cell.verdict != "not enough evidence":
                continue
            if cell.difference.tested:
                undefined.setdefault(heading, []).append(row.label)
            else:
                few[row.label] = min(row.n_models, reference.n_models)
    if few:
        texts = ", ".join(f"{label} ({n})" for label, n in few.items())
        notes.append(f"Not enough evidence for a test (fewer than {MIN_SEEDS} pairs of runs): {texts}.")
    if undefined:
        texts = "; ".join(f"{heading}: {', '.join(labels)}" for heading, labels in undefined.items())
        notes.append(f"Not tested, because the difference is undefined or without spread: {texts}.")
    in_order = dict.fromkeys(
        row.label for row, cell in cells if cell.difference is not None and cell.difference.pairing == "order of seeds"
    )
    if in_order:
        notes.append(
            f"No seed in common with {reference.label}, so runs were paired in the order of their seeds: "
            f"{', '.join(in_order)}."
        )
    return notes


def _uncorrected_note(rows: Sequence[NotedRow], headings: Sequence[str], family: str) -> list[str]:
    """Differences whose interval leaves out 0 and which are not significant, because only the tests are corrected."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        for heading, cell in zip(headings, row.cells, strict=True):
            if cell is None or cell.difference is None or cell.verdict != "not significant":
                continue
            estimate = cell.difference.estimate
            if estimate.low > 0 or estimate.high < 0:
                labels.setdefault(heading, []).append(row.label)
    if not labels:
        return []
    texts = "; ".join(f"{heading}: {', '.join(names)}" for heading, names in labels.items())
    return [
        "The interval leaves out 0, but the difference is not significant: the interval is for one difference alone, "
        f"and Holm's correction over {family} asks for more. {texts}."
    ]
