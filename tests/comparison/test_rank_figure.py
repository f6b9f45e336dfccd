"""What the figure of mean ranks draws, read from matplotlib's objects."""

from dataclasses import replace

import pytest

from rm_methods.comparison import rank_figure
from rm_methods.comparison.rank_figure import draw_ranks, group_lanes, write_rank_figure
from rm_methods.comparison.ranks import MeanRank, RankTable, rank_table
from rm_methods.reporting.figures import BLUE, ORANGE
from tests.comparison.made import made_cell, made_comparison, made_row


@pytest.fixture
def comparison():
    """Three methods; the first two are not told apart, nor are the last two."""
    ranks = (MeanRank("b", 1.5, 1.0, 2.0), MeanRank("a", 2.0, 1.5, 2.5), MeanRank("c", 2.5, 2.0, 3.0))
    rows = [made_row(name, [made_cell(0.6)] * 4, title=f"Method {name}", method=name) for name in "abc"]
    table = RankTable(ranks, 0.75, ((0, 1), (1, 2)), 3, 4)
    return replace(made_comparison(rows, 4, reference="a"), ranks=table)


def lines(figure, label):
    (axis,) = figure.axes
    return [line for line in axis.lines if line.get_label() == label]


def test_a_row_for_each_method_the_best_first(comparison):
    figure = draw_ranks(comparison)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["Method b", "Method a", "Method c"]
    top, bottom = axis.get_ylim()[1], axis.get_ylim()[0]
    assert top < 0 < 2 < bottom
    drawn = [line for line in axis.lines if len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in drawn] == [(1.5, 0), (2.0, 1), (2.5, 2)]
    assert [line.get_color() for line in drawn] == [BLUE, ORANGE, BLUE]
    spans = [line for line in axis.lines if len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1]
    assert [tuple(line.get_xdata()) for line in spans[:3]] == [(1.0, 2.0), (1.5, 2.5), (2.0, 3.0)]


def test_bars_join_methods_that_are_not_told_apart(comparison):
    bars = lines(draw_ranks(comparison), rank_figure.GROUP)
    assert [tuple(round(y) for y in bar.get_ydata()) for bar in bars] == [(0, 1), (1, 2)]
    assert bars[0].get_xdata()[0] != bars[1].get_xdata()[0]
    assert min(bar.get_xdata()[0] for bar in bars) > 1  # beside the panel


def test_the_critical_difference_is_a_bar_of_its_length(comparison):
    figure = draw_ranks(comparison)
    (bar,) = lines(figure, rank_figure.CRITICAL)
    assert tuple(bar.get_xdata()) == (1, 1.75)
    assert "  0.75" in [text.get_text() for text in figure.axes[0].texts]


def test_a_critical_difference_of_more_than_all_ranks_fits(comparison):
    wide = replace(comparison, ranks=replace(comparison.ranks, critical_difference=9.0, groups=((0, 2),)))
    assert draw_ranks(wide).axes[0].get_xlim()[1] > 10


def test_the_legend_names_what_occurs_and_the_caption_the_sample(comparison):
    figure = draw_ranks(comparison)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        rank_figure.REFERENCE,
        rank_figure.INTERVAL,
        rank_figure.GROUP,
        rank_figure.CRITICAL,
    ]
    assert any("4 columns, 3 seeds" in text.get_text() for text in figure.texts)
    apart = replace(comparison, reference=None, ranks=replace(comparison.ranks, groups=()))
    (legend,) = draw_ranks(apart).legends
    assert [text.get_text() for text in legend.get_texts()] == [rank_figure.INTERVAL, rank_figure.CRITICAL]


def test_without_ranks_the_figure_says_what_they_need(comparison):
    figure = draw_ranks(replace(comparison, ranks=None))
    assert not figure.axes
    (text,) = figure.texts
    assert "4 columns and 3 seeds" in text.get_text()
    figure.draw_without_rendering()
    assert figure.bbox.contains(*text.get_window_extent().min)
    assert figure.bbox.contains(*text.get_window_extent().max)


@pytest.mark.parametrize(
    ("groups", "lanes"),
    [
        ((), []),
        (((0, 1),), [0]),
        (((0, 1), (1, 2)), [0, 1]),
        (((0, 1), (1, 2), (2, 3)), [0, 1, 0]),
        (((0, 3), (1, 4), (2, 5), (4, 6)), [0, 1, 2, 0]),
    ],
)
def test_bars_that_share_a_row_have_different_lanes(groups, lanes):
    assert group_lanes(groups) == lanes


def test_thirty_methods_stay_readable():
    names = [f"variant_{k}" for k in range(30)]
    columns = [{name: {s: 0.5 + 0.01 * k + 0.03 * ((k * s + c) % 3) for s in range(5)} for k, name in enumerate(names)}
               for c in range(4)]  # fmt: skip
    comparison = replace(
        made_comparison([made_row(name, [made_cell(0.6)] * 4) for name in names], 4), ranks=rank_table(names, columns)
    )
    figure = draw_ranks(comparison)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    extents = [label.get_window_extent() for label in labels]
    assert not any(upper.overlaps(lower) for upper, lower in zip(extents[::2], extents[1::2], strict=True))
    assert min(extent.x0 for extent in extents) > 0
    bars = lines(figure, rank_figure.GROUP)
    assert bars
    assert max(bar.get_window_extent().x1 for bar in bars) < figure.bbox.x1
    assert min(text.get_fontsize() for text in (*labels, *figure.texts, figure.axes[0].xaxis.label)) >= 7


def test_the_same_ranks_give_the_same_bytes(comparison, tmp_path):
    targets = [tmp_path / "r.png", tmp_path / "r.svg"]
    write_rank_figure(comparison, targets)
    first = [target.read_bytes() for target in targets]
    write_rank_figure(comparison, targets)
    assert [target.read_bytes() for target in targets] == first
    assert "Method b" in targets[1].read_text()
