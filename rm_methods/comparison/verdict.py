"""What a comparison found, in sentences: the first lines below every table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rm_methods.comparison.result import Column, Comparison, VariantRow
from rm_methods.reporting.sentences import (
    column_sentence,
    detectable_sentence,
    interval_text,
    listed,
    no_test_sentence,
    points,
)
from rm_methods.statistics.cell import Cell

FEW_COLUMNS = 2  # up to here, each rival's difference is told in each column


def verdict(comparison: Comparison) -> tuple[str, ...]:
    """Sentences: who differs from the reference and by how much, what could not have been seen, what a content-blind
    rule gets.  Empty without a reference."""
    reference = comparison.reference_row
    if reference is None:
        return ()
    rivals = [row for row in comparison.rows if row.role == "trained" and row is not reference]
    judged = [row for row in rivals if any(cell is not None and cell.tested for cell in row.cells)]
    sentences: list[str] = []
    if not judged:
        is_single = reference.role != "trained" or reference.n_models < 2
        sentences.append(no_test_sentence(reference.label, is_single, has_rivals=bool(rivals)))
    elif len(comparison.columns) <= FEW_COLUMNS:
        for number, column in enumerate(comparison.columns):
            cells = [(row.label, row.cells[number]) for row in judged]
            tested = [(label, cell) for label, cell in cells if cell is not None and cell.tested]
            sentences.append(column_sentence(column.heading, reference.label, tested, points))
    else:
        sentences += _table_sentences(comparison, judged, reference)
    sentences += _limits_of_sight(comparison)
    sentences += _content_blind(comparison)
    return tuple(sentences)


def _is(cell: Cell, verdict: str, sign: int) -> bool:
    return cell.verdict == verdict and cell.difference is not None and sign * cell.difference.estimate.mean > 0


def _table_sentences(comparison: Comparison, judged: Sequence[VariantRow], reference: VariantRow) -> list[str]:
    """One sentence for each rival that differs somewhere, one for all that do not."""
    sentences = []
    same = []
    for row in judged:
        cells = list(zip(comparison.columns, row.cells, strict=True))
        better = [(column, cell) for column, cell in cells if cell is not None and _is(cell, "significant", 1)]
        worse = [(column, cell) for column, cell in cells if cell is not None and _is(cell, "significant", -1)]
        if not better and not worse:
            same.append(row.label)
            continue
        n_tested = sum(cell is not None and cell.tested for _, cell in cells)
        parts = []
        if better:
            parts.append(f"better than {reference.label} on {_column_list(better, n_tested)}")
        if worse:
            parts.append(f"worse{'' if better else f' than {reference.label}'} on {_column_list(worse, n_tested)}")
        n_rest = n_tested - len(better) - len(worse)
        rest = f"; not told apart on the other {n_rest}" if n_rest else ""
        sentences.append(f"{row.label} is {' and '.join(parts)}{rest}.")
    if not sentences:
        return [f"No method is shown to differ from {reference.label} on any column: {listed(same)}."]
    if same:
        sentences.append(f"Not told apart from {reference.label} on any column: {listed(same)}.")
    return sentences


def _column_list(cells: Sequence[tuple[Column, Cell]], n_tested: int) -> str:
    """The columns with their differences; of more than a few, the range of the differences."""
    differences = [(column.heading, cell.difference) for column, cell in cells if cell.difference is not None]
    if len(differences) <= FEW_COLUMNS:
        return listed(
            [f"{heading} ({interval_text(difference.estimate, points)})" for heading, difference in differences]
        )
    means = [difference.estimate.mean for _, difference in differences]
    span = f"({points(min(means))} to {points(max(means))} points)"
    if len(differences) == n_tested:
        return f"all {n_tested} columns {span}"
    return f"{listed([heading for heading, _ in differences])} {span}"


def _limits_of_sight(comparison: Comparison) -> list[str]:
    """What the table could not have shown."""
    defined = [value for value in comparison.detectable if not math.isnan(value)]
    if not defined:
        return []
    low, high = (f"{100 * value:.1f}" for value in (min(defined), max(defined)))
    size = f"{low} points" if low == high else f"{low} to {high} points, depending on the column,"
    cells = [cell for row in comparison.rows for cell in row.cells if cell is not None and cell.tested]
    return [detectable_sentence(size, cells)]


def _content_blind(comparison: Comparison) -> list[str]:
    """What the best rule that never reads the text gets, where a trained method does not beat it clearly."""
    blind = [row for row in comparison.rows if row.content_blind]
    trained = [row for row in comparison.rows if not row.is_line]
    if not blind or not trained:
        return []
    best: list[tuple[float, str, str, bool]] = []  # mean, label, heading, whether a trained method is above it
    for number, column in enumerate(comparison.columns):
        scores = [(cell.estimate.mean, row.label) for row in blind if (cell := row.cells[number]) is not None]
        scores = [score for score in scores if not math.isnan(score[0])]
        if not scores:
            continue
        mean, label = max(scores)
        above = any((cell := row.cells[number]) is not None and cell.estimate.low > mean for row in trained)
        best.append((mean, label, column.heading, above))
    if not best:
        return []
    mean, label, heading, _ = max(best)
    sentence = f"The best content-blind row is {label} with {100 * mean:.1f} on {heading}."
    beaten = [heading for _, _, heading, above in best if not above]
    if beaten:
        sentence += f" No trained method is shown to beat the content-blind rows on {listed(beaten)}."
    return [sentence]
