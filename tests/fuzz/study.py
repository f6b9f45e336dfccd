"""Small finished experiments, made by the verbs themselves, whose files the fuzzers damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.config.resolve import load_config
from rm_methods.experiment.layout import Layout
from rm_methods.yaml_files import yaml_text
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
TRAINING = {"epochs": 1, "pairs_per_step": 8, "learning_rate": 1e-3, "precision": "fp32", "log_every_steps": 1}
SEEDS = (0, 1)
WORLD_MODEL_SETTINGS = (
    "texts=64",
    "epochs=1",
    "vocabulary_size=300",
    "hidden_size=16",
    "intermediate_size=32",
    "layers=1",
    "heads=2",
    "probe_pairs=40",
)


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
        "training": TRAINING,
        "methods": {"bradley_terry": {}, "label_smoothing": {}, "longest": {}},
        "benchmarks": {"heldout": {}},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }


def distance_configuration(folder: Path) -> dict:
    """The same pairs and backbone with a joint teacher, and diagnostics."""
    return configuration(folder) | {
        "experiment": "distance",
        "seeds": [0],
        "methods": {"bradley_terry": {}, "teacher": {"method": "joint_encoder", "masked_language_epochs": 0}},
        "diagnostics": {"benchmarks": ["heldout"], "limit": 4},
    }


def tuning_configuration(folder: Path) -> dict:
    """The same pairs and backbone with a grid of two learning rates."""
    return configuration(folder) | {
        "experiment": "tuning",
        "seeds": [0],
        "methods": {"bradley_terry": {}},
        "tuning": {"enabled": True, "learning_rates": [1e-3, 3e-3], "knobs": False},
    }


def policy_configuration(folder: Path) -> dict:
    """An experiment of the controlled world with Best-of-N and PPO."""
    return {
        "experiment": "policies",
        "results": str(folder / "results"),
        "seeds": [0],
        "data": {"dataset": "world", "options": {"train_pairs": 30, "validation_pairs": 10, "test_pairs": 10}},
        "backbone": {"max_length": 256, "tiny": TINY},
        "training": TRAINING,
        "methods": {"bradley_terry": {}, "longest": {}},
        "overoptimization": {
            "prompts": "iid",
            "variants": ["bradley_terry", "longest"],
            "best_of_n": {"pools": ["samples"], "limit": 3, "samples": 2},
            "sampling": {"max_new_tokens": 8},
            "sft": {"learning_rate": 1e-3},
            "ppo": {
                "enabled": True,
                "variants": ["bradley_terry"],
                "updates": 1,
                "batch_size": 2,
                "train_prompts": 4,
                "evaluation_prompts": 2,
            },
        },
        "tracking": {"enabled": False},
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


def _write_configuration(config: dict, folder: Path, name: str) -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def _train(config: Path, layout: Layout, variant: str, seed: int, work: Path) -> None:
    what = ("--variant", variant, "--seed", seed, "--pairs", layout.pairs, "--backbone", layout.backbone)
    run_verb("train", "--config", config, *what, "--out", layout.run(variant, seed), "--work", work, "--threads", 1)


def make_finished(folder: Path) -> None:
    """Write config.yaml, pairs.jsonl, mlflow.db and results/fuzz: three variants, evaluated on held-out pairs."""
    write_rows(text_rows(), folder / "pairs.jsonl")
    config = _write_configuration(configuration(folder), folder, "config.yaml")
    layout = Layout(folder / "results" / "fuzz")
    options = ("--config", config)
    run_verb("prepare", *options, "--pairs", layout.pairs, "--report", layout.pairs_report)
    run_verb("prepare-backbone", *options, "--pairs", layout.pairs, "--out", layout.backbone)
    benchmark = ("--benchmark", "heldout")
    items = layout.items("heldout")
    written = ("--items", items, "--report", layout.items_report("heldout"))
    run_verb("prepare-benchmark", *options, *benchmark, "--pairs", layout.pairs, *written)
    for variant, seeds in (("bradley_terry", SEEDS), ("label_smoothing", SEEDS), ("longest", SEEDS[:1])):
        for seed in seeds:
            scores = layout.scores(variant, seed, "heldout")
            _train(config, layout, variant, seed, folder / "work")
            run_verb("score", "--model", layout.model(variant, seed), "--data", items, "--out", scores)
            read = ("--items", items, "--scores", scores, "--summary", layout.summary(variant, seed))
            made = ("--metrics", layout.metrics(variant, seed), "--credits", layout.credits(variant, seed))
            run_verb("evaluate", *benchmark, *read, *made)
    # As the workflow stores it: the verbs that read a folder alone take the configuration from there.
    stored = layout.folder / "config" / "fuzz.yaml"
    stored.parent.mkdir()
    stored.write_text(yaml_text(load_config([config])))
    run_verb("compare", *options, "--experiment", layout.folder, "--out", folder / "comparison")
    run_verb("track", *options, "--experiment", layout.folder, "--out", folder / "tracking" / "all.json")
    _make_distances(folder, layout)
    _make_tuning(folder, layout)
    shutil.rmtree(folder / "work", ignore_errors=True)


def _make_distances(folder: Path, finished: Layout) -> None:
    """Write distance.yaml and results/distance: diagnostics of a run, and its distance from a joint teacher."""
    config = _write_configuration(distance_configuration(folder), folder, "distance.yaml")
    layout = Layout(folder / "results" / "distance")
    for name in ("data", "benchmarks"):
        shutil.copytree(finished.folder / name, layout.folder / name)
    for variant in ("bradley_terry", "teacher"):
        _train(config, layout, variant, 0, folder / "work")
    out = ("--out", layout.diagnosed_run("bradley_terry", 0))
    model = ("--variant", "bradley_terry", "--model", layout.model("bradley_terry", 0))
    items = ("--benchmark", "heldout", "--items", layout.items("heldout"))
    run_verb("diagnose", "--config", config, *model, *items, *out)
    teacher = ("--teacher", f"teacher={layout.model('teacher', 0)}", "--backbone", layout.backbone, "--seed", 0)
    run_verb("diagnose-teacher", "--config", config, *model, *teacher, *items, *out)


def _make_tuning(folder: Path, finished: Layout) -> None:
    """Write tune.yaml and results/tuning: the runs of a grid."""
    config = _write_configuration(tuning_configuration(folder), folder, "tune.yaml")
    layout = Layout(folder / "results" / "tuning")
    shutil.copytree(finished.folder / "data", layout.folder / "data")
    for variant in load_config([config])["methods"]:
        _train(config, layout, variant, 0, folder / "work")


def make_policies(folder: Path) -> None:
    """Write config.yaml and results/policies: a policy, its samples, their scores, and a PPO run; and world_model/."""
    config = _write_configuration(policy_configuration(folder), folder, "config.yaml")
    layout = Layout(folder / "results" / "policies")
    options = ("--config", config)
    work = ("--work", folder / "work")
    run_verb("prepare", *options, "--pairs", layout.pairs, "--report", layout.pairs_report)
    run_verb("prepare-backbone", *options, "--pairs", layout.pairs, "--out", layout.backbone)
    run_verb("sft", *options, "--pairs", layout.pairs, "--out", layout.fine_tuned, *work)
    drawn = (*options, "--policy", layout.fine_tuned / "policy", "--pairs", layout.pairs, *work)
    items = layout.items("samples")
    run_verb("sample-pool", *drawn, "--items", items, "--report", items.with_suffix(".json"))
    run_verb("sample-references", *drawn, "--out", layout.references)
    for variant in ("bradley_terry", "longest"):
        _train(config, layout, variant, 0, folder / "work")
        scores = layout.scores(variant, 0, "samples")
        run_verb("score", "--model", layout.model(variant, 0), "--data", items, "--out", scores)
    run = ("--variant", "bradley_terry", "--seed", 0, "--model", layout.model("bradley_terry", 0))
    run_verb("ppo", *drawn, *run, "--references", layout.references, "--out", layout.ppo_run("bradley_terry", 0))
    settings = [part for setting in WORLD_MODEL_SETTINGS for part in ("--set", setting)]
    run_verb("train-world-model", "--seed", 0, "--out", folder / "world_model", *work, *settings)
    shutil.rmtree(folder / "work", ignore_errors=True)
