"""One column: roles, tests, the jackknife of combinations, and what could have been detected."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rm_methods.statistics.cell import least_detectable, with_verdicts
from rm_methods.statistics.column import VariantValues, column_cells, detectable_difference, role_of, seed_pools
from rm_methods.statistics.corrections import holm
from rm_methods.statistics.designs import item_design

N_ITEMS = 200
DESIGN = item_design(["all"] * N_ITEMS, [1.0] * N_ITEMS)


def runs(accuracy, seeds=(0, 1, 2), spread=0.02, number=0, **settings):
    rng = np.random.default_rng(number)
    by_seed = {}
    for seed in seeds:
        share = accuracy + rng.normal(0, spread)
        by_seed[seed] = (rng.random(N_ITEMS) < share).astype(float)
    return VariantValues(by_seed, **settings)


def column(**variants):
    return with_verdicts(column_cells(variants, "reference", DESIGN))


def test_trained_rivals_are_tested_and_others_are_lines_to_read_against():
    cells = column(
        reference=runs(0.6),
        better=runs(0.9, number=1),
        equal=runs(0.6, number=2),
        short=runs(0.9, seeds=(0, 1), number=3),
        ensemble=runs(0.9, seeds=(0,), number=4, role="combined"),
        longest=runs(0.3, seeds=(0,), number=5, role="content_blind", seed_free=True),
        random=runs(0.5, number=6, role="content_blind"),
    )
    assert {name: cell.verdict for name, cell in cells.items()} == {
        "reference": "reference",
        "better": "significant",
        "equal": "not significant",
        "short": "not enough evidence",
        "ensemble": "not tested",
        "longest": "not tested",
        "random": "not tested",
    }
    assert [name for name, cell in cells.items() if cell.tested] == ["better", "equal"]
    p = [cells[name].difference.p_value for name in ("better", "equal")]
    assert [cells[name].p_holm for name in ("better", "equal")] == pytest.approx(holm(p))
    for name in ("short", "ensemble", "longest", "random"):
        assert math.isnan(cells[name].difference.p_value)
        assert math.isnan(cells[name].p_holm)
        assert cells[name].difference.estimate.mean == pytest.approx(
            cells[name].estimate.mean - cells["reference"].estimate.mean, abs=0.08
        )


def test_the_pool_holds_the_trained_variants_of_several_runs_only():
    trained = {"reference": runs(0.6), "rival": runs(0.7, number=1)}
    others = {
        "longest": runs(0.3, seeds=(0,), role="content_blind", seed_free=True),
        "random": runs(0.5, role="content_blind", spread=0.4),
        "ensemble": runs(0.9, seeds=(0,), role="combined"),
        "once": runs(0.9, seeds=(0,)),
    }
    assert seed_pools(trained | others, DESIGN) == seed_pools(trained, DESIGN)


def test_moderation_takes_the_luck_from_a_small_seed_variance():
    """Three seeds that agree by luck have no variance; the pool of the column gives them some.

    With one other variant the pool has 4 degrees of freedom and counts for 2; with seven it counts for all 4.
    """
    lucky = np.zeros(N_ITEMS)
    lucky[:120] = 1
    values = {"reference": runs(0.6, spread=0.1), "lucky": VariantValues(dict.fromkeys(range(3), lucky))}
    crowd = {f"other{k}": runs(0.6, spread=0.1, number=k) for k in range(10, 16)}
    metrics = {name: list(value.metrics(DESIGN).values()) for name, value in (values | crowd).items()}
    variances = {name: np.var(by_seed, ddof=1) for name, by_seed in metrics.items()}
    assert variances["lucky"] == pytest.approx(0, abs=1e-12)
    in_pair = column(**values)["lucky"].estimate.law
    means = {name: np.mean(by_seed) for name, by_seed in metrics.items()}
    in_units = {name: variances[name] / (means[name] * (1 - means[name])) for name in metrics}
    unit = means["lucky"] * (1 - means["lucky"])
    assert in_pair.seed_variance == pytest.approx((2 * 0 + 2 * unit * in_units["reference"] / 2 / 3) / 4)
    assert in_pair.seed_freedom == 4
    in_company = column(**values, **crowd)["lucky"].estimate.law
    assert in_company.seed_variance == pytest.approx((2 * 0 + 4 * unit * np.mean(list(in_units.values())) / 3) / 6)
    assert in_company.seed_freedom == 6


def test_runs_without_a_common_seed_are_not_moderated_by_the_paired_pool():
    """The pool leaves out what two runs of one seed share; runs of different seeds share nothing."""
    crowd = {f"other{k}": runs(0.6, spread=0.1, number=k) for k in range(10, 16)}
    shifted = runs(0.6, seeds=(7, 8, 9), spread=0.1, number=1)
    reference = runs(0.6, spread=0.1)
    cell = column(reference=reference, shifted=shifted, **crowd)["shifted"]
    law = cell.difference.estimate.law
    pairs = zip(reference.metrics(DESIGN).values(), shifted.metrics(DESIGN).values(), strict=True)
    assert cell.difference.pairing == "order of seeds"
    assert law.seed_variance == pytest.approx(np.var([b - a for a, b in pairs], ddof=1) / 3)
    assert law.seed_freedom == 2


def test_the_jackknife_of_a_combination_by_hand():
    """Metrics 0.5, 0.6, 0.7 without a member each: V = 2/3 * (0.01 + 0 + 0.01) = 1/75 of 2 degrees of freedom."""
    credits = runs(0.6, seeds=(0,)).by_seed[0]
    cell = column_cells(
        {"e": VariantValues({0: credits}, role="combined", left_out={0: 0.5, 1: 0.6, 2: 0.7})}, None, DESIGN
    )["e"]
    assert cell.estimate.basis == "members and items"
    assert cell.estimate.law.seed_variance == pytest.approx(1 / 75)
    assert cell.estimate.law.seed_freedom == 2
    without = column_cells({"e": VariantValues({0: credits}, role="combined")}, None, DESIGN)["e"]
    assert (without.estimate.basis, without.estimate.law.seed_variance) == ("items", 0.0)


def test_a_combination_is_compared_with_the_mean_of_the_reference_runs():
    """Of the reference's own members, the jackknife leaves the same run out on both sides."""
    reference = runs(0.6)
    metrics = reference.metrics(DESIGN)
    mean = np.mean(list(metrics.values()))
    shifted = {seed: (3 * mean - metrics[seed]) / 2 + 0.1 for seed in metrics}
    credits = runs(0.7, seeds=(0,), number=9).by_seed[0]
    cells = column_cells(
        {"reference": reference, "e": VariantValues({0: credits}, role="combined", left_out=shifted)},
        "reference",
        DESIGN,
    )
    difference = cells["e"].difference
    assert difference.estimate.mean == pytest.approx(credits.mean() - mean, abs=1e-12)
    assert difference.estimate.law.seed_variance == pytest.approx(0, abs=1e-12)  # always 0.1 above the rest
    assert (difference.pairing, difference.estimate.basis) == ("mean of runs", "members and items")
    unknown = column_cells(
        {"reference": reference, "e": VariantValues({0: credits}, role="combined")}, "reference", DESIGN
    )
    assert math.isnan(unknown["e"].difference.estimate.low)


def test_a_single_trained_run_gets_a_difference_and_no_interval():
    cells = column(reference=runs(0.6), once=runs(0.9, seeds=(0,), number=1), third=runs(0.6, number=2))
    assert cells["once"].difference.estimate.mean > 0.2
    assert math.isnan(cells["once"].difference.estimate.low)
    assert cells["once"].verdict == "not enough evidence"


def test_least_detectable_difference_is_found_with_80_percent():
    """Simulated tables of two methods whose true difference is the detectable one of the first table."""
    rng = np.random.default_rng(0)

    def table(shift):
        difficulty = rng.normal(0, 0.5, N_ITEMS)
        values = {}
        for name, mean in (("reference", 0.0), ("rival", shift)):
            seeds = {s: mean + rng.normal(0, 0.05) + difficulty + rng.normal(0, 0.3, N_ITEMS) for s in range(6)}
            values[name] = VariantValues(seeds)
        return with_verdicts(column_cells(values, "reference", DESIGN))

    detectable = np.mean([detectable_difference(table(0.0), 1) for _ in range(40)])
    hits = sum(table(detectable)["rival"].verdict == "significant" for _ in range(300))
    assert 0.7 < hits / 300 < 0.88
    smaller = sum(table(detectable / 2)["rival"].verdict == "significant" for _ in range(300))
    assert smaller / 300 < 0.5


def test_more_tests_make_less_detectable():
    cell = column(reference=runs(0.6), rival=runs(0.7, number=1))["rival"]
    assert least_detectable(cell.difference, 10) > least_detectable(cell.difference, 1)
    nothing = replace(cell.difference, estimate=replace(cell.difference.estimate, law=None))
    assert math.isnan(least_detectable(nothing, 1))
    assert math.isnan(detectable_difference({}, 1))


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        ("trained", "trained"),
        ("joint", "trained"),
        (None, "trained"),
        ("combined",) * 2,
        ("content_blind",) * 2,
        ("computed",) * 2,
    ],
)
def test_roles(kind, role):
    assert role_of(kind) == role


def test_the_pool_of_shares_counts_in_units_of_share_by_hand():
    """Seeds of the other variant differ by 20 points around chance; those of the reference, near 1, cannot."""
    values = {"reference": runs(0.99, seeds=range(8), spread=0.0)}
    values["unstable"] = runs(0.5, seeds=range(8), spread=0.2, number=1)
    metrics = {name: list(value.metrics(DESIGN).values()) for name, value in values.items()}
    means = {name: np.mean(by_seed) for name, by_seed in metrics.items()}
    unit = {name: mean * (1 - mean) for name, mean in means.items()}
    pooled = np.mean([np.var(metrics[name], ddof=1) / unit[name] for name in values])
    law = column_cells(values, None, DESIGN)["reference"].estimate.law
    own = np.var(metrics["reference"], ddof=1)
    assert law.seed_variance == pytest.approx((7 * own + 4 * pooled * unit["reference"]) / 11 / 8)
    plain = np.mean([np.var(by_seed, ddof=1) for by_seed in metrics.values()])
    assert law.seed_variance < (7 * own + 4 * plain) / 11 / 8 / 10


def test_a_combination_that_is_right_everywhere_has_a_short_interval():
    """Without one of its four members it misses three of 200 items; weights of 1/200 do not sum to 1 exactly."""
    values = VariantValues({0: np.ones(N_ITEMS)}, role="combined", left_out={0: 1.0, 1: 1.0, 2: 1.0, 3: 0.985})
    estimate = column_cells({"ensemble": values}, None, DESIGN)["ensemble"].estimate
    assert estimate.mean == pytest.approx(1.0)
    standard_error = math.sqrt(3 * np.var([1.0, 1.0, 1.0, 0.985]))
    assert 1 - estimate.low == pytest.approx(standard_error * estimate.law.quantile(0.95))
    assert estimate.high == 1.0


def test_a_variant_that_is_right_everywhere_has_the_interval_of_its_items():
    """Wilson's for 200 items, whatever the seeds of the others do: not a point."""
    values = {"reference": runs(0.6), "perfect": VariantValues(dict.fromkeys(range(3), np.ones(N_ITEMS)))}
    estimate = column_cells(values, None, DESIGN)["perfect"].estimate
    assert estimate.mean == pytest.approx(1.0)
    assert estimate.low == pytest.approx(200 / (200 + 1.96**2), abs=1e-4)
    assert estimate.high == 1.0
