"""Metrics of a combined run without each of its members, from stored score tables; the values are derived by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.cli import main
from rm_methods.files import file_hash
from rm_methods.stored import read_metrics, score_report

from .made_up import write_score_table

PROMPT = [{"role": "user", "content": "?"}]
ITEMS = [BenchmarkItem(f"i{number}", "test", PROMPT, ["good", "bad"], 0) for number in range(4)]
# Scores of (good, bad) by item, after the members' centers 0, 10 and 0 are subtracted.
CENTERED = np.array(
    [
        [[2, 0], [1, 0], [1, 0], [5, 0]],
        [[0, 1], [1, 0], [1, 0], [1, 0]],
        [[0, 2], [-3, 0], [1, 0], [-2, 3]],
    ]
)
CENTERS = [0.0, 10.0, 0.0]


class Evaluation:
    """An ensemble of three members on the held-out benchmark; `tables` are the members' score tables."""

    def __init__(self, folder):
        self.folder = folder
        write_items(ITEMS, folder / "items.parquet")
        self.tables = [folder / f"seed{seed}.parquet" for seed in (4, 5, 6)]
        for seed, table, centered, center in zip((4, 5, 6), self.tables, CENTERED, CENTERS, strict=True):
            write_score_table(ITEMS, list((centered + center).astype(np.float32)), table)
            score_report(table).write_text(json.dumps({"model": {"seed": seed, "run_key": f"key{seed}"}}))
        write_score_table(ITEMS, list(CENTERED.mean(axis=0).astype(np.float32)), folder / "scores.parquet")
        self.summary(method="ensemble", settings={"members": "bt", "aggregate": "mean", "weight": 0.5})

    def summary(self, method, settings):
        content = {"variant": "all", "method": method, "seed": 4, "run_key": "key", "settings": settings}
        content |= {"report": {"centers": CENTERS}}
        content |= {"depends_on": {"required": {"members": ["key4", "key5", "key6"]}}}
        (self.folder / "summary.json").write_text(json.dumps(content))

    def run(self, tables=None, benchmark="heldout", with_summary=True):
        """The command's answer; the benchmark's entry of metrics.json is in `result` if it succeeded."""
        paths = self.tables if tables is None else tables
        words = ["--benchmark", "heldout", "--items", self.folder / "items.parquet"]
        words += ["--scores", self.folder / "scores.parquet", "--metrics", self.folder / "metrics.json"]
        words += ["--summary", self.folder / "summary.json"] if with_summary else []
        words += [word for path in paths for word in ("--member-scores", f"{benchmark}={path}")]
        return CliRunner().invoke(main, ["evaluate", *map(str, words)])

    def result(self):
        answer = self.run()
        assert answer.exit_code == 0, answer.output
        return read_metrics(self.folder / "metrics.json")["benchmarks"]["heldout"]


@pytest.fixture
def evaluation(tmp_path):
    return Evaluation(tmp_path)


def test_the_mean_without_each_member(evaluation):
    """Without 4: good 0, -1, 1, -.5 against bad 1.5, 0, 0, 1.5.  Without 5: 1, -1, 1, 1.5 against 1, 0, 0, 1.5; ties
    are wrong.  Without 6: 1, 1, 1, 3 against .5, 0, 0, 0."""
    result = evaluation.result()
    assert result["left_out"]["test"] == [0.25, 0.25, 1.0]
    assert result["left_out"]["test_length_controlled"] == [None, None, None]  # every chosen response is the longer one
    assert result["left_out_seeds"] == [4, 5, 6]
    assert result["metrics"]["test"] == 0.5  # of all three: 2/3, -1/3, 1, 4/3 against 1, 0, 0, 1


def test_the_worst_case_without_each_member(evaluation):
    """Without 4: good 0, -3, 1, -2 against bad 1, 0, 0, 0.  Without 5: 0, -3, 1, -2 against 0, 0, 0, 0.  Without 6:
    0, 1, 1, 1 against 0, 0, 0, 0."""
    evaluation.summary("ensemble", {"members": "bt", "aggregate": "worst_case", "weight": 0.5})
    assert evaluation.result()["left_out"]["test"] == [0.25, 0.25, 0.75]


def test_a_weight_average_without_each_member(evaluation):
    """Combined margins (good less bad) -1/3, -1/3, 1, 1/3 plus half of (combined - member): members' margins
    2, 1, 1, 5; -1, 1, 1, 1; -2, -3, 1, -5.  Without 4: -1.5, -1, 1, -2.  Without 5: 0, -1, 1, 0.
    Without 6: .5, 1, 1, 3."""
    evaluation.summary("warm", {"members": "warm_member"})
    assert evaluation.result()["left_out"]["test"] == [0.25, 0.25, 1.0]


def test_the_tables_that_were_read_are_recorded(evaluation):
    made_from = evaluation.result()["made_from"]
    assert {name: made_from[name] for name in made_from if "member" in name} == {
        f"scores of member {seed}": file_hash(table) for seed, table in zip((4, 5, 6), evaluation.tables, strict=True)
    }


def test_without_member_tables_there_are_no_such_keys(evaluation):
    assert evaluation.run(tables=[]).exit_code == 0
    result = read_metrics(evaluation.folder / "metrics.json")["benchmarks"]["heldout"]
    assert not {"left_out", "left_out_seeds"} & result.keys()


def test_a_member_that_could_not_score_an_item_earns_nothing_in_the_others_ensembles(evaluation):
    """Item 2 is right whatever is left out, and wrong where a member without a score takes part."""
    scores = CENTERED[0].astype(np.float32)
    scores[2, 0] = np.nan
    write_score_table(ITEMS, list(scores), evaluation.tables[0])
    assert evaluation.result()["left_out"]["test"] == [0.25, 0.0, 0.75]


def test_an_infinite_score_is_combined_as_scoring_would(evaluation):
    """The minimum of infinity and a number is the number; item 3 without 6 stays right."""
    evaluation.summary("ensemble", {"members": "bt", "aggregate": "worst_case", "weight": 0.5})
    scores = CENTERED[0].astype(np.float32)
    scores[3, 0] = np.inf
    write_score_table(ITEMS, list(scores), evaluation.tables[0])
    assert evaluation.result()["left_out"]["test"] == [0.25, 0.25, 0.75]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e.run(tables=e.tables[:2]),
            "are of the runs key4, key5, but all seed 4 is made of members: key4, key5",
        ),
        (lambda e: e.run(tables=e.tables[::-1]), "are of the runs key6, key5, key4"),
        (lambda e: e.run(tables=[e.folder / "other.parquet"]), "other.parquet.report.json: no such file"),
        (lambda e: e.run(benchmark="held_out"), "--member-scores held_out=...: Did you mean 'heldout'?"),
        (lambda e: e.run(with_summary=False), "--member-scores needs --summary"),
    ],
)
def test_other_tables_than_those_of_the_members_are_refused(evaluation, change, message):
    answer = change(evaluation)
    assert answer.exit_code == 2
    assert message in answer.output
    assert not (evaluation.folder / "metrics.json").exists()


def test_a_member_with_other_items_is_refused(evaluation):
    write_score_table(ITEMS[:3], [np.zeros(2, dtype=np.float32)] * 3, evaluation.tables[1])
    answer = evaluation.run()
    assert answer.exit_code == 2
    assert "seed5.parquet: the score table does not fit the 4 items (8 responses): 2 missing" in answer.output


def test_a_run_that_is_not_combined_is_refused(evaluation):
    evaluation.summary("bradley_terry", {})
    answer = evaluation.run()
    assert answer.exit_code == 2
    assert "method 'bradley_terry' is not a CombinedMethod" in answer.output


def test_an_option_without_benchmark_is_refused(evaluation):
    answer = CliRunner().invoke(
        main,
        ["evaluate", "--benchmark", "heldout", "--items", "i", "--scores", "s", "--member-scores", "table.parquet"],
    )
    assert answer.exit_code == 2
    assert "--member-scores table.parquet: write NAME=PATH, for instance rm_bench=results/x/scores" in answer.output
