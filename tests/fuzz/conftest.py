"""A small finished experiment, made once by the verbs themselves, whose files the fuzzers damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rm_methods.cli import main
from tests.conftest import REPOSITORY, made_up_pairs

EXAMPLES = REPOSITORY / "tests" / "benchmarks" / "examples"
TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "layers": 1,
    "heads": 2,
    "key_value_heads": 2,
    "vocabulary_size": 300,
}
SEEDS = (0, 1)


def run_verb(*arguments) -> None:
    """Run a verb that must succeed."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def configuration(folder: Path) -> dict:
    """The configuration of the finished experiment in `folder`."""
    return {
        "experiment": "fuzz",
        "results": str(folder / "results"),
        "seeds": list(SEEDS),
        "data": {"dataset": str(folder / "pairs.jsonl"), "validation_fraction": 0.1, "test_fraction": 0.4, "seed": 0},
        "backbone": {"max_length": 128, "tiny": TINY},
        "training": {
            "epochs": 1,
            "pairs_per_step": 8,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "log_every_steps": 1,
        },
        "methods": {"bradley_terry": {}, "longest": {}},
        "benchmarks": {"heldout": {}},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }


def text_rows(count: int = 40) -> list[dict]:
    """Rows of a preference file in which prompt and answers are text."""
    pairs = made_up_pairs(count)
    return [
        {"id": f"row{k}", "prompt": p.prompt[0]["content"], "chosen": p.chosen, "rejected": p.rejected}
        for k, p in enumerate(pairs)
    ]


def write_rows(rows: list[dict], target: Path) -> None:
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """Folder with config.yaml, pairs.jsonl, mlflow.db and results/fuzz: two variants, evaluated on held-out pairs."""
    folder = tmp_path_factory.mktemp("finished")
    write_rows(text_rows(), folder / "pairs.jsonl")
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(folder), sort_keys=False))
    results, config = folder / "results" / "fuzz", ("--config", folder / "config.yaml")
    pairs, items = results / "data" / "pairs.parquet", results / "benchmarks" / "heldout.parquet"
    run_verb("prepare", *config, "--pairs", pairs, "--report", results / "data" / "report.json")
    run_verb("prepare-backbone", *config, "--pairs", pairs, "--out", results / "backbone")
    benchmark = ("--benchmark", "heldout")
    report = ("--report", results / "benchmarks" / "heldout.json")
    run_verb("prepare-benchmark", *config, *benchmark, "--pairs", pairs, "--items", items, *report)
    for variant, seeds in (("bradley_terry", SEEDS), ("longest", SEEDS[:1])):
        for seed in seeds:
            run = results / "runs" / variant / f"seed{seed}"
            evaluation = results / "evaluation" / variant / f"seed{seed}"
            scores = results / "scores" / variant / f"seed{seed}" / "heldout.parquet"
            what = ("--variant", variant, "--seed", seed, "--pairs", pairs, "--backbone", results / "backbone")
            run_verb("train", *config, *what, "--out", run, "--work", folder / "work")
            run_verb("score", "--model", run / "model", "--data", items, "--out", scores)
            written = ("--metrics", evaluation / "metrics.json", "--credits", evaluation / "credits.parquet")
            run_verb(
                "evaluate",
                *benchmark,
                "--items",
                items,
                "--scores",
                scores,
                "--summary",
                run / "summary.json",
                *written,
            )
    run_verb("compare", *config, "--experiment", results, "--out", folder / "comparison")
    run_verb("track", *config, "--experiment", results, "--out", folder / "tracking" / "all.json")
    shutil.rmtree(folder / "work", ignore_errors=True)
    return folder
