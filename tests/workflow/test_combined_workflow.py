"""A combined run is evaluated together with its members through the real workflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pandas as pd
import pytest

from rm_methods.benchmarks.evaluation import evaluate_run
from rm_methods.benchmarks.item import read_items
from rm_methods.benchmarks.score_table import SCORE_COLUMNS, write_scores
from rm_methods.config.resolve import load_config
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout
from rm_methods.files import file_hash, write_json
from rm_methods.overoptimization.best_of_n import left_out_gold
from rm_methods.overoptimization.summarize import _pool_runs
from rm_methods.parquet import table_of_rows, write_parquet
from rm_methods.reward_models.model_folder import write_checksums
from rm_methods.scoring.scorer import load_scorer, scoring_settings
from rm_methods.stored import read_metrics
from tests.workflow.checkouts import SMOKE, checkout, environment, planned, results, snakemake

pytestmark = pytest.mark.process

STUDY = SMOKE | {
    "seeds": [0, 1, 2],
    "methods": {"bradley_terry": {}, "ensemble": {"aggregate": "worst_case"}},
    "tracking": {"enabled": False},
    "overoptimization": {
        "prompts": "iid",
        "variants": ["ensemble"],
        "best_of_n": {"pools": ["samples"], "limit": 4, "samples": 4},
        "sampling": {"max_new_tokens": 8},
        "sft": {"learning_rate": 1e-3},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp("combined"), STUDY)
    snakemake(folder)
    return folder


def world_of(metrics):
    return read_metrics(metrics)["benchmarks"]["world"]


def test_metrics_without_a_member_are_those_of_the_ensemble_of_the_others(finished, tmp_path):
    layout = Layout(results(finished))
    stored = world_of(layout.metrics("ensemble", 0))
    assert stored["left_out_seeds"] == [0, 1, 2]
    assert stored["left_out"].keys() == stored["metrics"].keys()
    description = json.loads((layout.model("ensemble", 0) / "scorer.json").read_text())
    items = layout.items("world")
    settings = scoring_settings(load_config([finished / "config" / "smoke.yaml"]))
    for left_out in range(3):
        kept = [member for member in range(3) if member != left_out]
        members = [str(layout.model("bradley_terry", seed)) for seed in kept]
        folder = tmp_path / str(left_out)
        centers = [description["centers"][member] for member in kept]
        write_json(folder / "scorer.json", description | {"members": members, "centers": centers})
        write_checksums(folder)
        write_scores(load_scorer(folder, settings).score(read_items(items)), folder / "scores.parquet")
        identity = {"variant": "others", "method": "ensemble", "seed": 0, "run_key": "key"}
        outputs = (folder / "metrics.json", folder / "credits.parquet")
        evaluate_run([("world", items, folder / "scores.parquet")], identity, *outputs)
        expected = world_of(folder / "metrics.json")["metrics"]
        assert {name: values[left_out] for name, values in stored["left_out"].items()} == expected
    assert len({tuple(values) for values in zip(*stored["left_out"].values(), strict=True)}) > 1
    assert "left_out" not in world_of(layout.metrics("bradley_terry", 0))


def test_best_of_n_without_a_member_reads_the_members_scores_of_the_pool(finished, monkeypatch):
    """Only the ensemble is optimized; its members score the pool for it."""
    monkeypatch.chdir(finished)
    (run,) = _pool_runs(Experiment(load_config([finished / "config" / "smoke.yaml"])), results(finished))
    assert run.members.seeds == (0, 1, 2)
    assert left_out_gold(read_items(run.items), run.scores, run.members, "samples").shape[:2] == (3, 4)


def test_only_the_combined_run_is_evaluated_again_when_its_method_changes(finished):
    assert "Nothing to be done" in snakemake(finished, "-n")
    file = finished / "rm_methods" / "methods" / "ensemble.py"
    before = file.read_text()
    try:
        file.write_text(before + "\n# changed\n")
        jobs = planned(snakemake(finished, "-n"))
    finally:
        file.write_text(before)
    made = {"train": 1, "score": 2, "evaluate": 1, "overoptimization": 1, "compare": 1, "html_report": 1, "all": 1}
    assert jobs == made


def test_members_that_were_scored_again_are_noticed(finished, tmp_path):
    """A member is scored and evaluated again by hand; the metrics of the ensemble are of the earlier table."""
    copied = tmp_path / "copied"
    shutil.copytree(finished, copied, ignore=shutil.ignore_patterns(".snakemake"))
    layout = Layout(results(copied))
    table = layout.scores("bradley_terry", 1, "world")
    scores = pd.read_parquet(table)
    scores["score"] += 1.0
    write_parquet(table_of_rows(scores.to_dict("records"), SCORE_COLUMNS), table)
    report = json.loads(layout.score_report("bradley_terry", 1, "world").read_text())
    report["hashes"]["scores"] = file_hash(table)
    write_json(layout.score_report("bradley_terry", 1, "world"), report)

    def run(*words):
        command = ["rm-methods", *map(str, words)]
        return subprocess.run(command, cwd=copied, env=environment(copied), capture_output=True, text=True)

    evaluated = ["--summary", layout.summary("bradley_terry", 1), "--metrics", layout.metrics("bradley_terry", 1)]
    evaluated += ["--credits", layout.credits("bradley_terry", 1), "--items", layout.items("world"), "--scores", table]
    assert run("evaluate", "--benchmark", "world", *evaluated).returncode == 0
    done = run("compare", "--config", "config/smoke.yaml", "--experiment", results(copied), "--out", tmp_path / "out")
    assert done.returncode == 2
    changed = f"{os.path.relpath(table, copied)}: is not the table that "
    assert changed in done.stderr.replace(f"{copied}/", "")
    assert "evaluation/ensemble/seed0/metrics.json was computed from" in done.stderr
