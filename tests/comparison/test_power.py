"""Planning from a pilot: variances derived by hand, agreement with the table, and tables simulated at the plan."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, t

from rm_methods.comparison.compare import build_comparison
from rm_methods.comparison.power import SEEDS, ColumnPower, Sources, column_power, column_powers, power, verdict
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import read_runs
from rm_methods.errors import UserError
from rm_methods.statistics.cell import with_verdicts
from rm_methods.statistics.column import VariantValues, column_cells
from rm_methods.statistics.designs import item_design
from rm_methods.statistics.moderation import PRIOR_FREEDOM

OVERALL = Column("rm_bench", "overall", "RM-Bench", 0.5)


def sources(run=0.0, item=0.0, residual=0.0, n_items=100, item_freedom=99.0):
    return Sources(run, run / 2, 4 * run, item, item_freedom, residual, n_items)


def planned(n_tests=1, n_variants=2, **parts):
    return ColumnPower(OVERALL, sources(**parts), rivals=("b",), n_seeds=3, n_tests=n_tests, n_variants=n_variants)


def plain_design(n_items):
    return item_design(["all"] * n_items, [1.0] * n_items)


def values_of(credits):
    """VariantValues of a matrix [items, seeds]."""
    return VariantValues(
        {seed: np.array(column, dtype=np.float64) for seed, column in enumerate(np.transpose(credits))}
    )


class TestSources:
    def test_seeds_and_items_without_residual(self):
        """Differences by seed .75 and -.25, so var = 1/2 and a single run has 1/4; item means .5, .5, .5, -.5 have the
        mean square 1/2, which is 1/2 / (2 seeds x 4 items) of the mean's variance."""
        reference = [[0, 0], [0, 0], [0, 0], [0, 1]]
        rival = [[1, 0], [1, 0], [1, 0], [0, 0]]
        found = column_power(OVERALL, {"a": values_of(reference), "b": values_of(rival)}, "a", plain_design(4)).sources
        assert (found.run, found.item, found.residual) == pytest.approx((1 / 4, 1 / 16, 0))
        # chi squared with one degree of freedom: z^2 of the normal law.
        quantiles = norm.ppf([0.9875, 0.5125]) ** 2
        assert (found.run_low, found.run_high) == pytest.approx(tuple(0.25 / quantiles))

    def test_what_a_run_owes_to_its_items_is_no_seed_variance(self):
        """Sums of squares 3/2 in all, 1 of items, 1/6 of seeds: 1/3 remains with 2 degrees of freedom."""
        rival = [[1, 0], [1, 1], [0, 0]]
        found = column_power(OVERALL, {"a": values_of(np.zeros((3, 2))), "b": values_of(rival)}, "a", plain_design(3))
        assert found.sources.residual == pytest.approx(1 / 6 / 3)
        assert found.sources.item == pytest.approx((1 / 2 - 1 / 6) / (2 * 3))
        assert found.sources.run == pytest.approx(0, abs=1e-12)

    def test_the_median_rival_counts_and_the_pool_holds_all(self):
        generator = np.random.default_rng(0)
        credits = {name: (generator.random((50, 4)) < 0.7).astype(float) for name in "abcd"}
        values = {name: values_of(matrix) for name, matrix in credits.items()}
        found = column_power(OVERALL, values, "a", plain_design(50))
        assert found.rivals == ("b", "c", "d")
        residuals = []
        for name in "bcd":
            difference = credits[name] - credits["a"]
            centered = difference - difference.mean(0) - difference.mean(1, keepdims=True) + difference.mean()
            residuals.append((centered**2).sum() / (49 * 3) / 50)
        assert found.sources.residual == pytest.approx(np.median(residuals))
        means = np.array([matrix.mean(0) for matrix in credits.values()])
        centered = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
        assert found.sources.run == pytest.approx(max((centered**2).sum() / 9 - np.median(residuals) / 2, 0))


class TestDetectable:
    def test_seeds_alone(self):
        """A run's sd of 2 points and 5 seeds: the standard error is 2 sqrt(2/5), with 4 degrees of freedom."""
        expected = 0.02 * math.sqrt(2 / 5) * (t.ppf(0.975, 4) + t.ppf(0.8, 4))
        assert planned(run=0.0004).detectable(5) == pytest.approx(expected)

    def test_a_table_of_five_methods_moderates_and_corrects(self):
        """4 degrees of freedom of the rival and those of the prior; Holm's first step over 4 tests."""
        freedom = 4 + PRIOR_FREEDOM
        expected = 0.02 * math.sqrt(2 / 5) * (t.ppf(1 - 0.05 / 4 / 2, freedom) + t.ppf(0.8, freedom))
        assert planned(n_tests=4, n_variants=5, run=0.0004).detectable(5) == pytest.approx(expected)

    def test_four_times_the_items_halve_what_items_leave(self):
        column = planned(item=0.0009, item_freedom=math.inf)
        assert column.detectable(3) == pytest.approx(0.03 * (norm.ppf(0.975) + norm.ppf(0.8)))
        assert column.detectable(3, times=4) == pytest.approx(column.detectable(3) / 2)
        assert column.floor(4) == pytest.approx(column.detectable(30, 4))

    def test_residual_shrinks_with_seeds_and_with_items(self):
        column = planned(residual=0.0008)
        assert column.sources.law(4, 2, 2).seed_variance == pytest.approx(0.0008 / 8)

    def test_the_fewest_seeds_are_found(self):
        column = planned(run=0.0009, item=0.0001, residual=0.0001)
        seeds = column.seeds_for(0.05)
        assert column.detectable(seeds) <= 0.05 < column.detectable(seeds - 1)
        low, high = column.seeds_interval(0.05)
        assert low < seeds < high

    def test_no_number_of_seeds_is_enough_where_items_limit(self):
        column = planned(run=0.0001, item=0.0009)
        assert column.seeds_for(0.05) is None
        sentence = verdict([column], 0.05)[0]
        assert "no number of seeds is enough with 100 items, which alone allow 8.5" in sentence
        assert "seeds with 400 items" in sentence
        assert "32 times as many would do" in verdict([planned(run=0.0001, item=0.009)], 0.05)[0]

    def test_more_than_a_thousand_seeds_are_not_counted(self):
        assert "more than 1000 seeds" in verdict([planned(run=1.0)], 0.05)[0]


def written(experiment, n_variants=4, seeds=(0, 1, 2, 3), **settings):
    world = experiment(benchmarks={"rm_bench": {"metrics": ["overall"], "items": 200, "strata": 2}})
    files = []
    for number in range(n_variants):
        files += world.add(f"v{number}", 0.5 + 0.1 * number, seeds, **settings)
    return files


class TestPilot:
    def test_with_two_methods_the_table_says_the_same(self, experiment):
        runs = read_runs(written(experiment, 2, seed_spread=0.4), [OVERALL])
        column = column_powers(runs, [OVERALL], "v0")[0]
        assert column.detectable(4) == pytest.approx(build_comparison(runs, [OVERALL], "v0").detectable[0], rel=1e-6)

    def test_with_four_methods_the_table_says_nearly_the_same(self, experiment):
        """The table moderates each method's variance, the plan takes the pooled one."""
        runs = read_runs(written(experiment, seed_spread=0.6), [OVERALL])
        column = column_powers(runs, [OVERALL], "v0")[0]
        assert column.n_tests == 3
        assert column.sources.run > 0
        assert column.detectable(4) == pytest.approx(build_comparison(runs, [OVERALL], "v0").detectable[0], rel=0.1)

    def test_a_seed_variance_below_what_items_cause_is_luck_that_the_plan_does_not_use(self):
        """Every item is right under one seed of each method only, so the runs' means are equal."""
        values = {"a": values_of(np.eye(4)), "b": values_of(np.roll(np.eye(4), 1, axis=0))}
        column = replace(column_power(OVERALL, values, "a", plain_design(4)), n_tests=1, n_variants=2)
        assert column.sources.run == 0
        assert column.sources.residual > 0
        assert column.sources.law(4, 1, 2).seed_variance == pytest.approx(column.sources.residual / 4)

    def test_files_and_words(self, experiment, tmp_path):
        runs = read_runs(written(experiment), [OVERALL])
        result = power(runs, [OVERALL], "v0", tmp_path / "power", difference=0.1)
        assert result.text.startswith("To see 10 points with 80% probability on RM-Bench:")
        assert max(map(len, result.text.splitlines())) <= 80
        assert {path.name for path in (tmp_path / "power").iterdir()} == {
            "power.txt", "power.md", "power.csv", "power.png", "power.svg",
        }  # fmt: skip
        with (tmp_path / "power" / "power.csv").open() as file:
            records = list(csv.DictReader(file))
        assert len(records) == 3 * len(SEEDS)
        assert float(records[0]["detectable_difference"]) == result.columns[0].detectable(3)
        assert records[-1]["n_items"] == "800"
        assert "| RM-Bench | 400 |" in (tmp_path / "power" / "power.md").read_text()

    def test_of_several_columns_the_first_sentence_names_the_hardest(self):
        hard = replace(planned(run=0.0016), column=replace(OVERALL, heading="hard"))
        easy = replace(planned(run=0.0001), column=replace(OVERALL, heading="easy"))
        first, *rest = verdict([easy, hard], 0.05)
        seeds = hard.seeds_for(0.05)
        assert first == f"To see 5 points with 80% probability on every column: {seeds} seeds (hard needs the most)."
        assert [sentence.split(":")[0] for sentence in rest] == ["easy", "hard"]
        never = replace(planned(item=0.01), column=replace(OVERALL, heading="never"))
        assert "on 2 of 3 columns" in verdict([easy, hard, never], 0.05)[0]

    def test_more_rivals_need_more_seeds(self, experiment):
        runs = read_runs(written(experiment), [OVERALL])
        few, many = (column_powers(runs, [OVERALL], "v0", rivals)[0].detectable(20) for rivals in (3, 13))
        assert many > few

    def test_a_correction_over_the_table_counts_all_columns(self, experiment):
        columns = [OVERALL, Column("rm_bench", "controlled", "controlled")]
        world = experiment(benchmarks={"rm_bench": {"metrics": ["overall", "controlled"], "items": 60}})
        runs = read_runs([file for name in "abc" for file in world.add(name, 0.5)], columns)
        assert [column.n_tests for column in column_powers(runs, columns, "a")] == [2, 2]
        assert [column.n_tests for column in column_powers(runs, columns, "a", correction="table")] == [4, 4]

    @pytest.mark.parametrize(
        ("n_variants", "seeds", "reference", "message"),
        [
            (1, (0, 1, 2), "v0", "at least two trained variants with two seeds each.*v0 3"),
            (3, (0,), "v0", "v0 1, v1 1, v2 1"),
            (2, (0, 1), "v7", "'v7' is not among the variants"),
        ],
    )
    def test_a_pilot_that_is_too_small_is_refused(self, experiment, n_variants, seeds, reference, message):
        runs = read_runs(written(experiment, n_variants, seeds), [OVERALL])
        with pytest.raises(UserError, match=message):
            column_powers(runs, [OVERALL], reference)

    def test_a_reference_of_one_run_is_refused(self, experiment):
        world = experiment()
        files = world.add("a", 0.5, (0,)) + world.add("b", 0.5) + world.add("c", 0.5)
        with pytest.raises(UserError, match=r"'a' is not a trained variant with at least two seeds\..*a 1, b 3, c 3"):
            column_powers(read_runs(files, [OVERALL]), [OVERALL], "a")

    def test_a_column_that_cannot_be_judged_says_why(self, experiment, tmp_path):
        runs = read_runs(written(experiment, 2), [OVERALL])
        values = {name: values_of(np.full((4, 2), np.nan if name == "b" else 1.0)) for name in "ab"}
        undefined = column_power(OVERALL, values, "a", plain_design(4))
        assert undefined.why_not == "the metric is undefined in a run of b"
        equal = {name: values_of(np.ones((4, 2))) for name in "ab"}
        assert "no spread" in column_power(OVERALL, equal, "a", plain_design(4)).why_not
        apart = {"a": values_of(np.eye(4)), "b": VariantValues({7: np.ones(4), 8: np.zeros(4)})}
        assert "shares two seeds with a" in column_power(OVERALL, apart, "a", plain_design(4)).why_not
        assert "undefined in a run of a" not in verdict([undefined], 0.05)[0]
        good = column_powers(runs, [OVERALL], "v0")[0]
        assert verdict([undefined, good], 0.05)[1].startswith("RM-Bench: the pilot cannot tell")

    def test_a_metric_without_credits_counts_seeds_only(self):
        values = {name: VariantValues({k: np.array(0.5 + 0.01 * k * number) for k in range(3)}) for number, name in
                  enumerate("ab")}  # fmt: skip
        column = replace(column_power(OVERALL, values, "a", None), n_tests=1, n_variants=2)
        # Differences 0, .01 and .02 have the variance 1e-4, a single run half of it.
        assert column.sources.run == pytest.approx(0.5e-4)
        assert column.times == (1,)
        assert "items" not in verdict([column], 0.05)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "item", "residual", "n_rivals", "wanted"),
    [(0.025, 0.25, 0.3, 4, 0.08), (0.01, 0.4, 0.2, 1, 0.085), (0.04, 0.05, 0.1, 8, 0.06)],
)
def test_a_table_of_the_size_that_is_recommended_finds_the_difference(run, item, residual, n_rivals, wanted):
    """80% of the tables; item and residual are standard deviations of one item's difference of two methods."""
    n_items, n_tables = 200, 400
    parts = sources(run**2, item**2 / n_items, residual**2 / n_items, n_items, n_items - 1)
    column = ColumnPower(OVERALL, parts, n_tests=n_rivals, n_variants=n_rivals + 1)
    n_seeds = column.seeds_for(wanted)
    assert 3 <= n_seeds <= 20
    true_difference = column.detectable(n_seeds)
    design = plain_design(n_items)
    generator = np.random.default_rng(3)
    n_significant = 0
    for _ in range(n_tables):
        by_item = generator.normal(0, item / math.sqrt(2), (n_rivals + 1, n_items, 1))
        by_run = generator.normal(0, run, (n_rivals + 1, 1, n_seeds))
        rest = generator.normal(0, residual / math.sqrt(2), (n_rivals + 1, n_items, n_seeds))
        credits = by_item + by_run + rest
        credits[1] += true_difference
        values = {f"v{k}": values_of(matrix) for k, matrix in enumerate(credits)}
        cells = with_verdicts(column_cells(values, "v0", design))
        n_significant += cells["v1"].verdict == "significant"
    assert n_significant / n_tables == pytest.approx(0.8, abs=0.06)
