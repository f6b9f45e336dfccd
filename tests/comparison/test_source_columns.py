"""Columns for the sources of a mixture: those that a run has, after the columns of the card."""

import json

import pytest

from rm_methods.comparison.runs import compared_columns, recorded_columns
from rm_methods.config.resolve import resolve
from rm_methods.experiment.evaluated_runs import EvaluatedFiles

METRICS = ("test", "test_length_controlled", "test_from_a", "mean")


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """The resolved configuration of an experiment on a section `data`."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("{}")

    def config(data):
        benchmarks = {"heldout": {}, "rm_bench": {}}
        return resolve({"experiment": "x", "data": data, "methods": {"longest": {}}, "benchmarks": benchmarks})

    return config


def evaluated(folder):
    metrics = folder / "metrics.json"
    results = {"heldout": {"metrics": dict.fromkeys(METRICS, 0.5)}, "rm_bench": {"metrics": {"overall": 0.5}}}
    identity = {"variant": "longest", "method": "longest", "seed": 0, "run_key": "k"}
    metrics.write_text(json.dumps(identity | {"benchmarks": results}))
    return [EvaluatedFiles(folder / "summary.json", metrics, folder / "credits.parquet")]


def test_a_mixture_has_a_column_for_each_source_that_was_measured(configured, tmp_path):
    mixture = configured([{"dataset": "a.jsonl"}, {"dataset": "b.jsonl"}])
    columns = [(column.metric, column.heading) for column in compared_columns(mixture, evaluated(tmp_path))]
    assert columns[:3] == [
        ("test", "held-out"),
        ("test_length_controlled", "held-out, length-controlled"),
        ("test_from_a", "held-out, a"),
    ]
    assert not [metric for metric, _ in columns if metric == "test_from_b"]
    recorded = recorded_columns(mixture, evaluated(tmp_path))
    assert [column.metric for column in recorded] == ["test", "test_length_controlled", "test_from_a", "overall"]


def test_a_single_data_set_has_the_columns_of_the_cards(configured, tmp_path):
    for data in ({"dataset": "a.jsonl"}, [{"dataset": "a.jsonl"}]):
        columns = compared_columns(configured(data), evaluated(tmp_path))
        assert "test_from_a" not in {column.metric for column in columns}
        assert len(columns) > 2
