"""What the figure of a metric against label noise draws, read from matplotlib's objects."""

from dataclasses import replace

import pytest
from matplotlib.colors import same_color

from rm_methods.comparison import marks
from rm_methods.comparison.noise_figure import draw_noise, write_noise_figure
from rm_methods.config.variants import NoiseLevel
from rm_methods.statistics.cell import Difference
from tests.comparison.made import made_cell, made_comparison, made_row

CLEAN = NoiseLevel(0.0, "symmetric", {})
SYMMETRIC = NoiseLevel(0.2, "symmetric", {})
LENGTH = NoiseLevel(0.2, "length", {})


def level_comparison(reference, method, difference, verdict="not significant", **changes):
    """Bradley-Terry and another method on one level."""
    cell = made_cell(method, verdict=verdict, **changes)
    estimate = replace(made_cell(difference, 0.02).estimate, basis=cell.estimate.basis)
    cell = replace(cell, difference=Difference(estimate, 0.01, True, "same seed"))
    base = replace(made_cell(reference, verdict="reference"), difference=None)
    rows = [
        made_row("bradley_terry", [base], title="Bradley-Terry (base)"),
        made_row("odin", [cell], title="ODIN", n_models=changes.get("n_seeds", 3)),
        made_row("longest", [made_cell(0.5, basis="items")], role="content_blind"),
    ]
    return made_comparison(rows, reference="bradley_terry")


@pytest.fixture
def comparisons():
    return [level_comparison(0.8, 0.79, -0.01), level_comparison(0.6, 0.7, 0.1, "significant")]


def points(axis):
    """(meaning, x, y) of every mark, left to right."""
    drawn = [line for line in axis.lines if line.get_label() in marks._MARKS and len(line.get_xdata()) == 1]
    return sorted(
        [(line.get_label(), float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in drawn],
        key=lambda point: point[1],
    )


def test_the_first_panel_has_the_references_values_and_the_others_differences(comparisons):
    reference, method = draw_noise([CLEAN, SYMMETRIC], comparisons, 0).axes
    assert reference.get_title(loc="left") == "Bradley-Terry"
    assert method.get_title(loc="left") == "ODIN"
    assert points(reference) == [(marks.REFERENCE, 0, pytest.approx(80)), (marks.REFERENCE, 20, pytest.approx(60))]
    assert points(method) == [
        (marks.NOT_SIGNIFICANT, 0, pytest.approx(-1)),
        (marks.SIGNIFICANT, 20, pytest.approx(10)),
    ]
    assert (reference.get_ylabel(), method.get_ylabel()) == ("percent", "difference, points")
    intervals = [line for line in method.lines if line.get_label() == marks.INTERVAL]
    assert [tuple(line.get_ydata()) for line in intervals] == [pytest.approx((-3, 1)), pytest.approx((8, 12))]
    (zero,) = [line for line in method.lines if line.get_label() == marks.REFERENCE]
    assert set(zero.get_ydata()) == {0}


def test_circles_are_filled_where_the_difference_is_significant_on_its_level(comparisons):
    lines = {line.get_label(): line for line in draw_noise([CLEAN, SYMMETRIC], comparisons, 0).axes[1].lines}
    assert same_color(lines[marks.NOT_SIGNIFICANT].get_markerfacecolor(), "white")
    assert not same_color(lines[marks.SIGNIFICANT].get_markerfacecolor(), "white")


def test_the_line_goes_through_the_means_of_its_kind(comparisons):
    method = draw_noise([CLEAN, SYMMETRIC], comparisons, 0).axes[1]
    (line,) = [line for line in method.lines if line.get_label() == marks.ANY_FLIPPED]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 20], pytest.approx([-1, 10]))


def test_two_kinds_of_one_rate_stand_beside_each_other_and_share_the_clean_level(comparisons):
    comparisons.append(level_comparison(0.5, 0.55, 0.05))
    figure = draw_noise([CLEAN, SYMMETRIC, LENGTH], comparisons, 0)
    xs = [x for _, x, _ in points(figure.axes[1])]
    assert xs[0] == 0
    assert len(xs) == 3
    assert 19 < xs[1] < 20 < xs[2] < 21
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert list(lines[marks.ANY_FLIPPED].get_ydata()) == pytest.approx([-1, 10])
    assert list(lines[marks.LONGER_FLIPPED].get_ydata()) == pytest.approx([-1, 5])
    assert lines[marks.LONGER_FLIPPED].is_dashed()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {marks.ANY_FLIPPED, marks.LONGER_FLIPPED} <= set(texts)


def test_a_rate_that_only_one_kind_has_stays_at_its_share(comparisons):
    comparisons.append(level_comparison(0.5, 0.55, 0.05))
    figure = draw_noise([CLEAN, SYMMETRIC, replace(LENGTH, rate=0.3)], comparisons, 0)
    assert [x for _, x, _ in points(figure.axes[1])] == pytest.approx([0, 20, 30])


def test_the_legend_names_what_occurs_and_the_caption_the_sample(comparisons):
    figure = draw_noise([CLEAN, SYMMETRIC], comparisons, 0)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        marks.REFERENCE,
        marks.SIGNIFICANT,
        marks.NOT_SIGNIFICANT,
        marks.INTERVAL,
        marks.CHANCE,
        marks.ANY_FLIPPED,
    ]
    assert {"Benchmark 0", "3 seeds, 100 items at each level"} <= {text.get_text() for text in figure.texts}
    comparisons[1] = level_comparison(0.6, 0.7, 0.1, n_seeds=1)
    figure = draw_noise([CLEAN, SYMMETRIC], comparisons, 0)
    sample = "0% flips: 3 seeds, 100 items; 20% flips: 1 to 3 seeds, 100 items"
    assert sample in {text.get_text() for text in figure.texts}


def test_without_a_reference_every_panel_has_values(comparisons):
    alone = [replace(comparison, reference=None) for comparison in comparisons]
    figure = draw_noise([CLEAN, SYMMETRIC], alone, 0)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Bradley-Terry", "ODIN", "longest"]
    assert [y for _, _, y in points(figure.axes[1])] == pytest.approx([79, 70])
    assert len({axis.get_ylim() for axis in figure.axes}) == 1


def test_a_variant_that_only_a_later_level_has_gets_its_panel(comparisons):
    comparisons[0] = replace(comparisons[0], rows=(comparisons[0].rows[0],))
    _, method = draw_noise([CLEAN, SYMMETRIC], comparisons, 0).axes
    assert [x for _, x, _ in points(method)] == [20]


def test_one_level_draws_its_marks(comparisons):
    figure = draw_noise([CLEAN], comparisons[:1], 0)
    assert [len(points(axis)) for axis in figure.axes] == [1, 1]


def test_many_panels_do_not_overlap():
    rows = [made_row("a", [replace(made_cell(0.6, verdict="reference"), difference=None)])]
    names = [f"interaction_distillation_with_another_setting_{k}" for k in range(9)]
    rows += [made_row(name, [made_cell(0.65)], method="x", title="Interaction Distillation") for name in names]
    figure = draw_noise([CLEAN, SYMMETRIC], [made_comparison(rows, reference="a")] * 2, 0)
    figure.draw_without_rendering()
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
    assert not any(figure.legends[0].get_window_extent().overlaps(box) for box in boxes)


def test_the_same_levels_give_the_same_bytes(comparisons, tmp_path):
    targets = [tmp_path / "n.png", tmp_path / "n.svg"]
    write_noise_figure([CLEAN, SYMMETRIC], comparisons, 0, targets)
    first = [target.read_bytes() for target in targets]
    write_noise_figure([CLEAN, SYMMETRIC], comparisons, 0, targets)
    assert [target.read_bytes() for target in targets] == first
