"""What the first table of the report says, from differences that are chosen."""

import itertools
import math
from dataclasses import replace

import pytest

from rm_methods.comparison.cost_figure import MAX_NAMES, named, spread, write_cost_figure
from rm_methods.comparison.result import Column, Comparison, Cost, VariantRow
from rm_methods.html_report.glance import WIDTH, glances, relative_cost, verdict_word
from rm_methods.statistics.cell import Cell, Difference
from rm_methods.statistics.intervals import Estimate


def estimate(mean, half=0.02):
    return Estimate(mean, mean - half, mean + half, None, "seeds and items", 5, 100, 100)


def row(variant, cell, *, role="trained", tokens=1000.0):
    return VariantRow(
        variant=variant,
        method=variant,
        title=variant.upper(),
        role=role,
        seeds=(0, 1, 2),
        n_models=3,
        seed_free=False,
        scalar_reward=True,
        cost=Cost(tokens=tokens),
        cells=(cell,),
    )


def cell(mean, difference, verdict):
    compared = Difference(estimate(difference), 0.01, tested=True, pairing="same seed")
    return Cell(estimate(mean), compared, 0.01, verdict)


def made_comparison(*rivals):
    base = row("base", Cell(estimate(0.7), verdict="reference"))
    return Comparison((Column("world", "accuracy", "World"),), (base, *rivals), "base", detectable=(0.05,))


def test_rows_are_ordered_by_their_difference_below_the_reference_and_lines_come_last():
    comparison = made_comparison(
        row("small", cell(0.72, 0.02, "not significant")),
        row("blind", cell(0.9, 0.2, "not tested"), role="content_blind"),
        row("large", cell(0.8, 0.1, "significant")),
        row("bad", cell(0.6, -0.1, "significant")),
    )
    (glance,) = glances(comparison)
    assert [(r.label, r.verdict) for r in glance.rows] == [
        ("BASE", "reference"),
        ("LARGE", "better"),
        ("SMALL", "not told apart"),
        ("BAD", "worse"),
        ("BLIND", "not tested"),
    ]
    assert glance.detectable == "5.0"


def test_the_axis_has_zero_in_the_middle_and_equal_steps():
    comparison = made_comparison(row("up", cell(0.8, 0.1, "significant")), row("down", cell(0.6, -0.1, "significant")))
    (glance,) = glances(comparison)
    bars = {r.label: r.bar for r in glance.rows}
    assert glance.zero == WIDTH / 2
    assert bars["UP"].dot - glance.zero == pytest.approx(glance.zero - bars["DOWN"].dot)
    # The interval of ±2 points is a fifth of the difference of 10 points.
    assert bars["UP"].high - bars["UP"].dot == pytest.approx((bars["UP"].dot - glance.zero) / 5)
    assert 0 < bars["DOWN"].low < bars["UP"].high < WIDTH
    positions = {text: position for position, text in glance.ticks}
    assert positions["+10"] == pytest.approx(bars["UP"].dot)


def test_an_interval_beyond_the_axis_is_cut_and_says_so():
    wide = cell(0.8, 0.1, "not significant")
    wide = replace(wide, difference=replace(wide.difference, estimate=estimate(0.1, half=3.0)))
    bar = glances(made_comparison(row("wide", wide)))[0].rows[1].bar
    assert (bar.low, bar.high, bar.beyond) == (0.0, WIDTH, "")


def test_a_line_far_from_the_methods_is_an_arrowhead_at_the_end_of_the_axis():
    comparison = made_comparison(
        row("near", cell(0.72, 0.02, "not significant")),
        row("blind", cell(0.98, 0.28, "not tested"), role="content_blind"),
        row("low", cell(0.1, -0.6, "not tested"), role="content_blind"),
    )
    bars = {r.label: r.bar for r in glances(comparison)[0].rows}
    assert (bars["BLIND"].beyond, bars["BLIND"].low, bars["LOW"].beyond, bars["NEAR"].beyond) == (
        "right",
        None,
        "left",
        "",
    )
    assert bars["BLIND"].dot <= WIDTH


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (None, "no result"),
        (cell(math.nan, 0.1, "significant"), "no result"),
        (cell(0.7, 0.1, "not enough evidence"), "too few runs"),
        (cell(0.7, 0.1, "not tested"), "not tested"),
    ],
)
def test_words_of_cells_without_a_verdict(made, word):
    assert verdict_word(made) == word


def test_costs_are_relative_to_the_reference_and_unknown_without_tokens():
    base = row("base", None, tokens=1000.0)
    assert relative_cost(row("more", None, tokens=1460.0), base) == "1.5×"
    assert relative_cost(row("much", None, tokens=12_300.0), base) == "12×"
    assert relative_cost(row("free", None, tokens=None), base) == ""
    assert relative_cost(row("blind", None, role="content_blind"), base) == ""


def test_without_a_reference_nothing_is_shown():
    comparison = made_comparison()
    assert glances(replace(comparison, reference=None)) == []


def test_the_cost_figure_needs_the_cost_of_the_reference_and_of_another_row(tmp_path):
    rivals = (row("more", cell(0.8, 0.1, "significant")), row("less", cell(0.6, -0.1, "significant")))
    comparison = made_comparison(*rivals)
    assert write_cost_figure(comparison, [tmp_path / "cost.svg"])
    assert (tmp_path / "cost.svg").exists()
    without_cost = replace(comparison.rows[0], cost=Cost(tokens=None))
    unknown = replace(comparison, rows=(without_cost, *rivals))
    assert not write_cost_figure(unknown, [tmp_path / "unknown.svg"])
    assert not write_cost_figure(made_comparison(), [tmp_path / "alone.svg"])


def test_the_cost_figure_names_the_reference_and_the_best_of_many():
    places = [(1.0, float(number), f"m{number}") for number in range(-50, 50)]
    labels = [label for _, _, label in named(places, "m-7")]
    assert labels == ["m-7", *(f"m{number}" for number in range(49, 49 - MAX_NAMES + 1, -1))]


def test_labels_move_apart_as_little_as_possible():
    assert spread([], 1.0) == []
    assert spread([0.0, 3.0], 1.0) == [0.0, 3.0]
    # Three equal heights: the middle one stays.
    assert spread([2.0, 2.0, 2.0], 1.0) == [1.0, 2.0, 3.0]
    moved = spread([0.0, 0.1, 0.2, 5.0], 1.0)
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(moved))
