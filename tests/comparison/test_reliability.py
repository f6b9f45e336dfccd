from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rm_methods.benchmarks.calibration import calibration
from rm_methods.comparison.reliability import ACROSS, Panel, draw_reliability, reliability_panels, write_reliability
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import read_runs

COLUMNS = [Column("heldout", "test", "held-out", 0.5), Column("rm_bench", "overall", "RM-Bench", 0.5)]


def measured(right: int, wrong: int):
    """Calibration of pairs whose confidence is 0.75."""
    return calibration(np.array([math.log(3)] * right + [-math.log(3)] * wrong))


@pytest.fixture
def runs(experiment):
    """Two trained variants and a content-blind one; `heldout` has a calibration, `rm_bench` none."""
    benchmarks = {
        "heldout": {"metrics": ["test"], "items": 20, "strata": 1},
        "rm_bench": {"metrics": ["overall"], "items": 20, "strata": 1},
    }
    folder = experiment(benchmarks=benchmarks)
    files = folder.add("longest", 0.0, seeds=(0,), seed_free=True, kind="content_blind")
    files += folder.add("hinge", 0.0, seeds=(0, 1)) + folder.add("bradley_terry", 0.0, seeds=(0, 1))
    calibrated = []
    for run in read_runs(files, COLUMNS):
        # Hinge: 10 and 20 pairs of which half and three quarters are right.
        result = measured(5, 5) if (run.variant, run.seed) == ("hinge", 0) else measured(15, 5)
        heldout = {**run.benchmarks["heldout"], "calibration": result}
        calibrated.append(replace(run, benchmarks={**run.benchmarks, "heldout": heldout}))
    return calibrated


def test_a_panel_for_each_trained_variant_on_each_benchmark_of_pairs(runs):
    panels = reliability_panels(runs)
    assert [(panel.label, panel.benchmark) for panel in panels] == [
        ("Hinge", "heldout"),
        ("Bradley-Terry", "heldout"),
    ]
    assert panels[0].n_pairs == 10
    assert panels[0].ece == pytest.approx((0.25 + 0.0) / 2)
    assert panels[1].ece == pytest.approx(0.0)


def test_the_figure_shows_every_run_with_size_and_error(runs):
    axes = draw_reliability(reliability_panels(runs)).axes
    assert len(axes) == 2
    assert axes[0].get_title(loc="left") == "Hinge\nheldout, n = 10"
    diagonal, *lines = axes[0].lines
    assert diagonal.get_xydata().tolist() == [[50, 50], [100, 100]]
    assert [line.get_xydata().ravel().tolist() for line in lines] == [
        pytest.approx([75.0, 50.0]),
        pytest.approx([75.0, 75.0]),
    ]
    assert axes[0].texts[0].get_text().startswith("ECE 0.125 [0.")


def test_each_benchmark_begins_a_row_and_panels_do_not_overlap():
    panels = [Panel(f"v{k}", name, (measured(3, 1),)) for name in ("a", "b") for k in range(ACROSS + 1)]
    figure = draw_reliability(panels)
    boxes = [axis.get_position() for axis in figure.axes]
    assert all(0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)
    rows = sorted({round(box.y0, 6) for box in boxes}, reverse=True)
    assert [sum(round(box.y0, 6) == row for box in boxes) for row in rows] == [ACROSS, 1, ACROSS, 1]
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])


def test_files_are_the_same_bytes_each_time_also_without_a_panel(runs, tmp_path):
    for number, shown in enumerate((runs, [run for run in runs if run.is_line])):
        targets = [[tmp_path / f"{number}{copy}.{suffix}" for suffix in ("png", "svg")] for copy in "ab"]
        for pair in targets:
            write_reliability(shown, pair)
        assert [path.read_bytes() for path in targets[0]] == [path.read_bytes() for path in targets[1]]
    assert "no calibration" in (tmp_path / "1a.svg").read_text()
