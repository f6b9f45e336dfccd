"""The real workflow, on a world of a few hundred pairs: end to end, what runs again, killed runs, MLflow down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from rm_methods.errors import DataError
from rm_methods.methods.registry import load_method_card
from rm_methods.system.run_lock import run_lock
from tests.conftest import REPOSITORY
from tests.workflow.checkouts import SMOKE, checkout, environment, planned, results, snakemake

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A checkout in which the whole workflow has run, with MLflow unreachable."""
    folder = checkout(tmp_path_factory.mktemp("workflow"))
    snakemake(folder, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    return folder


def test_dry_run_of_the_quickstart_shows_every_job(tmp_path):
    folder = checkout(tmp_path / "fresh")
    shutil.copytree(REPOSITORY / "config", folder / "config", dirs_exist_ok=True)
    done = subprocess.run(
        ["snakemake", "-n", "--cores", "2"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(planned(done.stdout + done.stderr)) == {
        "all", "prepare", "prepare_backbone", "prepare_benchmark", "train", "score", "evaluate", "diagnose",
        "diagnose_teacher", "diagnose_summary", "sft", "sample_pool", "sample_references", "ppo", "overoptimization",
        "compare", "html_report", "export",
    }  # fmt: skip


def test_the_workflow_runs_to_the_end(finished):
    comparison = results(finished) / "comparison"
    assert {p.name for p in comparison.iterdir()} >= {
        "table.txt",
        "table.md",
        "table.csv",
        "table.tex",
        "comparison.png",
        "comparison.svg",
        "ranks.png",
        "ranks.svg",
        "reliability.png",
        "reliability.svg",
    }
    table = (comparison / "table.txt").read_text()
    assert "world: overlap with the training pairs is not counted" in table
    for method in SMOKE["methods"]:
        assert load_method_card(method).title.partition(" (")[0] in table
    metrics = json.loads((results(finished) / "evaluation" / "bradley_terry" / "seed0" / "metrics.json").read_text())
    assert metrics["benchmarks"]["world"]["n_scored"] == metrics["benchmarks"]["world"]["n_total"] == 6 * 20
    summary = json.loads((results(finished) / "runs" / "bradley_terry" / "seed0" / "summary.json").read_text())
    assert metrics["run_key"] == summary["run_key"]


def test_nothing_runs_again_when_nothing_changed(finished):
    assert "Nothing to be done" in snakemake(finished, "-n")


def test_mlflow_down_leaves_runs_pending_and_track_fills_them_in(finished):
    record = json.loads((results(finished) / "tracking" / "export.json").read_text())
    assert [run["status"] for run in record] == ["pending"] * 3
    output = snakemake(finished, "track")
    assert "Runs: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning" in output
    record = json.loads((results(finished) / "tracking" / "export.json").read_text())
    assert [run["status"] for run in record] == ["exported"] * 3
    import sqlite3

    summary = json.loads((results(finished) / "tracking" / "comparison.json").read_text())
    assert summary["not_compared"] is None
    # Runs of seeds, their variants, and the comparison.
    with sqlite3.connect(finished / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (7,)
    snakemake(finished, "track")
    with sqlite3.connect(finished / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (7,)


def test_editing_a_methods_code_reruns_that_method_only(finished):
    file = finished / "rm_methods" / "methods" / "label_smoothing.py"
    before = file.read_text()
    try:
        file.write_text(before + "\n# changed\n")
        output = snakemake(finished, "-n")
    finally:
        file.write_text(before)
    after = {"compare": 1, "html_report": 1, "export": 1, "all": 1}
    assert planned(output) == {"train": 1, "score": 1, "evaluate": 1} | after
    assert "runs/label_smoothing/seed0" in output
    assert "output: results/smoke/runs/bradley_terry" not in output


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        (
            "methods",
            {**SMOKE["methods"], "label_smoothing": {"smoothing": 0.2}},
            {"train": 1, "score": 1, "evaluate": 1},
        ),
        ("seeds", [0, 1], {"train": 2, "score": 2, "evaluate": 2}),
        ("scoring", {"tokens_per_batch": 999}, {"score": 3, "evaluate": 3}),
        ("tracking", {"experiment": "other"}, {}),
    ],
)
def test_editing_the_configuration_reruns_what_depends_on_it(finished, section, value, expected):
    changed = finished / "config" / "changed.yaml"
    changed.write_text(yaml.safe_dump(SMOKE | {section: value}))
    done = subprocess.run(
        ["snakemake", "-n", "--cores", "2", "--configfile", str(changed)],
        cwd=finished, env=environment(finished), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    jobs = planned(done.stdout + done.stderr)
    assert {
        rule: count for rule, count in jobs.items() if rule not in ("compare", "html_report", "export", "all")
    } == expected
    assert "export" in jobs


def dry_run(folder: Path, **changes) -> dict[str, int]:
    """Jobs that a configuration with some changes would run."""
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(SMOKE | changes))
    output = snakemake(folder, "-n")
    jobs = planned(output)
    assert jobs or "Nothing to be done" in output
    return {rule: count for rule, count in jobs.items() if rule not in ("compare", "html_report", "export", "all")}


def test_results_that_lost_snakemakes_memory_are_judged_by_what_they_were_made_with(finished, tmp_path):
    """Moved or copied results, and one absolute `results:` that two checkouts share."""
    slower = {"training": SMOKE["training"] | {"learning_rate": 5e-4}}
    copied = tmp_path / "copied"
    shutil.copytree(finished, copied, ignore=shutil.ignore_patterns(".snakemake"))
    shared = {"results": str(copied / "results")}
    other = checkout(tmp_path / "other")
    for folder, same in ((copied, {}), (other, shared)):
        assert dry_run(folder, **same) == {}
        assert dry_run(folder, **same, **slower) == {"train": 2, "score": 2, "evaluate": 2}
        assert dry_run(folder, **same) == {}  # a dry run leaves no trace
    comparison = ["rm-methods", "compare", "--experiment", "results/smoke", "--out", str(tmp_path / "out"), "--config"]
    (copied / "config" / "slower.yaml").write_text(yaml.safe_dump(SMOKE | slower))
    for config, code in (("smoke", 0), ("slower", 2)):
        done = subprocess.run(
            [*comparison, f"config/{config}.yaml"], cwd=copied, env=environment(copied), capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
    assert "runs/bradley_terry/seed0: training.learning_rate is 0.001, the configuration says 0.0005" in done.stderr
    assert "runs/longest" not in done.stderr


def test_a_copy_of_results_has_the_same_runs_and_needs_no_configuration(finished, tmp_path):
    from rm_methods.comparison.folders import compare_folders

    copy = Path(shutil.copytree(results(finished), tmp_path / "copy", ignore=shutil.ignore_patterns("data", "model")))
    result = compare_folders([results(finished), copy], tmp_path / "out")
    assert [row.variant for row in result.comparison.rows] == list(SMOKE["methods"])
    same = "; ".join(SMOKE["methods"])
    assert f"Equal runs of smoke, copy count once: {same}." in result.comparison.notes
    items = copy / "benchmarks" / "world.parquet"
    items.write_bytes(items.read_bytes() + b"edited")
    with pytest.raises(DataError, match=r"world.parquet"):
        compare_folders([results(finished), copy], tmp_path / "out")


def test_a_second_snakemake_elsewhere_is_refused_and_deletes_nothing(finished, tmp_path):
    copied, other = tmp_path / "copied", checkout(tmp_path / "other")
    shutil.copytree(finished, copied, ignore=shutil.ignore_patterns(".snakemake"))
    more = SMOKE | {"results": str(copied / "results"), "seeds": [0, 1]}
    (other / "config" / "smoke.yaml").write_text(yaml.safe_dump(more))
    before = sorted(path for path in results(copied).rglob("*") if "asked" not in path.parts)
    with run_lock(results(copied)):
        output = snakemake(other, check=False)
        assert "is being written by process" in output
        assert planned(snakemake(other, "-n"))["train"] == 2
    missing = [path for path in before if not path.exists() and path.name != "writer.lock"]
    assert not missing
    assert not (results(copied) / "runs" / "bradley_terry" / "seed1").exists()


def test_editing_the_data_and_its_card_makes_them_again(tmp_path):
    """A file of pairs that grows, a card whose revision is pinned, a chat template that changes."""
    folder = checkout(tmp_path / "own")
    pairs = folder / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"p{k}", "chosen": f"good {k}", "rejected": f"bad {k}"}) + "\n" for k in range(20)
        )
    )
    own = {
        "data": {"dataset": "pairs.jsonl", "test_fraction": 0.2},
        "benchmarks": {"heldout": {}},
        "methods": {"longest": {}},
    }
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(SMOKE | own))
    snakemake(folder, "results/smoke/comparison/table.txt")
    contamination = json.loads((results(folder) / "benchmarks" / "heldout.contamination.json").read_text())
    assert 0 < contamination["items"] < 20
    assert contamination["items"] + contamination["training_pairs"] <= 20
    assert "heldout, overlap with" in (results(folder) / "comparison" / "table.txt").read_text()
    assert "Nothing to be done" in snakemake(folder, "-n", "results/smoke/comparison/table.txt")
    with pairs.open("a") as stream:
        stream.write(json.dumps({"prompt": "new", "chosen": "good", "rejected": "bad"}) + "\n")
    assert {"prepare", "train", "contamination"} <= set(
        planned(snakemake(folder, "-n", "results/smoke/comparison/table.txt"))
    )
    snakemake(folder, "results/smoke/comparison/table.txt")
    card = folder / "rm_methods" / "data" / "benchmarks" / "heldout.yaml"
    card.write_text(card.read_text() + "# changed\n")
    jobs = planned(snakemake(folder, "-n", "results/smoke/comparison/table.txt"))
    assert "prepare_benchmark" in jobs
    assert "train" not in jobs


def test_a_wrong_configuration_stops_everything_with_all_problems(finished):
    wrong = finished / "config" / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(SMOKE | {"training": {"epoch": 1}, "methods": {"bradly_terry": {}}}))
    done = subprocess.run(
        ["snakemake", "-n", "--cores", "2", "--configfile", str(wrong)],
        cwd=finished, env=environment(finished), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "training.epoch: unknown key. Did you mean 'epochs'?" in output
    assert "unknown method 'bradly_terry'. Did you mean 'bradley_terry'?" in output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "methods: {longest: {}, 5: {}}\nmethods: {shortest: {}, 5: {}}\n"
            "seeds: [010]\nresults: $NOT_SET_ANYWHERE/x\n",
            (
                "methods: written twice, on lines 3 and 4",
                "seeds.0: 010 on line 5",
                "methods.5: the name must be text",
                "'NOT_SET_ANYWHERE', which is not set",
            ),
        ),
        (
            "methods: {longest: {}}\nresults: 'a{b}'\ntracking: {uri: 'htp://server'}\n",
            ("results: 'a{b}' has the character '{'", "tracking.uri: The MLflow address 'htp://server'"),
        ),
    ],
)
def test_a_workflow_reads_configurations_as_check_does(tmp_path, text, expected):
    """Snakemake's own reading takes the last of two equal keys and knows YAML 1.1 only."""
    folder = checkout(tmp_path / "checkout")
    (folder / "wrong.yaml").write_text("experiment: x\ndata: {dataset: world}\n" + text)
    done = subprocess.run(
        ["snakemake", "-n", "--cores", "1", "--configfile", "wrong.yaml", "--config", "scoring={precision: fp32}"],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    for says in expected:
        assert says in done.stdout + done.stderr


def test_paths_with_variables_reach_commands_quoted_and_options_go_over_the_file(tmp_path):
    folder = checkout(tmp_path / "checkout")
    (folder / "own.yaml").write_text(
        "experiment: x\nresults: $PLACE\ndata: {dataset: world, options: {train_pairs: 20, test_pairs: 10}}\n"
        "methods: {longest: {}}\nbenchmarks: {world: {}}\ntracking: {enabled: false}\n"
    )
    place = tmp_path / "a b;touch injected $(touch injected)"
    command = ["snakemake", "--cores", "2", "--configfile", "own.yaml", "--config", "seeds=[7]"]
    surroundings = environment(folder) | {"PLACE": str(place)}
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "x" / "runs" / "longest" / "seed7" / "summary.json").exists()
    assert (place / "x" / "comparison" / "table.txt").exists()
    assert not list(tmp_path.rglob("injected"))


def test_a_killed_run_continues_from_its_checkpoint(tmp_path):
    """SIGKILL of Snakemake and its jobs in the middle of a forked training.

    The rerun resumes, does every step once, and ends with the weights of a cold training that nobody interrupted.
    """
    folder = checkout(tmp_path / "killed")
    long = SMOKE | {"methods": {"bradley_terry": {}}, "training": SMOKE["training"] | {"epochs": 40}}
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(long))
    process = subprocess.Popen(
        ["snakemake", "--cores", "2", "--configfile", "config/smoke.yaml"],
        cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not list((results(folder) / "work").glob("*/checkpoint-*/complete")) and time.monotonic() < deadline:
        assert process.poll() is None, "the workflow ended before it could be killed"
        time.sleep(0.05)
    run = results(folder) / "runs" / "bradley_terry" / "seed0"
    writer = json.loads((run / "writer.lock").read_text())["process"]
    assert "warm_start" in Path(f"/proc/{writer}/cmdline").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "summary.json").exists()
    snakemake(folder, "--unlock")
    snakemake(folder, "--rerun-incomplete")
    log = (results(folder) / "logs" / "train" / "bradley_terry_seed0.log").read_text()
    assert "resumes from" in log
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == 40 * 15
    resumed = (run / "model" / "SHA256SUMS").read_text()
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(long | {"resources": {"warm_start": False}}))
    snakemake(folder, "--forcerun", "train", "--until", "train")
    assert "resumes from" not in (results(folder) / "logs" / "train" / "bradley_terry_seed0.log").read_text()
    assert (run / "model" / "SHA256SUMS").read_text() == resumed
