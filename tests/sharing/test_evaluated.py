"""The metrics of a run's card are those of its evaluation and of the experiment's comparison."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from rm_methods.cli import main
from rm_methods.comparison.compare import build_comparison
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import read_runs
from rm_methods.errors import DataError
from rm_methods.experiment.layout import Layout
from rm_methods.experiment.stored_experiment import stored_experiment
from rm_methods.model_card.facts import summary_of
from rm_methods.sharing.evaluated import measured_run
from tests.comparison.conftest import ExperimentFolder
from tests.comparison.test_folders import BENCHMARKS, stored

METHODS = {"bradley_terry": "bradley_terry", "hinge": "hinge", "longest": "longest", "random": "random"}


@pytest.fixture
def results(tmp_path):
    """A finished experiment with three seeds, two trained methods and two content-blind ones."""
    return stored(tmp_path, "study", METHODS)


def measured(results, variant, seed=0):
    folder = Layout(results).model(variant, seed)
    folder.mkdir(exist_ok=True)
    return measured_run(folder, summary_of(folder))


def test_the_values_are_those_of_metrics_json_with_an_interval_of_items(results):
    found = measured(results, "hinge", 1)
    recorded = json.loads(Layout(results).metrics("hinge", 1).read_text())["benchmarks"]["rm_bench"]
    assert {metric.metric for metric in found.metrics} == set(recorded["metrics"])
    for metric in found.metrics:
        assert metric.own.mean == pytest.approx(recorded["metrics"][metric.metric], abs=1e-12)
        assert metric.own.low < metric.own.mean < metric.own.high
        assert (metric.own.basis, metric.own.n_items) == ("items", 40)
        assert (metric.benchmark, metric.n_truncated) == ("rm_bench", 3)


def test_the_method_and_the_difference_are_those_of_the_comparison(results):
    found = measured(results, "hinge", 1)
    columns = [Column("rm_bench", metric.metric, metric.heading) for metric in found.metrics]
    runs = read_runs(stored_experiment(results).runs, columns)
    comparison = build_comparison(runs, columns, "bradley_terry")
    rows = {row.variant: row for row in comparison.rows}
    assert found.reference == "Bradley-Terry"
    for number, metric in enumerate(found.metrics):
        assert metric.method.estimate == rows["hinge"].cells[number].estimate
        assert metric.method.difference == rows["hinge"].cells[number].difference
        assert metric.method.estimate.n_seeds == 3
        blind = {rows[name].label: rows[name].cells[number].estimate.mean for name in ("longest", "random")}
        assert metric.content_blind == max(blind.items(), key=lambda entry: entry[1])


def test_overlap_that_was_not_counted_is_said(results):
    assert any("contamination is not ruled out" in note for note in measured(results, "hinge").notes)


def test_without_the_other_runs_the_metrics_stay_and_a_note_says_why(results):
    Layout(results).metrics("bradley_terry", 2).unlink()
    found = measured(results, "hinge")
    assert len(found.metrics) == 4
    assert all(metric.method is None and metric.content_blind is None for metric in found.metrics)
    assert "comparison with other methods is not finished" in found.notes[0]
    assert str(results) not in found.notes[0]


def test_without_an_evaluation_nothing_is_measured(results):
    Layout(results).metrics("hinge", 0).unlink()
    assert measured(results, "hinge").metrics == ()
    assert measured(results, "hinge").notes == ("The run was not evaluated on a benchmark.",)


def test_an_evaluation_of_another_run_is_refused(results):
    file = Layout(results).metrics("hinge", 0)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run_key": "other"}))
    with pytest.raises(DataError, match="The evaluation is of another run"):
        measured(results, "hinge")


def test_with_levels_of_noise_the_comparison_is_that_of_the_level(tmp_path):
    names = {"bradley_terry": "bradley_terry", "hinge": "hinge"}
    results = stored(tmp_path, "noise", names, noise_levels=[{"rate": 0.0}, {"rate": 0.2}])
    layout = Layout(results)
    made_up = ExperimentFolder(tmp_path / "noisy", BENCHMARKS)
    for name, method in names.items():
        for seed, files in enumerate(made_up.add(f"{name}_noise20", 0.1, method=method)):
            for source, target in (
                (files.summary, layout.summary(f"{name}_noise20", seed)),
                (files.metrics, layout.metrics(f"{name}_noise20", seed)),
                (files.credits, layout.credits(f"{name}_noise20", seed)),
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
    for variant, other in (("hinge", "bradley_terry"), ("hinge_noise20", "bradley_terry_noise20")):
        found = measured(results, variant)
        columns = [Column("rm_bench", metric.metric, metric.heading) for metric in found.metrics]
        runs = [r for r in read_runs(stored_experiment(results).runs, columns) if r.variant in (variant, other)]
        (row,) = [row for row in build_comparison(runs, columns, other).rows if row.variant == variant]
        for number, metric in enumerate(found.metrics):
            assert metric.method.difference.estimate.mean == pytest.approx(
                row.cells[number].difference.estimate.mean, abs=1e-12
            )
    # A run of an earlier configuration keeps its metrics; no level has its variant.
    for part in ("runs", "evaluation"):
        shutil.copytree(results / part / "hinge" / "seed0", results / part / "earlier" / "seed0")
    for file in (layout.summary("earlier", 0), layout.metrics("earlier", 0)):
        content = {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"}
        file.write_text(json.dumps(content | {"variant": "earlier"}))
    found = measured(results, "earlier")
    assert len(found.metrics) == 4
    assert all(metric.method is None for metric in found.metrics)


def test_the_verb_adds_the_metrics_to_the_card(results):
    layout = Layout(results)
    folder = layout.model("bradley_terry", 0)
    folder.mkdir()
    result = CliRunner().invoke(main, ["model-card", "--model", str(folder)])
    assert result.exit_code == 0, result.output
    card = ModelCard((folder / "README.md").read_text())
    recorded = json.loads(layout.metrics("bradley_terry", 0).read_text())["benchmarks"]["rm_bench"]["metrics"]
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        name: round(value, 4) for name, value in recorded.items()
    }
    assert "Difference from Bradley-Terry" in card.text
    assert str(results) not in card.text
