"""The runs that sum up others: a parent for each variant, and the comparison of the experiment."""

import csv
import json
from dataclasses import replace

import pytest

from rm_methods.comparison.compare import compare
from rm_methods.comparison.runs import recorded_columns
from rm_methods.experiment.evaluated_runs import files_of_runs
from rm_methods.experiment.experiment import Experiment
from rm_methods.html_report.page import write_report
from rm_methods.html_report.stored_results import newest_config
from rm_methods.tracking import artifacts
from rm_methods.tracking.artifacts import configuration_text, within_limit
from rm_methods.tracking.comparison_table import read_comparison
from rm_methods.tracking.export import export_experiment, unchecked_export
from rm_methods.tracking.records import RunRecord, read_run
from rm_methods.tracking.summary_records import split_params
from rm_methods.tracking.upload import PARENT
from tests.comparison.test_folders import stored
from tests.tracking.conftest import export_of

METHODS = {"bradley_terry": "bradley_terry", "odin": "odin", "longest": "longest"}
BENCHMARKS = {
    "rm_bench": {"metrics": ["overall", "hard"], "items": 60, "strata": 1},
    "heldout": {"metrics": ["test"], "items": 60, "strata": 1},
}
NOTE = "mlflow.note.content"


def compared(folder, seeds=(0, 1, 2)):
    """A made-up experiment with its comparison and its report; returns its export."""
    results = stored(folder, "study", METHODS, seeds, benchmarks=BENCHMARKS)
    config = newest_config(results)
    experiment = Experiment(config)
    files = files_of_runs(experiment, results)
    compare(files, recorded_columns(config, files), "bradley_terry", results / "comparison")
    write_report(config, results, results / "report.html")
    return unchecked_export(experiment, results)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return compared(tmp_path_factory.mktemp("study"))


def runs_by_name(client, experiment="study"):
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: run for run in runs}


def table_rows(study):
    with (study.comparison / "table.csv").open() as stream:
        return {(row["variant"], row["benchmark"], row["metric"]): row for row in csv.DictReader(stream)}


# --- variants


def test_a_variant_is_the_parent_of_its_seeds_and_says_what_the_table_says(study, store, client, tmp_path):
    result = export_experiment(study, tmp_path / "out", store)
    assert result.pending == []
    assert result.summary["not_compared"] is None
    runs = runs_by_name(client)
    assert set(runs) == {
        "comparison",
        *METHODS,
        *(f"{variant} seed {seed}" for variant in ("bradley_terry", "odin") for seed in range(3)),
        "longest seed 0",
    }
    odin = runs["odin"]
    for seed in range(3):
        assert runs[f"odin seed {seed}"].data.tags[PARENT] == odin.info.run_id
    assert PARENT not in odin.data.tags
    row = table_rows(study)["odin", "rm_bench", "overall"]
    metrics = odin.data.metrics
    expected = {
        "rm_bench/overall": row["mean"],
        "value_interval/rm_bench/overall/low": row["low"],
        "value_interval/rm_bench/overall/high": row["high"],
        "value_interval/rm_bench/overall/seeds": 3,
        "vs_reference/rm_bench/overall": row["difference"],
        "vs_reference/rm_bench/overall/low": row["diff_low"],
        "vs_reference/rm_bench/overall/high": row["diff_high"],
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), abs=5e-5), name
    assert len(metrics) == 3 * len(expected)
    seeds = [runs[f"odin seed {seed}"].data.metrics["rm_bench/overall"] for seed in range(3)]
    assert metrics["rm_bench/overall"] == pytest.approx(sum(seeds) / 3, abs=5e-5)
    assert not [name for name in runs["bradley_terry"].data.metrics if name.startswith("vs_reference")]


def test_a_variant_has_its_verdict_in_words_and_a_description(study, store, client, tmp_path):
    export_experiment(study, tmp_path / "out", store)
    runs = runs_by_name(client)
    assert runs["bradley_terry"].data.tags["verdict"] == "reference"
    assert runs["longest"].data.tags["verdict"] == "not tested"
    words = {row["verdict"] for key, row in table_rows(study).items() if key[0] == "odin"}
    text = runs["odin"].data.tags[NOTE]
    assert ("not significant" in words) == ("ot told apart from Bradley-Terry" in text)
    assert "**ODIN** (`odin`)" in text
    assert "arXiv:2402.07319" in text
    assert "| RM-Bench |" in text
    assert text.startswith(("Better", "Worse", "Not told apart"))
    assert runs["bradley_terry"].data.tags[NOTE].startswith("The reference:")
    assert "A content-blind rule" in runs["longest"].data.tags[NOTE]


def test_the_variants_are_listed_in_the_order_of_the_table_behind_the_comparison(study, store, client, tmp_path):
    export_experiment(study, tmp_path / "out", store)
    experiment_id = client.get_experiment_by_name("study").experiment_id
    runs = client.search_runs([experiment_id], order_by=["attributes.start_time DESC"])
    assert [run.info.run_name for run in runs][:4] == ["comparison", "bradley_terry", "odin", "longest"]
    assert all(run.info.status == "FINISHED" for run in runs)


# --- the comparison


def test_the_comparison_has_verdict_table_figures_report_and_configuration(study, store, client, tmp_path):
    export_experiment(study, tmp_path / "out", store)
    run = runs_by_name(client)["comparison"]
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "table.md", "table.csv", "table.txt", "configuration.yaml", "figures"} <= names
    figures = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {"figures/comparison.png", "figures/ranks.png", "figures/reliability.png"}
    markdown = (study.comparison / "table.md").read_text()
    verdict = markdown.partition("**Verdict.** ")[2].partition("\n")[0]
    assert verdict
    assert run.data.tags[NOTE].startswith(verdict)
    client.download_artifacts(run.info.run_id, "configuration.yaml", str(tmp_path))
    assert (tmp_path / "configuration.yaml").read_text() == configuration_text(study.config)


def test_a_second_export_of_a_comparison_changes_nothing(study, store, client, tmp_path):
    export_experiment(study, tmp_path / "out", store)
    again = export_experiment(study, tmp_path / "out", store)
    assert {record["action"] for record in again.all_records} == {"unchanged"}
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == again.summary


def test_a_table_of_other_runs_is_not_shown(store, client, tmp_path):
    study = compared(tmp_path / "folder")
    for path in study.runs[0].metrics.parents[1].glob("*/metrics.json"):
        content = json.loads(path.read_text())
        content["benchmarks"]["rm_bench"]["metrics"]["overall"] += 0.1
        path.write_text(json.dumps(content))
    result = export_experiment(study, tmp_path / "out", store)
    assert result.pending == []
    assert "the comparison table has" in result.summary["not_compared"]
    assert "bradley_terry on rm_bench/overall" in result.summary["not_compared"]
    runs = runs_by_name(client)
    assert "No comparison is shown" in runs["comparison"].data.tags[NOTE]
    assert runs["odin"].data.metrics == {}
    assert runs["odin seed 0"].data.metrics["rm_bench/overall"] > 0


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("table.csv", None, "table.csv is missing"),
        ("table.csv", "variant,mean\nodin,high\n", "cannot be read"),
        ("table.csv", "\x00", "has no rows"),
    ],
)
def test_a_comparison_that_is_missing_or_damaged_is_named(tmp_path, name, content, says):
    (tmp_path / "table.md").write_text("text")
    if content is not None:
        (tmp_path / name).write_text(content)
    assert says in read_comparison(tmp_path)


def test_new_numbers_update_the_same_runs(store, client, tmp_path):
    study = compared(tmp_path / "folder")
    first = export_experiment(study, tmp_path / "out", store)
    table = study.comparison / "table.md"
    table.write_text(table.read_text().replace("**Verdict.** ", "**Verdict.** New: "))
    second = export_experiment(study, tmp_path / "out", store)
    assert second.summary["comparison"]["action"] == "updated"
    assert second.summary["comparison"]["run_id"] == first.summary["comparison"]["run_id"]
    assert {record["action"] for record in (*second.runs, *second.summary["variants"])} == {"unchanged"}
    assert runs_by_name(client)["comparison"].data.tags[NOTE].startswith("New: ")


def test_another_setting_of_all_runs_makes_new_summaries_and_supersedes_the_old_ones(
    store, client, finished_run, tmp_path
):
    def export(**changes):
        export_experiment(export_of([finished_run(**changes)]), tmp_path / "out", store)
        return client.search_runs([client.get_experiment_by_name("paper").experiment_id])

    export(run_key="old", training={"learning_rate": 1e-5})
    runs = export(run_key="new", training={"learning_rate": 2e-5})
    comparisons = {run.data.tags["superseded"]: run for run in runs if run.data.tags["kind"] == "comparison"}
    assert {key: run.data.params["training.learning_rate"] for key, run in comparisons.items()} == {
        "true": "1e-05",
        "false": "2e-05",
    }


def test_a_deleted_parent_is_made_again_and_its_runs_move_below_it(store, client, finished_run, tmp_path):
    first = export_experiment(export_of([finished_run()]), tmp_path / "out", store)
    client.delete_run(first.summary["variants"][0]["run_id"])
    second = export_experiment(export_of([finished_run()]), tmp_path / "out", store)
    (parent,) = second.summary["variants"]
    assert (parent["action"], second.runs[0]["action"]) == ("created", "unchanged")
    assert client.get_run(second.runs[0]["run_id"]).data.tags[PARENT] == parent["run_id"]


def test_a_run_of_an_earlier_release_is_superseded(store, client, finished_run, tmp_path):
    experiment_id = client.create_experiment("paper")
    tags = {
        "run_key": "key0",
        "variant": "bradley_terry",
        "seed": "0",
        "superseded": "false",
        "purpose": "reward model",
    }
    old = client.create_run(experiment_id, tags=tags | {"configured_experiment": "paper"}).info.run_id
    export_experiment(export_of([finished_run()]), tmp_path / "out", store)
    assert client.get_run(old).data.tags["superseded"] == "true"


# --- the experiment


def test_the_experiment_is_described_until_a_person_describes_it(study, store, client, tmp_path):
    export_experiment(study, tmp_path / "out", store)
    experiment = client.get_experiment_by_name("study")
    assert experiment.tags[NOTE].startswith("Experiment **study** of rm-methods: 3 variants on rm_bench and heldout")
    client.set_experiment_tag(experiment.experiment_id, NOTE, "Mine.")
    export_experiment(study, tmp_path / "out", store)
    assert client.get_experiment_by_name("study").tags[NOTE] == "Mine."


def test_an_experiment_on_a_mixture_is_described_by_the_names_of_its_sources(store, client, finished_run, tmp_path):
    source = {"dataset": "/data/a.jsonl", "root": None, "options": {}, "name": "mine", "weight": 2.0}
    export = export_of([finished_run()])
    mixture = {"sources": [source, source | {"name": "theirs", "weight": 1.0}]}
    result = export_experiment(replace(export, config={**export.config, "data": mixture}), tmp_path / "out", store)
    assert result.pending == []
    assert "trained on 2 mine + 1 theirs." in client.get_experiment_by_name("paper").tags[NOTE]


# --- parameters


def record(variant, seed, params, kind="seed"):
    return RunRecord(
        kind=kind,
        variant=variant,
        seed=seed,
        run_key="",
        name="",
        params=params,
        tags={},
        steps=[],
        finals={},
        training_digest="",
        start_ms=0,
        end_ms=0,
    )


def test_parameters_that_are_equal_are_stored_once():
    records = [
        record("a", 0, {"training.epochs": "1", "training.lr": "1", "settings.x": "1", "data.pairs": "5"}),
        record("a", 1, {"training.epochs": "1", "training.lr": "2", "settings.x": "1", "data.pairs": "5"}),
        record("rule", 0, {"data.pairs": "5"}),
    ]
    split, by_variant, common = split_params(records)
    assert common == {"training.epochs": "1", "data.pairs": "5"}
    assert [r.params for r in split] == [
        {"training.lr": "1", "settings.x": "1"},
        {"training.lr": "2", "settings.x": "1"},
        {},
    ]
    assert by_variant == {"a": {"settings.x": "1"}, "rule": {}}


def test_parameters_of_ppo_are_apart(finished_run):
    run = read_run(finished_run(), "paper")
    policy = read_run(replace(finished_run(), kind="ppo"), "paper")
    assert "settings.label_smoothing" in run.params
    assert policy.params == {"ppo.label_smoothing": "0.1"}


# --- artifacts


def test_a_large_file_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "MAX_BYTES", 1_000_000)
    (tmp_path / "large").write_bytes(bytes(1_200_000))
    (tmp_path / "small").write_bytes(bytes(10))
    kept = within_limit({"a": tmp_path / "large", "b": tmp_path / "small", "c": tmp_path / "absent", "d": "text"})
    assert kept["b"] == tmp_path / "small"
    assert set(kept) == {"b", "d", "left_out.txt"}
    assert kept["left_out.txt"] == f"a: 1.2 MB, more than 1 MB. See {tmp_path / 'large'}\n"


def test_the_uploaded_configuration_has_no_password(study):
    config = study.config | {"tracking": study.config["tracking"] | {"uri": "http://me:secret@server"}}
    assert "secret" not in configuration_text(config)
    assert "http://server" in configuration_text(config)


def test_a_folder_for_artifacts_that_cannot_be_written_is_pending_with_the_cure(store, finished_run, tmp_path):
    (tmp_path / "mlruns").write_text("a file where the folder must be")
    result = export_experiment(export_of([finished_run()]), tmp_path / "out", store)
    assert result.runs[0]["status"] == "pending"
    assert "The artifacts of bradley_terry seed 0 cannot be written to" in result.runs[0]["reason"]
    (tmp_path / "mlruns").unlink()
    assert export_experiment(export_of([finished_run()]), tmp_path / "out", store).runs[0]["action"] == "completed"
