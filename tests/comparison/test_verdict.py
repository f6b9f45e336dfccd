"""The sentences below a table, and the ranks that they stand beside."""

import re

import numpy as np
import pytest
from scipy import stats

from rm_methods.comparison.compare import build_comparison
from rm_methods.comparison.ranks import mean_ranks, rank_table
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import read_runs

SEEDS = tuple(range(6))
FREE = {"seed_free": True, "kind": "content_blind"}


def built(world, runs, **settings):
    columns = [Column(name, "overall", f"on {name}", 0.5) for name in world.benchmarks]
    return build_comparison(read_runs(runs, columns), columns, "bradley_terry", **settings)


def made_world(experiment, n_benchmarks, items=300):
    names = ["iid", "neutral", "reversed", "long", "late"][:n_benchmarks]
    return experiment(benchmarks={name: {"metrics": ["overall"], "items": items} for name in names})


def test_one_column_tells_every_difference_with_its_interval(experiment):
    world = made_world(experiment, 1)
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 0.05, SEEDS) + world.add("odin", 1.5, SEEDS)
    runs += world.add("longest", -0.2, (0,), **FREE)
    comparison = built(world, runs)
    found, detectable, blind = comparison.verdict
    number = r"[+-]\d+\.\d"
    interval = rf"{number} \[{number}, {number}\]"
    assert re.fullmatch(
        rf"on iid: better than Bradley-Terry: ODIN {interval}\. Not told apart: Hinge {interval}\.", found
    )
    assert re.match(
        r"With 6 seeds and 300 items, a true difference of \d+\.\d points would be significant with 80%", detectable
    )
    mean = next(row for row in comparison.rows if row.variant == "longest").cells[0].estimate.mean
    assert blind == f"The best content-blind row is Longest response with {100 * mean:.1f} on on iid."


def test_no_difference_is_said_to_be_none_that_was_shown(experiment):
    world = made_world(experiment, 1)
    runs = world.add("bradley_terry", 0.0, SEEDS, seed_spread=0.3) + world.add("hinge", 0.0, SEEDS, seed_spread=0.3)
    first = built(world, runs).verdict[0]
    assert first.startswith("on iid: no method is shown to differ from Bradley-Terry. Differences: Hinge ")


def test_many_columns_give_one_sentence_a_method(experiment):
    world = made_world(experiment, 4)
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 0.0, SEEDS, seed_spread=0.3)
    runs += world.add("odin", 1.5, SEEDS) + world.add("focal", -1.5, SEEDS)
    sentences = built(world, runs).verdict
    assert re.fullmatch(
        r"ODIN is better than Bradley-Terry on all 4 columns \(\+\d.* to \+\d.* points\)\.", sentences[0]
    )
    assert sentences[1].startswith("Focal loss is worse than Bradley-Terry on all 4 columns (-")
    assert sentences[2] == "Not told apart from Bradley-Terry on any column: Hinge."


def test_without_enough_seeds_no_test_is_claimed(experiment):
    world = made_world(experiment, 1)
    runs = world.add("bradley_terry", 0.0, (0, 1)) + world.add("odin", 3.0, (0, 1))
    assert built(world, runs).verdict == (
        "No test against Bradley-Terry was possible. A test needs at least three seeds of both methods, and scores "
        "that vary.",
    )
    once = [run for run in runs if "seed0" in str(run.summary)]
    assert "Bradley-Terry is a single model here" in built(world, once).verdict[0]


def test_the_correction_may_count_the_whole_table(experiment):
    world = made_world(experiment, 4)
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 0.2, SEEDS) + world.add("odin", 0.4, SEEDS)
    by_column, by_table = built(world, runs), built(world, runs, correction="table")
    raw = [cell.difference.p_value for row in by_table.rows[1:] for cell in row.cells]
    smallest = min(cell.p_holm for row in by_table.rows[1:] for cell in row.cells)
    assert smallest == pytest.approx(8 * min(raw))
    assert min(cell.p_holm for row in by_column.rows[1:] for cell in row.cells) <= 2 * min(raw) + 1e-12
    assert all(a > b for a, b in zip(by_table.detectable, by_column.detectable, strict=True))
    assert any("over the whole table" in note for note in by_table.notes)
    assert any("over the trained methods of the column" in note for note in by_column.notes)


def test_runs_of_equal_weights_are_one_model(experiment):
    world = made_world(experiment, 1)
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 0.0, SEEDS)
    runs += world.add("joint_encoder", 2.0, SEEDS, seed_spread=0.0, weights_hash="same")
    comparison = built(world, runs)
    row = comparison.rows[2]
    assert (len(row.seeds), row.n_models, row.cells[0].verdict) == (6, 1, "not enough evidence")
    assert comparison.best_rows(0) <= {0, 1}
    assert any(
        note == "Runs of equal weights count as one model: Joint encoder (6 seeds)." for note in comparison.notes
    )


# --- ranks
# ----------------------------------------------------------------------------------------------------------------------


def test_mean_ranks_by_hand():
    """Two columns, three variants, one seed: ranks 1, 2, 3 and 1.5, 1.5, 3."""
    values = np.array([[[0.9], [0.8], [0.1]], [[0.5], [0.5], [0.4]]])
    assert mean_ranks(values)[:, 0].tolist() == [1.25, 1.75, 3.0]


def columns_of(values_CVS):
    return [{f"v{v}": dict(enumerate(seeds)) for v, seeds in enumerate(column)} for column in values_CVS]


def test_rank_table_is_the_analysis_of_variance_of_ranks_with_tukeys_range():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 4, 6)) + np.array([0.0, 0.2, 3.0, 6.0])[:, None]
    table = rank_table(["v0", "v1", "v2", "v3"], columns_of(values))
    ranks = mean_ranks(values)
    residual = ranks - ranks.mean(axis=1, keepdims=True) - ranks.mean(axis=0) + ranks.mean()
    mean_square = (residual**2).sum() / 15
    assert table.critical_difference == pytest.approx(
        stats.studentized_range.ppf(0.95, 4, 15) * np.sqrt(mean_square / 6), rel=1e-6
    )
    assert [rank.variant for rank in table.ranks][:2] == ["v3", "v2"]
    best = table.ranks[0]
    assert best.low == max(1.0, best.mean - stats.t.ppf(0.975, 15) * np.sqrt(mean_square / 6))
    assert table.groups == ((2, 3),)  # only v0 and v1 are not told apart


def test_ranks_need_four_columns_and_three_common_seeds():
    values = np.random.default_rng(0).normal(size=(4, 2, 3))
    assert rank_table(["v0", "v1"], columns_of(values)) is not None
    assert rank_table(["v0", "v1"], columns_of(values[:3])) is None
    assert rank_table(["v0", "v1"], columns_of(values[:, :, :2])) is None
    assert rank_table(["v0"], columns_of(values)) is None
    values[0, 0, 0] = np.nan
    assert rank_table(["v0", "v1"], columns_of(values)) is None
