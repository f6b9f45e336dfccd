"""The words that verdicts share."""

import doctest
import math

from rm_methods.reporting import sentences
from rm_methods.reporting.sentences import column_sentence, detectable_sentence, interval_text, points
from rm_methods.statistics.cell import Cell, Difference
from rm_methods.statistics.intervals import Estimate


def estimate(mean, half=math.nan, seeds=3, items=40):
    return Estimate(mean, mean - half, mean + half, None, "seeds and items", seeds, items, items)


def cell(mean, verdict, seeds=3):
    return Cell(estimate(0.5), Difference(estimate(mean, 0.01, seeds), 0.01, True, "same seed"), 0.02, verdict)


def test_docstrings():
    failed, tried = doctest.testmod(sentences)
    assert tried >= 3
    assert failed == 0


def test_a_value_without_an_interval_stands_alone():
    assert interval_text(estimate(0.02), points) == "+2.0"
    assert interval_text(estimate(0.02, 0.03), points) == "+2.0 [-1.0, +5.0]"


def test_a_column_says_who_is_above_below_and_not_told_apart():
    up, down, same = cell(0.02, "significant"), cell(-0.02, "significant"), cell(0.001, "not significant")
    both = column_sentence("Gap", "B", [("A", up), ("C", down), ("D", same)], points, words=("more", "less"))
    assert both == (
        "Gap: more than B: A +2.0 [+1.0, +3.0]. Less: C -2.0 [-3.0, -1.0]. Not told apart: D +0.1 [-0.9, +1.1]."
    )
    assert column_sentence("Gap", "B", [("C", down)], points) == "Gap: worse than B: C -2.0 [-3.0, -1.0]."
    assert column_sentence("Gap", "B", [("D", same)], points) == (
        "Gap: no method is shown to differ from B. Differences: D +0.1 [-0.9, +1.1]."
    )
    assert column_sentence("Gap", "B", [], points) == "Gap: no test was possible."


def test_what_could_not_be_seen_names_the_size_of_the_study():
    text = detectable_sentence("0.1", [cell(0.0, "", 3), cell(0.0, "", 5)], "prompts")
    assert text.startswith("With 3 to 5 seeds and 40 prompts, a true difference of 0.1 would be significant with 80%")
