"""What a comparison found, in sentences: the first lines below every table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rm_methods.comparison.result import Column, Comparison, VariantRow
from rm_methods.statistics.cell import POWER, Cell, Difference

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
        sentences.append(f"No test against {reference.label} was possible. {_why_not(rivals, reference)}")
    elif len(comparison.columns) <= FEW_COLUMNS:
        for number, column in enumerate(comparison.columns):
            sentences.append(_column_sentence(comparison, judged, reference, number, column))
    else:
        sentences += _table_sentences(comparison, judged, reference)
    sentences += _limits_of_sight(comparison)
    sentences += _content_blind(comparison)
    return tuple(sentences)


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign.

    >>> points(0.0213), points(-0.0004)
    ('+2.1', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text


def difference_text(difference: Difference) -> str:
    """A difference in points with its interval: ``+2.1 [-4.8, +9.0]``."""
    text = points(difference.estimate.mean)
    if math.isnan(difference.estimate.low):
        return text
    return f"{text} [{points(difference.estimate.low)}, {points(difference.estimate.high)}]"


def listed(words: Sequence[str]) -> str:
    """A, B and C.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _why_not(rivals: Sequence[VariantRow], reference: VariantRow) -> str:
    if not rivals:
        return "The table has no other trained method."
    if reference.role != "trained" or reference.n_models < 2:
        return f"{reference.label} is a single model here: a test needs several trainings of it."
    return "A test needs at least three seeds of both methods, and scores that vary."


def _column_sentence(
    comparison: Comparison, judged: Sequence[VariantRow], reference: VariantRow, number: int, column: Column
) -> str:
    """All rivals of one column."""
    cells = [(row, cell) for row in judged if (cell := row.cells[number]) is not None and cell.tested]
    if not cells:
        return f"{column.heading}: no test was possible."
    better = [_named(row, cell) for row, cell in cells if _is(cell, "significant", 1)]
    worse = [_named(row, cell) for row, cell in cells if _is(cell, "significant", -1)]
    equal = [_named(row, cell) for row, cell in cells if cell.verdict == "not significant"]
    parts = []
    if better:
        parts.append(f"better than {reference.label}: {'; '.join(better)}")
    if worse:
        parts.append(f"worse: {'; '.join(worse)}")
    if not parts:
        parts.append(f"no method is shown to differ from {reference.label}")
        parts.append(f"differences: {'; '.join(equal)}")
    elif equal:
        parts.append(f"not told apart: {'; '.join(equal)}")
    return f"{column.heading}: {'. '.join(_capitalized(part, first=k == 0) for k, part in enumerate(parts))}."


def _capitalized(text: str, *, first: bool) -> str:
    return text if first else text[:1].upper() + text[1:]


def _named(row: VariantRow, cell: Cell) -> str:
    return f"{row.label} {difference_text(cell.difference)}" if cell.difference is not None else row.label


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
        return listed([f"{heading} ({difference_text(difference)})" for heading, difference in differences])
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
    cells = [cell for row in comparison.rows for cell in row.cells if cell is not None and cell.tested]
    seeds = sorted({cell.difference.estimate.n_seeds for cell in cells if cell.difference is not None})
    items = sorted({cell.difference.estimate.n_items for cell in cells if cell.difference is not None})
    with_what = f"{_span(seeds)} seeds" + (f" and {_span(items)} items" if items[-1] else "")
    size = f"{low} points" if low == high else f"{low} to {high} points, depending on the column,"
    return [
        f"With {with_what}, a true difference of {size} would be significant with {POWER:.0%} probability. Smaller "
        "differences would often be missed."
    ]


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def _content_blind(comparison: Comparison) -> list[str]:
    """What the best rule that never reads the text gets, where a trained method does not beat it clearly."""
    blind = [row for row in comparison.rows if row.content_blind]
    trained = [row for row in comparison.rows if not row.content_blind]
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
