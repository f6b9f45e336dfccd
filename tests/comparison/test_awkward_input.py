"""Awkward experiments: the table is still written, says what is missing, and has no number where none is defined."""

import csv
import math
import re

import pandas as pd
import pytest

from rm_methods.comparison.compare import compare
from rm_methods.comparison.result import Column

COLUMNS = [Column("iid", "overall", "iid", 0.5), Column("neutral", "overall", "neutral", 0.5)]
SEEDS = (0, 1, 2)


def credit(run, edit_json, benchmark, value):
    """Give all items of a run's benchmark one credit."""
    frame = pd.read_parquet(run.credits)
    frame.loc[frame["benchmark"] == benchmark, "credit"] = value
    frame.to_parquet(run.credits)
    metric = None if math.isnan(value) else value
    edit_json(run.metrics, lambda m: m["benchmarks"][benchmark]["metrics"].update(overall=metric))


def one_seed(world, edit_json):
    return world.add("bradley_terry", 0.0, (0,)) + world.add("hinge", 1.0, (0,))


def missing_seeds(world, edit_json):
    return world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 1.0, (0, 2))


def reference_of_one_seed(world, edit_json):
    return world.add("bradley_terry", 0.0, (0,)) + world.add("hinge", 1.0, SEEDS)


def no_seed_spread(world, edit_json):
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 1.0, SEEDS)
    for first in (0, 3):
        source = pd.read_parquet(runs[first].credits)
        for run in runs[first + 1 : first + 3]:
            source.to_parquet(run.credits)
            for benchmark in ("iid", "neutral"):
                value = float(source.loc[source["benchmark"] == benchmark, "credit"].mean())
                edit_json(run.metrics, lambda m, b=benchmark, v=value: m["benchmarks"][b]["metrics"].update(overall=v))
    return runs


def perfect_scores(world, edit_json):
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 1.0, SEEDS)
    for run in runs[3:]:
        credit(run, edit_json, "iid", 1.0)
    return runs


def everyone_perfect(world, edit_json):
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 1.0, SEEDS)
    for run in runs:
        credit(run, edit_json, "iid", 1.0)
    return runs


def without_a_benchmark(world, edit_json):
    return world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 1.0, SEEDS, without=("neutral",))


def reference_without_a_benchmark(world, edit_json):
    return world.add("bradley_terry", 0.0, SEEDS, without=("neutral",)) + world.add("hinge", 1.0, SEEDS)


def undefined_metric(world, edit_json):
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 1.0, SEEDS)
    for run in runs:
        credit(run, edit_json, "neutral", math.nan)
    return runs


def one_undefined_run(world, edit_json):
    runs = world.add("bradley_terry", 0.0, SEEDS) + world.add("hinge", 1.0, SEEDS) + world.add("odin", 1.0, SEEDS)
    credit(runs[4], edit_json, "neutral", math.nan)
    return runs


def only_content_blind(world, edit_json):
    free = {"kind": "content_blind"}
    return world.add("bradley_terry", 0.0, SEEDS) + world.add("longest", 0.5, (0,), seed_free=True, **free)


CASES = [
    one_seed,
    missing_seeds,
    reference_of_one_seed,
    no_seed_spread,
    perfect_scores,
    everyone_perfect,
    without_a_benchmark,
    reference_without_a_benchmark,
    undefined_metric,
    one_undefined_run,
    only_content_blind,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_table_is_written_and_no_number_stands_where_none_is_defined(case, experiment, edit_json, tmp_path):
    world = experiment(benchmarks={name: {"metrics": ["overall"], "items": 60} for name in ("iid", "neutral")})
    result = compare(case(world, edit_json), COLUMNS, "bradley_terry", tmp_path / "out")
    for name in ("table.txt", "table.md", "table.tex", "table.csv"):
        text = (tmp_path / "out" / name).read_text()
        assert not re.search(r"\b(nan|inf|None)\b", text), name
    assert result.comparison.verdict
    for record in csv.DictReader((tmp_path / "out" / "table.csv").open()):
        tested = record["verdict"] in ("significant", "not significant")
        assert bool(record["p"]) == bool(record["p_holm"]) == tested
        assert not record["diff_low"] or record["difference"]
        assert not record["low"] or 0 <= float(record["low"]) <= float(record["mean"]) <= float(record["high"]) <= 1


def test_one_undefined_run_leaves_the_other_methods_their_tests(experiment, edit_json, tmp_path):
    world = experiment(benchmarks={name: {"metrics": ["overall"], "items": 60} for name in ("iid", "neutral")})
    comparison = compare(one_undefined_run(world, edit_json), COLUMNS, "bradley_terry", tmp_path / "out").comparison
    verdicts = {row.variant: [cell.verdict for cell in row.cells] for row in comparison.rows}
    assert verdicts["hinge"][1] == "not enough evidence"
    assert {verdicts["hinge"][0], *verdicts["odin"]} <= {"significant", "not significant"}
    assert any("undefined or without spread: neutral: Hinge." in note for note in comparison.notes)
