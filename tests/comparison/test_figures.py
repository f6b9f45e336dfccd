"""What the figure of a comparison draws, read from matplotlib's objects."""

import itertools
import math
from dataclasses import replace

import pytest
from matplotlib.colors import same_color, to_hex

from rm_methods.comparison import marks
from rm_methods.comparison.figures import draw, row_label, write_figures
from rm_methods.reporting.figures import BLUE, GRAY, ORANGE
from rm_methods.statistics.cell import Difference
from tests.comparison.made import made_cell, made_comparison, made_row


def cell_with(mean, difference, reach=0.012, diff_reach=0.02, verdict="not significant", **changes):
    """A cell whose difference to the reference has another size than its mean."""
    cell = made_cell(mean, reach, verdict, **changes)
    estimate = made_cell(difference, diff_reach).estimate if difference is not None else None
    return replace(cell, difference=None if estimate is None else Difference(estimate, 0.01, True, "same seed"))


REFERENCE = made_row("a", [cell_with(0.6, None, verdict="reference")])
BETTER = made_row("b", [cell_with(0.7, 0.1, verdict="significant")])
EQUAL = made_row("c", [cell_with(0.61, 0.01)])
BLIND = made_row("d", [cell_with(0.5, -0.1, verdict="not tested", basis="items")], role="content_blind", n_models=1)


def axis_of(figure, kind, column=0):
    (axis,) = [axis for axis in figure.axes if axis.get_label() == f"{kind} {column}"]
    return axis


def marked(axis):
    """(meaning, x, y) of every mark, top to bottom."""
    lines = [line for line in axis.lines if line.get_label() in marks._MARKS and len(line.get_xdata()) == 1]
    points = [(line.get_label(), float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]
    return sorted(points, key=lambda point: point[2])


def intervals(axis):
    """(meaning, left, right, y) of every interval, top to bottom."""
    lines = [line for line in axis.lines if line.get_label() in marks._INTERVALS]
    spans = [(line.get_label(), *(float(x) for x in line.get_xdata()), float(line.get_ydata()[0])) for line in lines]
    return sorted(spans, key=lambda span: span[3])


def legend_texts(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_values_are_on_the_left_and_differences_on_the_right_of_each_column():
    figure = draw(made_comparison([REFERENCE, BETTER, EQUAL, BLIND], reference="a"))
    assert [axis.get_label() for axis in figure.axes] == ["values 0", "differences 0"]
    values, differences = figure.axes
    assert values.get_position().x1 < differences.get_position().x0
    assert values.get_ylim() == differences.get_ylim()
    assert [x for _, x, _ in marked(values)] == pytest.approx([60, 70, 61, 50])
    assert [x for _, x, _ in marked(differences)] == pytest.approx([10, 1, -10])
    assert [y for _, _, y in marked(differences)] == [1, 2, 3.5]  # half a row before content-blind rows
    assert [span[1:3] for span in intervals(differences)] == [pytest.approx(x) for x in [(8, 12), (-1, 3), (-12, -8)]]


def test_circles_are_filled_only_where_the_difference_is_significant():
    figure = draw(made_comparison([REFERENCE, BETTER, EQUAL, BLIND], reference="a"))
    for kind in ("values", "differences"):
        lines = {line.get_label(): line for line in axis_of(figure, kind).lines}
        assert same_color(lines[marks.SIGNIFICANT].get_markerfacecolor(), BLUE)
        assert same_color(lines[marks.NOT_SIGNIFICANT].get_markerfacecolor(), "white")
        assert same_color(lines[marks.NOT_SIGNIFICANT].get_markeredgecolor(), BLUE)
        assert same_color(lines[marks.CONTENT_BLIND].get_color(), GRAY)


def test_lines_and_band_of_the_reference():
    comparison = made_comparison([REFERENCE, BETTER], reference="a")
    values, differences = draw(comparison).axes
    lines = {}
    for axis in (values, differences):
        upright = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 2]
        lines[axis] = [left for left, right in upright if left == right]
    assert sorted(lines[values]) == pytest.approx([50, 60])  # chance and reference
    assert lines[differences] == [0]
    (band,) = differences.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-4.1, 4.1))
    assert band.get_label() == marks.DETECTABLE


def test_a_single_model_is_dashed_and_thin_and_a_combination_has_a_square():
    single = made_row("b", [made_cell(0.7, verdict="not enough evidence", basis="items")], n_models=1, seeds=(0,))
    counted = made_row("c", [made_cell(0.7, verdict="not tested", basis="members and items")], role="combined")
    uncounted = made_row("d", [made_cell(0.7, verdict="not tested", basis="items")], role="combined")
    no_credits = made_row("e", [made_cell(0.7, verdict="not significant", basis="seeds")])
    axis = draw(made_comparison([REFERENCE, single, counted, uncounted, no_credits], reference="a")).axes[0]
    assert [span[0] for span in intervals(axis)] == [
        marks.INTERVAL,
        marks.ITEMS_ONLY,
        marks.INTERVAL,
        marks.ITEMS_ONLY,
        marks.SEEDS_ONLY,
    ]
    assert [mark for mark, _, _ in marked(axis)][1:4] == [marks.NOT_TESTED, marks.COMBINATION, marks.COMBINATION]
    styles = {line.get_label(): line for line in axis.lines}
    assert styles[marks.ITEMS_ONLY].get_linewidth() < styles[marks.INTERVAL].get_linewidth()
    assert styles[marks.ITEMS_ONLY].is_dashed()
    assert not styles[marks.INTERVAL].is_dashed()
    assert styles[marks.COMBINATION].get_marker() == "s"


def test_the_legend_names_every_mark_that_occurs_and_no_other():
    assert legend_texts(draw(made_comparison([REFERENCE, BETTER], reference="a"))) == [
        marks.REFERENCE,
        marks.SIGNIFICANT,
        marks.INTERVAL,
        marks.CHANCE,
        marks.DETECTABLE,
    ]
    assert legend_texts(draw(made_comparison([made_row("b", [made_cell(0.7)])]))) == [
        marks.METHOD,
        marks.INTERVAL,
        marks.CHANCE,
    ]
    no_level = made_comparison([made_row("b", [made_cell(0.7, basis="items")], n_models=1)])
    no_level = replace(no_level, columns=tuple(replace(column, chance=None) for column in no_level.columns))
    assert legend_texts(draw(no_level)) == [marks.METHOD, marks.ITEMS_ONLY]


def test_every_artist_that_is_drawn_has_a_meaning_in_the_legend():
    wide = made_row("e", [cell_with(0.7, 0.1, reach=0.9, diff_reach=0.9, verdict="not enough evidence")])
    figure = draw(made_comparison([REFERENCE, BETTER, EQUAL, wide, BLIND], reference="a"))
    for axis in figure.axes:
        labels = {str(artist.get_label()) for artist in (*axis.lines, *axis.patches, *axis.collections)}
        assert labels <= set(legend_texts(figure))


def test_intervals_beyond_the_panel_are_cut_and_get_an_arrow():
    rows = [
        made_row("a", [made_cell(0.6, verdict="reference"), None, made_cell(math.nan, math.nan)]),
        made_row(
            "b", [made_cell(0.7, 0.9, "not enough evidence"), made_cell(0.5, math.nan), made_cell(math.nan, math.nan)]
        ),
        made_row("c", [made_cell(0.65), made_cell(0.5), made_cell(math.nan, math.nan)]),
    ]
    figure = draw(made_comparison(rows, 3, reference="a"))
    axis = figure.axes[0]
    left, right = axis.get_xlim()
    assert left < 50  # chance and every mean are inside, the interval of 90 points is cut
    assert 70 < right < 100
    assert intervals(axis)[1][1:3] == pytest.approx((left, right))
    arrows = [line for line in axis.lines if line.get_label() == marks.BEYOND]
    assert [(line.get_marker(), line.get_xdata()[0]) for line in arrows] == [("<", left), (">", right)]
    assert marks.BEYOND in legend_texts(figure)
    missing = [[text.get_text() for text in axis.texts].count("no result") for axis in figure.axes]
    assert missing == [0, 0, 1, 0, 3, 2]


def test_a_share_near_its_end_keeps_its_axis_within_what_a_share_can_be():
    left, right = marks.panel_limits([made_cell(0.99, 0.2).estimate], [50], bounds=(0, 100))
    assert right == pytest.approx(100 + 0.05 * 50)
    assert left == pytest.approx(50 - 0.05 * 50)


@pytest.mark.parametrize(
    ("n_columns", "with_reference", "per_line"), [(1, True, 1), (3, True, 2), (8, True, 2), (8, False, 4)]
)
def test_the_grid_grows_downward(n_columns, with_reference, per_line):
    rows = [made_row("a", [made_cell(0.6, verdict="reference" if with_reference else "")] * n_columns)]
    rows += [made_row(f"b{k}", [made_cell(0.65)] * n_columns) for k in range(5)]
    figure = draw(made_comparison(rows, n_columns, reference="a" if with_reference else None))
    values = [axis for axis in figure.axes if axis.get_label().startswith("values")]
    assert len(values) == n_columns
    heights = [round(axis.get_position().y0, 6) for axis in values]
    assert len(set(heights)) == math.ceil(n_columns / per_line)
    assert heights == sorted(heights, reverse=True)
    assert figure.get_figwidth() < 10
    labeled = [[label.get_text() for label in axis.get_yticklabels()] for axis in figure.axes]
    assert sum(bool(labels) for labels in labeled) == len(set(heights))


def test_nothing_overlaps_and_nothing_is_smaller_than_7_points():
    long = "interaction_distillation_learning_rate_1e-05"
    rows = [made_row("a", [made_cell(0.6, verdict="reference")] * 8)]
    rows += [
        made_row(f"{long}_{k}", [made_cell(0.65)] * 8, method="x", title="Interaction Distillation") for k in range(29)
    ]
    figure = draw(made_comparison(rows, 8, reference="a"))
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [axis.get_window_extent(renderer) for axis in figure.axes]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
    labels = figure.axes[0].get_yticklabels()
    extents = [label.get_window_extent(renderer) for label in labels]
    assert min(extent.x0 for extent in extents) > 0
    for upper, lower in itertools.pairwise(extents):
        assert upper.y0 > lower.y1 - 2
    (legend,) = figure.legends
    assert not any(legend.get_window_extent(renderer).overlaps(box) for box in boxes)
    assert legend.get_window_extent(renderer).x0 >= 0
    texts = [*labels, *legend.get_texts(), *(text for axis in figure.axes for text in (axis.xaxis.label, *axis.texts))]
    assert min(text.get_fontsize() for text in texts) >= 7


def test_titles_name_seeds_items_and_groups():
    rows = [REFERENCE, made_row("b", [made_cell(0.7, n_seeds=1)]), BLIND]
    comparison = made_comparison(rows, reference="a")
    assert marks.sample_text(comparison, 0) == "1 to 3 seeds, 100 items"
    cell = made_cell(0.7)
    grouped = replace(cell, estimate=replace(cell.estimate, n_items=1327, n_clusters=40))
    assert marks.sample_text(made_comparison([made_row("a", [grouped])]), 0) == "3 seeds, 1,327 items in 40 groups"
    assert "1 to 3 seeds, 100 items" in [text.get_text() for text in draw(comparison).axes[0].texts]


def test_long_labels_are_never_cut():
    label = "interaction_distillation_lr1e-05 (Interaction Distillation)"
    assert row_label(label) == "interaction_distillation_lr1e-05\n(Interaction Distillation)"
    assert row_label("odin_x (ODIN)") == "odin_x (ODIN)"
    assert "".join(row_label("v" * 100 + " (T)").split("\n")) == "v" * 100 + "(T)"


def test_the_reference_is_named_in_bold_and_content_blind_rows_in_gray():
    labels = draw(made_comparison([REFERENCE, BETTER, BLIND], reference="a")).axes[0].get_yticklabels()
    assert [label.get_fontweight() for label in labels] == ["bold", "normal", "normal"]
    assert [to_hex(label.get_color()) for label in labels] == ["#000000", "#000000", GRAY.lower()]


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    comparison = made_comparison([REFERENCE, BETTER, EQUAL, BLIND], reference="a")
    targets = [tmp_path / "c.png", tmp_path / "c.svg"]
    write_figures(comparison, targets)
    first = [target.read_bytes() for target in targets]
    write_figures(comparison, targets)
    assert [target.read_bytes() for target in targets] == first
    assert ORANGE.lower() in targets[1].read_text()
