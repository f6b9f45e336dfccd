"""Several folders of results in one table: equal runs, equal names, and what must be refused."""

import csv
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.cli import main
from rm_methods.comparison.folders import compare_folders
from rm_methods.config.resolve import write_resolved
from rm_methods.errors import ConfigError, DataError, UserError
from rm_methods.experiment.stored_experiment import stored_experiment
from rm_methods.files import file_hash
from tests.comparison.conftest import ExperimentFolder
from tests.conftest import experiment_config

BENCHMARKS = {"rm_bench": {"metrics": ["overall", "easy", "normal", "hard"], "items": 40, "strata": 1}}


def run_verb(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def stored(
    folder, name, methods, seeds=(0, 1, 2), *, keys=None, sampling_seed=0, benchmarks=None, items=None, **config
):
    """A finished experiment `folder`/results/`name`: its configuration and the evaluations of its runs.

    Args:
        methods: variant -> method.
        keys: variant -> text, to give runs other keys than those of the same variant in another folder.
    """
    benchmarks = benchmarks or BENCHMARKS
    sections = {
        "experiment": name,
        "seeds": list(seeds),
        "methods": {variant: {"method": method} for variant, method in methods.items()},
        "benchmarks": {benchmark: {} for benchmark in benchmarks},
    }
    resolved = experiment_config(folder, **(sections | config))
    results = write_resolved(resolved).parents[1]
    made_up = ExperimentFolder(folder / "made_up" / name, benchmarks, sampling_seed=sampling_seed)
    for number, (variant, method) in enumerate(methods.items()):
        of_variant = [0] if method == "longest" else seeds
        for files in made_up.add(variant, 0.2 * number, of_variant, method=method, seed_free=method == "longest"):
            seed = json.loads(files.summary.read_text())["seed"]
            if keys and variant in keys:
                for file in (files.summary, files.metrics):
                    content = json.loads(file.read_text())
                    file.write_text(json.dumps(content | {"run_key": f"{keys[variant]}-{variant}-{seed}"}))
            run = results / "runs" / variant / f"seed{seed}"
            evaluation = results / "evaluation" / variant / f"seed{seed}"
            for target in (run, evaluation):
                target.mkdir(parents=True)
            files.summary.rename(run / "summary.json")
            files.metrics.rename(evaluation / "metrics.json")
            files.credits.rename(evaluation / "credits.parquet")
    if items is not None:
        (results / "benchmarks").mkdir()
        write_items(items, results / "benchmarks" / "rm_bench.parquet")
    return results


def change_metrics(results, change):
    for path in results.glob("evaluation/*/*/metrics.json"):
        content = json.loads(path.read_text())
        for report in content["benchmarks"].values():
            change(report)
        path.write_text(json.dumps(content))


def record_items(results):
    """Record the items of rm_bench in the metrics, as the evaluate stage does."""
    recorded = {"items": file_hash(results / "benchmarks" / "rm_bench.parquet")}
    change_metrics(results, lambda report: report.update(made_from=recorded))


def rows_of(result):
    return {row.variant: row for row in result.comparison.rows}


@pytest.fixture
def two(tmp_path):
    """Two folders with one equal run of a method, and one method that differs."""
    first = stored(tmp_path, "first", {"bradley_terry": "bradley_terry", "hinge": "hinge"}, keys={"hinge": "one"})
    second = stored(
        tmp_path,
        "second",
        {"bradley_terry": "bradley_terry", "hinge": "hinge", "focal": "focal"},
        keys={"hinge": "two"},
    )
    return first, second


def test_equal_runs_count_once_and_equal_names_get_the_experiments(two, tmp_path):
    result = compare_folders(two, tmp_path / "out")
    assert list(rows_of(result)) == ["bradley_terry", "first/hinge", "second/hinge", "focal"]
    assert rows_of(result)["bradley_terry"].seeds == (0, 1, 2)
    assert result.comparison.reference == "bradley_terry"
    assert "Equal runs of first, second count once: bradley_terry." in result.comparison.notes
    with (tmp_path / "out" / "table.csv").open() as file:
        assert {record["variant"] for record in csv.DictReader(file)} == set(rows_of(result))


def test_more_seeds_of_the_same_runs_are_added(tmp_path):
    folders = [
        stored(tmp_path, name, {"bradley_terry": "bradley_terry"}, seeds)
        for name, seeds in (("a", (0, 1)), ("b", (1, 2, 3)))
    ]
    result = compare_folders(folders, tmp_path / "out")
    assert rows_of(result)["bradley_terry"].seeds == (0, 1, 2, 3)


def test_runs_without_a_common_seed_stay_apart(tmp_path):
    folders = [
        stored(tmp_path, name, {"bradley_terry": "bradley_terry"}, seeds)
        for name, seeds in (("a", (0, 1)), ("b", (2, 3)))
    ]
    result = compare_folders(folders, tmp_path / "out")
    assert list(rows_of(result)) == ["a/bradley_terry", "b/bradley_terry"]
    assert result.comparison.reference == "a/bradley_terry"


def test_another_evaluation_of_equal_runs_is_told(two, tmp_path):
    other = stored(tmp_path / "again", "third", {"bradley_terry": "bradley_terry"}, sampling_seed=5)
    result = compare_folders([two[0], other], tmp_path / "out")
    assert any("(evaluations differ by up to" in note for note in result.comparison.notes)
    by_files = [json.loads(path.read_text()) for path in two[0].glob("evaluation/bradley_terry/*/metrics.json")]
    values = [metrics["benchmarks"]["rm_bench"]["metrics"]["overall"] for metrics in by_files]
    assert rows_of(result)["bradley_terry"].cells[0].estimate.mean == pytest.approx(sum(values) / 3)


def test_content_blind_rows_of_equal_metrics_are_one(tmp_path):
    folders = [
        stored(tmp_path, name, {"longest": "longest", "bradley_terry": "bradley_terry"}, keys={"longest": name})
        for name in ("a", "b")
    ]
    assert list(rows_of(compare_folders(folders, tmp_path / "out"))) == ["bradley_terry", "longest"]


def test_two_experiments_of_one_name_are_named_by_their_folders(tmp_path):
    first = stored(tmp_path / "x", "same", {"hinge": "hinge"}, keys={"hinge": "one"})
    second = stored(tmp_path / "y", "same", {"hinge": "hinge"}, keys={"hinge": "two"})
    second = second.rename(second.with_name("renamed"))
    assert list(rows_of(compare_folders([first, second], tmp_path / "out"))) == ["same/hinge", "renamed/hinge"]


def test_columns_of_one_folder_are_listed_as_left_out(tmp_path):
    first = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
    more = BENCHMARKS | {"judge_bench": {"metrics": ["overall"], "items": 20}}
    from rm_methods.benchmarks.cards import load_benchmark_card

    more["judge_bench"]["metrics"] = list(load_benchmark_card("judge_bench").columns)
    second = stored(tmp_path, "second", {"hinge": "hinge"}, benchmarks=more)
    result = compare_folders([first, second], tmp_path / "out")
    assert {column.benchmark for column in result.comparison.columns} == {"rm_bench"}
    assert any(note.startswith("Left out, because not every folder has them:") for note in result.comparison.notes)
    assert any("(second)" in note for note in result.comparison.notes)
    with pytest.raises(UserError, match=r"no benchmark in common.*first: rm_bench"):
        compare_folders([first, second], tmp_path / "out", benchmarks=["judge_bench"])
    with pytest.raises(UserError, match=r"'rm_bnch'.*Did you mean 'rm_bench'"):
        compare_folders([first, second], tmp_path / "out", benchmarks=["rm_bnch"])


def test_a_column_that_an_older_release_lacked_is_left_out(tmp_path):
    """The card of RM-Bench has the column `hard`; these results do not."""
    older = {"rm_bench": {"metrics": ["overall", "easy", "normal"], "items": 40}}
    first = stored(tmp_path, "first", {"bradley_terry": "bradley_terry", "focal": "focal"}, benchmarks=older)
    second = stored(tmp_path, "second", {"hinge": "hinge"})
    result = compare_folders([first, second], tmp_path / "out")
    assert [column.metric for column in result.comparison.columns] == ["overall", "easy", "normal"]
    assert any(note.endswith("(second).") for note in result.comparison.notes if note.startswith("Left out"))
    assert run_verb("power", "--experiment", first).exit_code == 0


class TestRefused:
    def test_other_items(self, tmp_path):
        first = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
        fewer = {"rm_bench": BENCHMARKS["rm_bench"] | {"items": 39}}
        second = stored(tmp_path, "second", {"hinge": "hinge"}, benchmarks=fewer)
        with pytest.raises(DataError, match="39 against 40, 39 in common, first difference 'item00039'"):
            compare_folders([first, second], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_items_of_equal_names_and_other_texts(self, tmp_path):
        prompt = [{"role": "user", "content": "Say it."}]
        item = BenchmarkItem("item00000", "easy", prompt, ["this", "that"], 0)
        first = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"}, items=[item])
        other = replace(item, responses=["this", "THAT"])
        second = stored(tmp_path, "second", {"hinge": "hinge"}, items=[other])
        for folder in (first, second):
            record_items(folder)
        with pytest.raises(DataError, match=r"item 'item00000' of rm_bench differs(.|\n)*that(.|\n)*THAT"):
            compare_folders([first, second], tmp_path / "out")
        write_items([item], second / "benchmarks" / "rm_bench.parquet", ["Equal items, another file."])
        record_items(second)
        assert rows_of(compare_folders([first, second], tmp_path / "out"))
        (second / "benchmarks" / "rm_bench.parquet").unlink()
        with pytest.raises(DataError, match=r"hash of the items of rm_bench differs(.|\n)*is missing"):
            compare_folders([first, second], tmp_path / "out")

    def test_another_precision_of_scoring(self, tmp_path):
        first = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
        second = stored(tmp_path, "second", {"hinge": "hinge"}, scoring={"precision": "bf16"})
        with pytest.raises(DataError, match=r'scoring.precision differs(.|\n)*first: "fp32"(.|\n)*second: "bf16"'):
            compare_folders([first, second], tmp_path / "out")

    def test_other_sizes_of_batches_are_not(self, tmp_path):
        first = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
        second = stored(tmp_path, "second", {"hinge": "hinge"}, scoring={"tokens_per_batch": 64})
        assert rows_of(compare_folders([first, second], tmp_path / "out"))

    def test_another_limit_of_length_where_texts_were_cut(self, tmp_path):
        first = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
        second = stored(tmp_path, "second", {"hinge": "hinge"}, backbone={"max_length": 128})
        with pytest.raises(DataError, match=r"backbone.max_length differs(.|\n)*first: 256(.|\n)*second: 128"):
            compare_folders([first, second], tmp_path / "out")
        for folder in (first, second):
            change_metrics(folder, lambda report: report.update(n_truncated=0))
        assert rows_of(compare_folders([first, second], tmp_path / "out"))

    def test_another_rule_for_ties(self, two, tmp_path):
        change_metrics(two[1], lambda report: report.update(tie_rule="a tie is half right"))
        with pytest.raises(DataError, match=r"rule for ties of rm_bench differs(.|\n)*a tie is wrong(.|\n)*half right"):
            compare_folders(two, tmp_path / "out")

    def test_other_training_data_on_request(self, two, tmp_path):
        for path in two[1].glob("runs/*/*/summary.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {"hash": "d2"}}))
        result = compare_folders(two, tmp_path / "out")
        assert any(note.startswith("Not an equal comparison") for note in result.comparison.notes)
        with pytest.raises(DataError, match=r'prepared training pairs differs(.|\n)*\["d1"\](.|\n)*\["d2"\]'):
            compare_folders(two, tmp_path / "out2", same_data=True)

    def test_one_folder_or_the_same_one_twice(self, two, tmp_path):
        for folders in ([two[0]], [two[0], two[0]]):
            with pytest.raises(UserError, match="two or more different folders"):
                compare_folders(folders, tmp_path / "out")

    def test_an_unknown_reference(self, two, tmp_path):
        with pytest.raises(UserError, match=r"'hinge' is not among.*first/hinge"):
            compare_folders(two, tmp_path / "out", reference="hinge")

    def test_a_folder_without_an_experiment(self, two, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="holds no finished experiment"):
            compare_folders([two[0], tmp_path / "empty"], tmp_path / "out")


class TestStoredConfiguration:
    def test_the_one_of_the_table_counts(self, tmp_path):
        results = stored(tmp_path, "first", {"bradley_terry": "bradley_terry", "hinge": "hinge"})
        newer = stored(tmp_path / "b", "first", {"bradley_terry": "bradley_terry"})
        newer_file = next((newer / "config").glob("*.yaml"))
        newer_file.rename(results / "config" / newer_file.name)
        assert len(stored_experiment(results).runs) == 3
        runs = [[name, seed] for name in ("bradley_terry", "hinge") for seed in range(3)]
        (results / "comparison").mkdir()
        record = {"settings": {"runs": runs, "reference": "bradley_terry"}, "code": "c"}
        (results / "comparison" / "made_with.json").write_text(json.dumps(record))
        assert len(stored_experiment(results).runs) == 6

    def test_an_unfinished_one_is_passed_over_if_another_is_finished(self, tmp_path):
        results = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
        longer = experiment_config(tmp_path, experiment="first", seeds=[0, 1, 2, 3], benchmarks={"rm_bench": {}})
        write_resolved(longer)
        assert len(stored_experiment(results).runs) == 3

    def test_results_of_other_settings_are_refused(self, tmp_path):
        results = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
        path = results / "runs" / "bradley_terry" / "seed0" / "summary.json"
        content = json.loads(path.read_text())
        made = {"training": stored_experiment(results).config["training"] | {"epochs": 7}}
        path.write_text(json.dumps(content | {"depends_on": made}))
        with pytest.raises(DataError, match=r"training\.epochs is 7, the configuration says 1"):
            stored_experiment(results)

    def test_a_damaged_configuration_is_refused(self, tmp_path):
        results = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
        next((results / "config").glob("*.yaml")).write_text("experiment: first\n")
        with pytest.raises(ConfigError, match="is not a resolved configuration"):
            stored_experiment(results)

    def test_data_and_folders_of_the_other_machine_are_not_needed(self, tmp_path):
        results = stored(tmp_path, "first", {"bradley_terry": "bradley_terry"})
        (tmp_path / "pairs.jsonl").unlink()
        assert stored_experiment(results).name == "first"


class TestVerbs:
    def test_compare_needs_no_configuration_and_writes_beside_the_first_folder(self, two):
        done = run_verb("compare", *two)
        assert done.exit_code == 0, done.output
        assert "second/hinge" in done.output
        assert (two[0].parent / "comparison_first_second" / "table.md").exists()

    def test_both_forms_at_once_and_half_of_one_are_refused(self, two, tmp_path):
        done = run_verb("compare", *two, "--experiment", two[0])
        assert (done.exit_code, "but not both" in done.output) == (2, True)
        done = run_verb("compare", "--experiment", two[0], "--out", tmp_path / "out")
        assert (done.exit_code, "--config missing" in done.output) == (2, True)
        done = run_verb("compare", "--config", "c", "--experiment", two[0], "--out", tmp_path / "out", "--same-data")
        assert (done.exit_code, "are for several FOLDERS" in done.output) == (2, True)

    def test_power_reads_the_stored_configuration(self, two):
        done = run_verb("power", "--experiment", two[1], "--difference", 20)
        assert done.exit_code == 0, done.output
        assert done.output.startswith("To see 20 points with 80% probability on every column:")
        assert (two[1] / "power" / "power.png").exists()
        done = run_verb("power", "--experiment", two[1], "--reference", "hing")
        assert (done.exit_code, "Did you mean 'hinge'" in done.output) == (2, True)
