"""Words that verdicts and tables share: names of methods, numbers with intervals, and what was found in a column."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rm_methods.statistics.cell import POWER, Cell
from rm_methods.statistics.intervals import Estimate

# Headings of tables.
DIFFERENCE = "Difference"
DETECTABLE = "Detectable difference"


def listed(words: Sequence[str]) -> str:
    """A, B and C.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def method_label(variant: str, method: str, title: str) -> str:
    """The method's title without what it has in parentheses; with another variant name before it.

    >>> method_label("odin", "odin", "ODIN (two heads)"), method_label("weak", "odin", "ODIN (two heads)")
    ('ODIN', 'weak (ODIN)')
    """
    short = title.partition(" (")[0]
    return short if variant == method else f"{variant} ({short})"


def verdict_word(verdict: str, mean: float, difference: float) -> str:
    """The verdict of a cell for readers.

    Args:
        verdict: of the cell (see `Cell`).
        mean: of the cell; difference: from the reference; NaN where undefined.

    >>> verdict_word("significant", 0.6, -0.1), verdict_word("not significant", 0.6, 0.1)
    ('worse', 'not told apart')
    """
    if math.isnan(mean):
        return "no result"
    if verdict == "significant" and not math.isnan(difference):
        return "better" if difference > 0 else "worse"
    return {
        "reference": "reference",
        "not significant": "not told apart",
        "not enough evidence": "too few runs",
    }.get(verdict, "not tested")


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign.

    >>> points(0.0213), points(-0.0004)
    ('+2.1', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text


def reach_text(text: str, *, items_only: bool) -> str:
    """Half of an interval behind its value; in parentheses where another training would change the value by more.

    >>> reach_text("1.2", items_only=False), reach_text("1.2", items_only=True)
    (' ±1.2', ' (±1.2)')
    """
    return f" (±{text})" if items_only else f" ±{text}"


def interval_text(estimate: Estimate, number: Callable[[float], str]) -> str:
    """A value with its interval, if it has one: ``+2.1 [-4.8, +9.0]``.

    Args:
        number: how a value is printed, as `points`.
    """
    text = number(estimate.mean)
    return text if math.isnan(estimate.low) else f"{text} [{number(estimate.low)}, {number(estimate.high)}]"


def column_sentence(
    heading: str,
    reference: str,
    cells: Sequence[tuple[str, Cell]],
    number: Callable[[float], str],
    words: tuple[str, str] = ("better", "worse"),
) -> str:
    """All rivals of one column: which differ from the reference, and by how much.

    Args:
        reference: its label.
        cells: label and cell of every tested rival.
        words: what a value above that of the reference is, and one below.
    """
    if not cells:
        return f"{heading}: no test was possible."
    found: dict[str, list[str]] = {"above": [], "below": [], "equal": []}
    for label, cell in cells:
        if cell.difference is not None:
            found[_direction(cell)].append(f"{label} {interval_text(cell.difference.estimate, number)}")
    parts: list[str] = []
    for direction, word in zip(("above", "below"), words, strict=True):
        if found[direction]:
            parts.append(f"{word}{'' if parts else f' than {reference}'}: {'; '.join(found[direction])}")
    if not parts:
        parts.append(f"no method is shown to differ from {reference}")
        parts.append(f"differences: {'; '.join(found['equal'])}")
    elif found["equal"]:
        parts.append(f"not told apart: {'; '.join(found['equal'])}")
    first, *rest = parts
    return f"{heading}: {'. '.join([first, *(part[:1].upper() + part[1:] for part in rest)])}."


def _direction(cell: Cell) -> str:
    if cell.verdict != "significant" or cell.difference is None:
        return "equal"
    return "above" if cell.difference.estimate.mean > 0 else "below"


def no_test_sentence(reference: str, is_single: bool, *, has_rivals: bool) -> str:
    """Why a table has no test.

    Args:
        reference: its label; is_single: it is one model, or no trained one.
        has_rivals: the table has other trained methods.
    """
    why = "A test needs at least three seeds of both methods, and scores that vary."
    if not has_rivals:
        why = "The table has no other trained method."
    elif is_single:
        why = f"{reference} is a single model here: a test needs several trainings of it."
    return f"No test against {reference} was possible. {why}"


def detectable_sentence(size: str, cells: Sequence[Cell], items: str = "items") -> str:
    """What the tests could not have shown.

    Args:
        size: the least detectable difference, with its unit.
        cells: tested, at least one.
        items: what the items are called.
    """
    estimates = [cell.difference.estimate for cell in cells if cell.difference is not None]
    seeds = sorted({estimate.n_seeds for estimate in estimates})
    n_items = sorted({estimate.n_items for estimate in estimates})
    with_what = f"{span(seeds)} seeds" + (f" and {span(n_items)} {items}" if n_items[-1] else "")
    return (
        f"With {with_what}, a true difference of {size} would be significant with {POWER:.0%} probability. Smaller "
        "differences would often be missed."
    )


def span(values: Sequence[int]) -> str:
    """The range of values in rising order: ``5``, or ``1,200 to 3,000``."""
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"
