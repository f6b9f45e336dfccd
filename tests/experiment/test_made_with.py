"""Stored results say what they were made with, and other ones than those that are asked for are noticed."""

import json
import shutil
import time
from pathlib import Path

import pytest

from rm_methods.config.resolve import resolve
from rm_methods.errors import DataError
from rm_methods.experiment.experiment import RECORDS, Experiment
from rm_methods.experiment.layout import Layout
from rm_methods.experiment.made_with import asked_file, differences, read_made, refuse_outdated
from rm_methods.files import file_hash
from rm_methods.system.provenance import key_of
from rm_methods.training.run_key import run_dependencies

RECORD = "runs/a/seed0/made_with.json"
CONFIG = {
    "experiment": "x",
    "seeds": [0, 1],
    "data": {"dataset": "world"},
    "methods": {"bradley_terry": {}, "longest": {}},
    "benchmarks": {"world": {}},
}


def asked(rate: float) -> dict:
    return {"settings": {"training": {"learning_rate": rate}}, "code": "c1"}


def finish(folder: Path, source: str) -> None:
    """What the end of a job does."""
    (folder / RECORD).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / RECORD)


def is_newer(source: str, folder: Path) -> bool:
    return Path(source).stat().st_mtime > (folder / RECORD).stat().st_mtime


def test_what_is_asked_for_is_newer_than_results_that_were_made_with_something_else(tmp_path):
    first = asked_file(tmp_path, RECORD, asked(1e-3), mark=True)
    finish(tmp_path, first)
    assert read_made(tmp_path / RECORD) == asked(1e-3)
    assert asked_file(tmp_path, RECORD, asked(1e-3), mark=True) == first
    assert not is_newer(first, tmp_path)
    time.sleep(0.02)
    second = asked_file(tmp_path, RECORD, asked(5e-4), mark=True)
    assert second != first
    assert is_newer(second, tmp_path)
    asked_file(tmp_path, RECORD, asked(1e-3), mark=True)  # back to the first before anything ran: nothing to do
    assert not is_newer(first, tmp_path)
    finish(tmp_path, second)
    time.sleep(0.02)
    before = Path(first).read_text()
    assert is_newer(asked_file(tmp_path, RECORD, asked(1e-3), mark=True), tmp_path)
    assert Path(first).read_text() != before  # Snakemake ignores a newer file of equal content


def test_jobs_leave_the_file_as_the_main_process_left_it(tmp_path):
    first = asked_file(tmp_path, RECORD, asked(1e-3), mark=True)
    content = Path(first).stat().st_mtime_ns, Path(first).read_text()
    assert asked_file(tmp_path, RECORD, asked(1e-3), mark=False) == first
    assert (Path(first).stat().st_mtime_ns, Path(first).read_text()) == content


@pytest.mark.parametrize("content", ["", "[]", "{", '{"settings": {}}', "null", '"text"'])
def test_a_damaged_record_proves_nothing(tmp_path, content):
    source = asked_file(tmp_path, RECORD, asked(1e-3), mark=True)
    finish(tmp_path, source)
    (tmp_path / RECORD).write_text(content)
    time.sleep(0.02)
    assert read_made(tmp_path / RECORD) is None
    assert is_newer(asked_file(tmp_path, RECORD, asked(1e-3), mark=True), tmp_path)


def test_differences_are_named_by_their_path():
    made = {"training": {"learning_rate": 1e-3, "epochs": 1}, "seeds": [0], "old": None, "flag": True}
    wanted = {"training": {"learning_rate": 5e-4, "epochs": 1}, "seeds": [0, 1], "flag": 1}
    assert list(differences(made, wanted)) == [
        "training.learning_rate is 0.001, the configuration says 0.0005",
        "seeds is [0], the configuration says [0, 1]",
        "old is null, the configuration says absent",
        "flag is true, the configuration says 1",
    ]
    assert list(differences(made, json.loads(json.dumps(made)))) == []


def test_many_results_are_one_error(tmp_path):
    refuse_outdated({}, 3, tmp_path)
    with pytest.raises(DataError, match=r"9 of 12 results(?s:.*)runs/v5(?s:.*)and 3 more results") as caught:
        refuse_outdated({f"runs/v{k}": [f"s{j} differs" for j in range(8)] for k in range(9)}, 12, tmp_path)
    assert "and 2 more differences" in str(caught.value)


def test_every_stage_says_what_it_is_asked_for():
    experiment = Experiment(resolve(CONFIG))
    for stage in RECORDS:
        wanted = experiment.asked(stage, variant="bradley_terry", seed=0, benchmark="world")
        assert set(wanted) == {"settings", "code"}
        assert json.loads(json.dumps(wanted)) == wanted  # it is compared with what was read from JSON


def write_run(experiment: Experiment, folder: Path, variant: str, seed: int, **changes) -> Path:
    run = folder / "runs" / variant / f"seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    depends_on = run_dependencies(experiment.config, variant, seed, "pairs")
    summary = {"variant": variant, "method": variant, "seed": seed, "run_key": key_of(depends_on)}
    (run / "summary.json").write_text(json.dumps(summary | {"depends_on": depends_on} | changes))
    return run / "summary.json"


def test_runs_of_another_configuration_are_refused_by_name(tmp_path):
    experiment = Experiment(resolve(CONFIG))
    for variant, seed in experiment.runs():
        write_run(experiment, tmp_path, variant, seed)
    experiment.check_runs(tmp_path)
    other = Experiment(resolve(CONFIG | {"training": {"learning_rate": 3e-4}}))
    with pytest.raises(DataError, match="2 of 4 results") as caught:
        other.check_runs(tmp_path)
    assert "runs/bradley_terry/seed1: training.learning_rate is" in str(caught.value)
    assert "runs/longest" not in str(caught.value)  # it is not trained
    assert "snakemake" in str(caught.value)


def test_swapped_edited_and_unproved_runs_are_refused(tmp_path):
    experiment = Experiment(resolve(CONFIG))
    for variant, seed in experiment.runs():
        write_run(experiment, tmp_path, variant, seed)
    first, second = (tmp_path / "runs" / "bradley_terry" / f"seed{seed}" / "summary.json" for seed in (0, 1))
    whole = first.read_text()
    for content, message in (
        (second.read_text(), "seed is 1, the configuration says 0"),
        (json.dumps(json.loads(whole) | {"run_key": "other"}), "summary.json was edited"),
        (
            json.dumps({key: value for key, value in json.loads(whole).items() if key != "depends_on"}),
            "no record of its settings",
        ),
    ):
        first.write_text(content)
        with pytest.raises(DataError, match=f"1 of 4 results(?s:.*)runs/bradley_terry/seed0: .*{message}"):
            experiment.check_runs(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.parquet").write_text("other pairs")
    first.write_text(whole)
    with pytest.raises(DataError, match='pairs is "pairs", the configuration says'):
        Experiment(experiment.config).check_runs(tmp_path)


def write_scores_of_pool(folder: Path, pool: str = "samples") -> tuple[Path, Path]:
    """Files of items and scores, with a report that has their hashes; returns (items, scores)."""
    layout = Layout(folder)
    items = layout.items(pool)
    scores = layout.scores("bradley_terry", 0, pool)
    for file in (items, scores):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content of {file.name}")
    hashes = {"items": file_hash(items), "scores": file_hash(scores)}
    layout.score_report("bradley_terry", 0, pool).write_text(json.dumps({"hashes": hashes}))
    return items, scores


@pytest.mark.parametrize(("changed", "message"), [(0, "since it was scored"), (1, "since it was written")])
def test_scores_and_items_that_were_edited_are_refused(tmp_path, changed, message):
    pools = {"overoptimization": {"prompts": "iid", "best_of_n": {"pools": ["samples"]}}}
    experiment = Experiment(resolve(CONFIG | pools | {"seeds": [0]}))
    write_run(experiment, tmp_path, "bradley_terry", 0)
    files = write_scores_of_pool(tmp_path)
    experiment.check_optimized(tmp_path)
    files[changed].write_text("edited")
    with pytest.raises(DataError, match=f"scores/bradley_terry/seed0/samples: .*{files[changed].name} was.*{message}"):
        Experiment(experiment.config).check_optimized(tmp_path)


def test_ppo_against_another_run_of_the_reward_model_is_refused(tmp_path):
    section = {"overoptimization": {"prompts": "iid", "ppo": {"enabled": True}}}
    experiment = Experiment(resolve(CONFIG | section | {"seeds": [0]}))
    run_key = json.loads(write_run(experiment, tmp_path, "bradley_terry", 0).read_text())["run_key"]
    summary = Layout(tmp_path).ppo_run("bradley_terry", 0) / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"reward_model": run_key}))
    experiment.check_optimized(tmp_path)
    summary.write_text(json.dumps({"reward_model": "earlier"}))
    for check in (experiment.check_optimized, experiment.check_ppo):
        with pytest.raises(DataError, match=f"ppo/bradley_terry/seed0: .*run key earlier, .* has {run_key}"):
            check(tmp_path)


def test_the_file_of_test_pairs_is_a_source_of_the_pairs(tmp_path):
    """Snakemake prepares again if the file changes; another name or reader is another setting or code."""
    for name in ("pairs.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("{}")
    data = {"dataset": str(tmp_path / "pairs.jsonl")}
    test = str(tmp_path / "test.jsonl")
    alone = Experiment(resolve(CONFIG | {"data": data, "benchmarks": {}}))
    both = Experiment(resolve(CONFIG | {"data": data | {"test": test}, "benchmarks": {}}))
    assert alone.data_sources() == [data["dataset"]]
    assert both.data_sources() == [data["dataset"], test]
    assert alone.asked("prepare")["settings"] != both.asked("prepare")["settings"]
    assert alone.code("prepare") == both.code("prepare")
    from_hub = Experiment(resolve(CONFIG | {"data": {"dataset": "world", "test": test}, "benchmarks": {}}))
    assert from_hub.data_sources() == [test]
    assert from_hub.code("prepare") != Experiment(resolve(CONFIG)).code("prepare")
