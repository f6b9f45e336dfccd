"""The compare stage on a synthetic experiment: files, verdicts, and runs that must be refused."""

import csv
import math

import pandas as pd
import pytest

from rm_methods.comparison.compare import build_comparison, compare
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import read_runs
from rm_methods.errors import DataError, UserError
from rm_methods.methods.registry import load_method_card

OVERALL = Column("rm_bench", "overall", "RM-Bench", 0.5)
FREE = {"seed_free": True, "cost": {"tokens": 0, "wall_seconds": 0.0, "peak_memory_bytes": 0}}


def built(runs, columns=(OVERALL,), reference=None):
    return build_comparison(read_runs(runs, columns), columns, reference)


def rows_by_name(comparison):
    return {row.variant: row for row in comparison.rows}


def test_writes_every_file_and_returns_the_terminal_table(experiment, tmp_path):
    world = experiment(benchmarks={"rm_bench": {"metrics": ["overall"], "items": 300}})
    runs = (
        world.add("bradley_terry", 0.0)
        + world.add("interaction_distillation", 2.0)
        + world.add("longest", -0.5, (0,), **FREE)
    )
    result = compare(runs, [OVERALL], "bradley_terry", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["contamination.csv"]
        + [f"table.{suffix}" for suffix in ("txt", "md", "csv", "tex")]
        + [f"{stem}.{suffix}" for stem in ("comparison", "ranks", "reliability") for suffix in ("png", "svg")]
    )
    assert result.text == (tmp_path / "out" / "table.txt").read_text()
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "Interaction Distillation" in (tmp_path / "out" / "comparison.svg").read_text()
    records = {r["variant"]: r for r in csv.DictReader((tmp_path / "out" / "table.csv").open())}
    assert records["interaction_distillation"]["verdict"] == "significant"
    assert records["bradley_terry"]["verdict"] == "reference"
    assert float(records["interaction_distillation"]["diff_low"]) > 0


def test_mean_is_the_mean_of_the_metrics_and_difference_is_of_the_means(experiment, edit_json):
    world = experiment()
    runs = world.add("a", 0.5) + world.add("b", 1.0)
    rows = rows_by_name(built(runs, reference="a"))
    values = [r.metric(OVERALL) for r in read_runs(runs, [OVERALL])]
    assert rows["a"].cells[0].estimate.mean == pytest.approx(sum(values[:3]) / 3, abs=1e-12)
    assert rows["b"].cells[0].difference.estimate.mean == pytest.approx(
        (sum(values[3:]) - sum(values[:3])) / 3, abs=1e-12
    )


def test_content_blind_rows_stand_last_and_order_is_kept(experiment):
    world = experiment()
    runs = (
        world.add("longest", -0.5, (0,), **FREE)
        + world.add("zeta", 0.5)
        + world.add("alpha", 0.5)
        + world.add("random", 0.0)
    )
    comparison = built(runs)
    assert [row.variant for row in comparison.rows] == ["zeta", "alpha", "longest", "random"]
    assert [row.content_blind for row in comparison.rows] == [False, False, True, True]


def test_computed_rows_are_lines_and_not_rivals(experiment):
    """The verdict speaks of content-blind rows without them, and nothing is tested against or ranked with them."""
    world = experiment(benchmarks={"rm_bench": {"metrics": ["overall"], "items": 400}})
    computed = {"seed_free": True, "kind": "computed"}
    runs = world.add("gold", 9.0, (0,), **computed) + world.add("a", 0.5) + world.add("longest", -0.5, (0,), **FREE)
    comparison = built(runs, reference="a")
    rows = rows_by_name(comparison)
    assert [row.variant for row in comparison.rows] == ["a", "gold", "longest"]
    assert rows["gold"].cells[0].verdict == "not tested"
    assert not rows["gold"].content_blind
    assert comparison.best_rows(0) == {0}
    assert "gold" not in " ".join(comparison.verdict)


def test_two_seeds_are_not_enough_evidence(experiment):
    world = experiment(benchmarks={"rm_bench": {"metrics": ["overall"], "items": 400}})
    runs = world.add("a", 0.0, seed_spread=0.0) + world.add("b", 4.0, (0, 1), seed_spread=0.0)
    comparison = built(runs, reference="a")
    cell = rows_by_name(comparison)["b"].cells[0]
    assert cell.difference.estimate.low > 0
    assert math.isnan(cell.difference.p_value)
    assert cell.verdict == "not enough evidence"
    assert math.isnan(cell.p_holm)
    assert any("fewer than 3 pairs of runs" in note and "b (2)" in note for note in comparison.notes)


def test_holm_counts_the_variants_of_the_column(experiment):
    world = experiment()
    runs = world.add("a", 0.0) + world.add("b", 0.4) + world.add("c", 0.6) + world.add("d", 0.2, (0,))
    rows = rows_by_name(built(runs, reference="a"))
    p = sorted((rows[v].cells[0].difference.p_value, v) for v in "bc")
    assert rows[p[0][1]].cells[0].p_holm == pytest.approx(min(1.0, 2 * p[0][0]))
    assert math.isnan(rows["d"].cells[0].p_holm)


def test_a_variant_without_a_benchmark_has_no_cell_there(experiment):
    world = experiment(benchmarks={n: {"metrics": ["overall"], "items": 40} for n in ("rm_bench", "judge_bench")})
    columns = [OVERALL, Column("judge_bench", "overall", "JudgeBench")]
    runs = world.add("a", 0.5, without=("judge_bench",)) + world.add("b", 0.5)
    rows = rows_by_name(built(runs, columns, reference="a"))
    assert rows["a"].cells[1] is None
    assert rows["b"].cells[1].difference is None
    assert rows["b"].cells[1].verdict == ""


def test_undefined_metric_is_kept_as_undefined(experiment, edit_json):
    world = experiment()
    runs = world.add("a", 0.5, (0,)) + world.add("b", 0.5, (0,))
    edit_json(runs[0].metrics, lambda m: m["benchmarks"]["rm_bench"]["metrics"].update(overall=None))
    frame = pd.read_parquet(runs[0].credits)
    frame["credit"] = math.nan
    frame.to_parquet(runs[0].credits)
    rows = rows_by_name(built(runs, reference="b"))
    assert math.isnan(rows["a"].cells[0].estimate.mean)
    assert rows["a"].cells[0].verdict == "not enough evidence"


def test_a_combination_of_runs_is_one_run_and_not_one_without_seed(experiment):
    """However large its effect: of other runs it would be another model."""
    world = experiment()
    runs = world.add("bradley_terry", 0.0) + world.add(
        "ensemble", 4.0, (0,), seed_free=True, kind="combined", settings={}
    )
    comparison = built(runs, reference="bradley_terry")
    cell = rows_by_name(comparison)["ensemble"].cells[0]
    assert cell.difference.estimate.mean > 0.3
    assert (cell.verdict, cell.difference.pairing) == ("not tested", "mean of runs")
    assert math.isnan(cell.difference.p_value)
    assert any(note.startswith("Not tested: Ensemble.") for note in comparison.notes)


def test_costs_say_which_runs_they_leave_out(experiment):
    world = experiment()
    nothing = {"tokens": 0, "wall_seconds": 1.0, "peak_memory_bytes": 0, "device": "none", "world_size": 1}
    runs = world.add("bradley_terry", 0.0) + world.add(
        "worst_case", 0.0, (0,), method="ensemble", kind="combined", cost=nothing
    )
    runs += world.add("id", 0.0, method="interaction_distillation", settings={"teacher": "my_teacher"})
    runs += world.add("id_uniform", 0.0, method="interaction_distillation", settings={"teacher": "uniform"})
    notes = "\n".join(built(runs).notes)
    assert "leaves out runs that others need first: bradley_terry before worst_case; my_teacher before id." in notes
    assert "different devices" not in notes


def test_metric_without_credits_counts_seeds_only(experiment, edit_json):
    world = experiment()
    runs = world.add("a", 0.5)
    for value, run in zip((0.1, 0.2, 0.3), runs, strict=True):
        edit_json(run.metrics, lambda m, value=value: m["benchmarks"]["rm_bench"]["metrics"].update(correlation=value))
    cell = built(runs, [Column("rm_bench", "correlation", "r")]).rows[0].cells[0]
    assert cell.estimate.basis == "seeds"
    assert cell.estimate.mean == pytest.approx(0.2)


def test_notes_say_in_which_column_two_scorers_cannot_be_told_apart(experiment, edit_json):
    """Always right against always wrong under every seed: no spread, and no seed that would help."""
    world = experiment(benchmarks={n: {"metrics": ["overall"], "items": 40} for n in ("rm_bench", "judge_bench")})
    runs = world.add("right", 0.5) + world.add("wrong", 0.0)
    for run, credit in zip(runs, (1.0, 1.0, 1.0, 0.0, 0.0, 0.0), strict=True):
        frame = pd.read_parquet(run.credits)
        frame.loc[frame["benchmark"] == "judge_bench", "credit"] = credit
        frame.to_parquet(run.credits)
        edit_json(
            run.metrics, lambda m, credit=credit: m["benchmarks"]["judge_bench"]["metrics"].update(overall=credit)
        )
    notes = "\n".join(built(runs, [OVERALL, Column("judge_bench", "overall", "JudgeBench")], reference="right").notes)
    assert "without spread: JudgeBench: wrong." in notes


def test_what_the_reader_of_a_benchmark_noted_stands_below_the_table(experiment, edit_json):
    world = experiment()
    runs = world.add("a", 0.5) + world.add("joint", 0.5, scalar_reward=False)
    for run in runs:
        edit_json(
            run.metrics,
            lambda m: m["benchmarks"]["rm_bench"].update(notes=["Domains missing: math."], most_responses=6),
        )
    notes = built(runs, reference="a").notes
    assert notes.count("rm_bench: Domains missing: math.") == 1
    assert any(
        "On rm_bench a response's score is its mean preference over all other responses" in note for note in notes
    )


def test_a_metric_that_is_undefined_everywhere_leaves_empty_cells(experiment, edit_json, tmp_path):
    world = experiment()
    runs = world.add("a", 0.5) + world.add("b", 0.5)
    for run in runs:
        edit_json(run.metrics, lambda m: m["benchmarks"]["rm_bench"]["metrics"].update(controlled=None))
    result = compare(runs, [OVERALL, Column("rm_bench", "controlled", "length-controlled")], "a", tmp_path)
    assert all(math.isnan(row.cells[1].estimate.mean) for row in result.comparison.rows)
    assert result.comparison.rows[1].cells[1].verdict == "not enough evidence"
    assert "nan" not in result.text


def test_notes_name_what_makes_numbers_less_than_they_seem(experiment, edit_json):
    world = experiment()
    runs = world.add("a", 0.5) + world.add("b", 0.5, scalar_reward=False, data={"hash": "other"})
    edit_json(runs[0].metrics, lambda m: m["benchmarks"]["rm_bench"].update(n_scored=58, tie_rate=0.09, n_truncated=5))
    notes = "\n".join(built(runs, reference="a").notes)
    assert "a on rm_bench 178/180" in notes
    assert "a on rm_bench 3.0%" in notes
    assert "rm_bench 3 to 5" in notes
    assert "a tie is wrong (rm_bench)" in notes
    assert "no scalar reward" in notes
    assert "2 different prepared data sets" in notes


def with_pairs(run, edit_json, used, offered=240, **counts):
    def edit(summary):
        summary["data"] |= {"pairs_offered": offered, "pairs_used": used}
        summary["truncation"] = counts

    edit_json(run.summary, edit)


def test_training_pairs_that_were_left_out_are_noted_first_if_they_are_many(experiment, edit_json):
    world = experiment()
    runs = world.add("a", 0.5) + world.add("b", 0.5)
    assert "left out because" not in "".join(built(runs, reference="a").notes)
    for run in runs:
        with_pairs(run, edit_json, 240)
    assert not any("240" in note for note in built(runs, reference="a").notes)
    with_pairs(runs[0], edit_json, 230, responses_cut=10, dropped_response_cut=10)
    (note,) = (note for note in built(runs, reference="a").notes if "240" in note)
    assert note.startswith("Not trained on all pairs: a 230 to 240 of 240 pairs. Pairs are left out because")
    for run in runs:
        with_pairs(run, edit_json, 15, responses_cut=225, dropped_response_cut=225)
    first = built(runs, reference="a").notes[0]
    assert first.startswith("WARNING: up to 94% of the training pairs were left out.")
    assert "Trained on: each variant 15 of 240 pairs." in first
    with_pairs(runs[-1], edit_json, 480, offered=480, responses_cut=3)
    first = built(runs, reference="a").notes[0]
    assert "b 15 to 480 of 240 to 480 pairs (0 to 3 with a cut response)" in first


def test_cut_responses_of_training_pairs_are_noted(experiment, edit_json):
    runs = experiment().add("a", 0.5)
    for run in runs:
        with_pairs(run, edit_json, 240, responses_cut=30)
    notes = built(runs, reference="a").notes
    assert "Trained on pairs with a response cut at its end: a 240 of 240 pairs (30 with a cut response)." in notes


# --- refused
# ----------------------------------------------------------------------------------------------------------------------


def test_unknown_reference_names_the_nearest_variant(experiment):
    runs = experiment().add("bradley_terry", 0.5)
    with pytest.raises(UserError, match=r"'bradly_terry' is not among the variants.*Did you mean 'bradley_terry'"):
        built(runs, reference="bradly_terry")


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (Column("rm_bensh", "overall", "x"), "benchmark 'rm_bensh'.*Did you mean 'rm_bench'"),
        (Column("rm_bench", "overal", "x"), "metric 'overal'.*Did you mean 'overall'"),
    ],
)
def test_a_column_that_no_run_has_is_refused(experiment, column, says):
    with pytest.raises(UserError, match=says):
        built(experiment().add("a", 0.5), [column])


def test_nothing_to_compare_is_refused(experiment):
    with pytest.raises(UserError, match="no runs"):
        read_runs([], [OVERALL])
    with pytest.raises(UserError, match="no columns"):
        read_runs(experiment().add("a", 0.5), [])


def test_other_items_in_one_run_are_refused_with_an_example(experiment, edit_json):
    runs = experiment().add("a", 0.5)
    frame = pd.read_parquet(runs[1].credits)
    frame.loc[0, "item_id"] = "stranger"
    frame.to_parquet(runs[1].credits)
    with pytest.raises(
        DataError, match=r"seed1/credits.parquet: other items of rm_bench/overall.*59 in common.*'item00000'"
    ):
        built(runs)


@pytest.mark.parametrize("field", ["group", "stratum"])
def test_other_groups_or_strata_in_one_run_are_refused(experiment, field):
    runs = experiment().add("a", 0.5)
    frame = pd.read_parquet(runs[2].credits)
    frame[field] = "other"
    frame.to_parquet(runs[2].credits)
    with pytest.raises(DataError, match=f"seed2/credits.parquet: {field} of item 'item00000'"):
        built(runs)


def test_credits_that_do_not_give_the_metric_are_refused(experiment, edit_json):
    runs = experiment().add("a", 0.5)
    edit_json(runs[0].metrics, lambda m: m["benchmarks"]["rm_bench"]["metrics"].update(overall=0.123))
    with pytest.raises(DataError, match=r"credits of rm_bench/overall give .* says 0.123"):
        built(runs)


def test_weights_that_do_not_sum_to_one_are_refused(experiment):
    runs = experiment().add("a", 0.5)
    frame = pd.read_parquet(runs[0].credits)
    frame["weight"] = 0.5
    frame.to_parquet(runs[0].credits)
    with pytest.raises(DataError, match=r"credits.parquet: rm_bench/overall: the weights of the strata sum to 0.5"):
        built(runs)


def test_an_item_with_two_credits_is_refused(experiment):
    runs = experiment().add("a", 0.5)
    frame = pd.read_parquet(runs[0].credits)
    pd.concat([frame, frame.head(1)]).to_parquet(runs[0].credits)
    with pytest.raises(DataError, match="'item00000' occurs twice"):
        built(runs)


def test_evaluation_of_another_run_is_refused(experiment, edit_json):
    runs = experiment().add("a", 0.5)
    edit_json(runs[0].metrics, lambda m: m.update(run_key="older"))
    with pytest.raises(DataError, match=r"run_key is 'older'.*'key-a-0'"):
        built(runs)


def test_the_same_run_twice_and_one_variant_of_two_methods_are_refused(experiment, edit_json):
    runs = experiment().add("a", 0.5)
    with pytest.raises(UserError, match="'a' seed 0 was given twice"):
        built([*runs, runs[0]])
    for path in (runs[1].summary, runs[1].metrics):
        edit_json(path, lambda m: m.update(method="other"))
    with pytest.raises(UserError, match="stands for two methods"):
        built(runs)


@pytest.mark.parametrize("which", ["summary", "metrics", "credits"])
def test_missing_and_broken_files_are_named(experiment, which):
    runs = experiment().add("a", 0.5)
    path = getattr(runs[0], which)
    path.write_text("not json, not parquet")
    with pytest.raises(UserError, match=path.name):
        built(runs)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: no such file"):
        built(runs)


def test_trainings_that_stopped_early_and_earlier_checkpoints_are_noted(experiment):
    def steps(made, kept):
        return {"planned": 300, "made": made, "kept": kept, "kept_because": "the last step", "stopped_because": None}

    world = experiment()
    runs = world.add("bradley_terry", 0.0, steps=steps(300, 300))
    runs += world.add("hinge", 0.0, (0, 1), steps=steps(200, 50)) + world.add("hinge", 0.0, (2,), steps=steps(250, 250))
    runs += world.add("ropo", 0.0, steps=steps(300, 100))
    notes = built(runs).notes
    hinge = load_method_card("hinge").title
    ropo = load_method_card("ropo").title
    assert (
        f"Not the same budget: these trainings stopped early: {hinge} (200 to 250 of 300 steps, 3 of 3 runs)." in notes
    )
    assert (
        "The model of the best validation was kept, not the one of the last step: "
        f"{hinge} (step 50 of 300, 2 of 3 runs), {ropo} (step 100 of 300, 3 of 3 runs)."
    ) in notes


def test_a_training_with_another_budget_than_the_reference_is_noted(experiment):
    def trained(pairs, made, planned=None):
        steps = {"planned": planned or made, "made": made, "kept": made, "kept_because": "x", "stopped_because": None}
        cost = {"pairs_seen": pairs, "optimizer_steps": made, "device": "cpu", "world_size": 1}
        return {"cost": cost, "steps": steps}

    world = experiment()
    runs = world.add("hinge", 0.0, **trained(8000, 800))
    runs += world.add("bradley_terry", 0.0, **trained(5000, 500))
    runs += world.add("ropo", 0.0, **trained(4950, 500))  # a pair in a hundred did not fit
    runs += world.add("focal", 0.0, **trained(2500, 250, planned=500))  # stopped early
    runs += world.add("longest", 0.0, method="longest", kind="content_blind", **trained(0, 0))
    hinge, reference = load_method_card("hinge").title, load_method_card("bradley_terry").title
    notes = built(runs, reference="bradley_terry").notes
    assert [note for note in notes if note.startswith("Not the training budget")] == [
        f"Not the training budget of {reference} (5,000 pairs, 500 steps): {hinge} (8,000 pairs, 800 steps)."
    ]


def test_trainings_of_the_whole_budget_are_not_noted(experiment):
    runs = experiment().add("bradley_terry", 0.0)
    words = ("stopped early", "best validation", "Not the training budget")
    assert not any(word in note for note in built(runs).notes for word in words)
