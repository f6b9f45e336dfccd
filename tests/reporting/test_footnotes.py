"""Footnotes on differences, of cells made by hand."""

from __future__ import annotations

from rm_methods.reporting.footnotes import NotedRow, TableWords, difference_notes
from tests.comparison.made import made_cell

REFERENCE = NotedRow("Bradley-Terry", "trained", 3, False, (None, None))


def notes_of(*rows: tuple[str, float, float]) -> list[str]:
    """The notes on an interval without 0, of rows (verdict, first difference, second difference), each ±0.012."""
    noted = [
        NotedRow(f"M{k}", "trained", 3, False, (made_cell(first, verdict=verdict), made_cell(second, verdict=verdict)))
        for k, (verdict, first, second) in enumerate(rows)
    ]
    notes = difference_notes([REFERENCE, *noted], REFERENCE, ("neutral", "cue"), "the whole table", TableWords())
    return [note for note in notes if note.startswith("The interval leaves out 0")]


def test_an_interval_without_0_that_is_not_significant_is_explained():
    assert notes_of(("not significant", 0.02, 0.005), ("not significant", -0.02, 0.013)) == [
        "The interval leaves out 0, but the difference is not significant: the interval is for one difference alone, "
        "and Holm's correction over the whole table asks for more. neutral: M0, M1; cue: M1."
    ]


def test_other_intervals_are_not_explained():
    assert notes_of(("not significant", 0.005, -0.011), ("significant", 0.02, -0.02)) == []
    assert notes_of(("not tested", 0.02, 0.02)) == []
