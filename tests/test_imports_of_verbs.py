"""No verb imports what it does not use: the heavy packages that each may import, seen in real processes.

`pandas` is in most rows because pyarrow imports it to make an array of a list.  `PIL`, `tqdm` and the like, which come
with others, are not listed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rm_methods.preferences.pair import write_pairs
from tests.conftest import REPOSITORY, experiment_config, made_up_pairs
from tests.workflow.checkouts import SMOKE, checkout, environment, results, snakemake

pytestmark = pytest.mark.process

HEAVY = (
    "accelerate", "datasets", "deepspeed", "evaluate", "huggingface_hub", "jinja2", "matplotlib", "mlflow", "pandas",
    "peft", "pyarrow", "rich", "scipy", "scipy.stats", "sklearn", "snakemake", "sqlalchemy", "torch", "transformers",
    "transformers.trainer",
)  # fmt: skip
TABLES = {"pandas", "pyarrow"}
# transformers imports scipy for the losses of object detectors, and accelerate for placing weights.
MODELS = TABLES | {"torch", "transformers", "accelerate", "huggingface_hub", "jinja2", "scipy"}
# The module of the transformers Trainer imports datasets and peft.
TRAININGS = MODELS | {"transformers.trainer", "datasets", "peft"}
RESULTS = TABLES | {"matplotlib", "scipy"}

# Verb, or the verb and what it works on -> the heavy packages that it may import.
ALLOWED = {
    "--help": set(),
    "list": set(),
    "check": set(),
    "plan": set(),
    "prepare": TABLES,
    "prepare-backbone": MODELS,
    "prepare-benchmark": TABLES,
    "train": TRAININGS,
    # The model card is written by huggingface_hub.
    "train longest": TABLES | {"huggingface_hub"},
    "score": MODELS,
    # scipy gives the interval of an accuracy on pairs.
    "score longest": TABLES | {"scipy"},
    "evaluate": TABLES,
    "sft": TRAININGS,
    "sample-pool": MODELS,
    "sample-references": MODELS,
    "ppo": MODELS,
    "diagnose": MODELS,
    "diagnose-summary": RESULTS | {"rich"},
    "overoptimization": RESULTS | {"rich"},
    "compare": RESULTS | {"rich", "scipy.stats"},
    "report": RESULTS | {"jinja2"},
    "track": TABLES | {"mlflow", "scipy", "sqlalchemy"},
    "bundle": TABLES,
    "verify": RESULTS | {"rich", "scipy.stats"},
}
# Runs the command as the console script does, and writes its arguments and imports at the end.
RECORDER = """#!{python}
import atexit, json, os, sys, uuid

def record():
    heavy = [name for name in {heavy!r} if name in sys.modules]
    with open(os.path.join({folder!r}, uuid.uuid4().hex), "w") as file:
        json.dump([sys.argv[1:], heavy], file)

from rm_methods.cli import main
atexit.register(record)
main()
"""


@pytest.fixture
def recorder(tmp_path) -> Path:
    """A command `rm-methods` that records what it imports in the folder `records` beside the command's folder."""
    records = tmp_path / "recorder" / "records"
    command = tmp_path / "recorder" / "bin" / "rm-methods"
    records.mkdir(parents=True)
    command.parent.mkdir()
    command.write_text(RECORDER.format(python=sys.executable, heavy=HEAVY, folder=str(records)))
    command.chmod(0o755)
    return command


def run(command: Path, folder: Path, *arguments: str | Path) -> None:
    done = subprocess.run(
        [command, *map(str, arguments)], cwd=folder, env=environment(REPOSITORY), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def unused(command: Path) -> tuple[set[str], dict[str, list[str]]]:
    """The rows of the table that the recorded commands belong to, and the imports that the table does not allow."""
    seen = set()
    problems = {}
    for file in (command.parents[1] / "records").iterdir():
        arguments, heavy = json.loads(file.read_text())
        rule = f"{arguments[0]} longest"
        row = rule if "longest" in " ".join(arguments) and rule in ALLOWED else arguments[0]
        seen.add(row)
        if more := sorted(set(heavy) - ALLOWED[row]):
            problems[row] = more
    return seen, problems


def test_verbs_without_a_model_import_only_what_they_use(recorder, tmp_path):
    config = experiment_config(tmp_path, methods={"longest": {}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    write_pairs([*made_up_pairs(8), *made_up_pairs(4, seed=1, split="validation")], tmp_path / "pairs.parquet")
    shared = ["--config", "config.yaml", "--pairs", "pairs.parquet"]
    run(recorder, tmp_path, "--help")
    run(recorder, tmp_path, "list", "methods")
    run(recorder, tmp_path, "check", "--config", REPOSITORY / "config" / "quickstart.yaml")
    train = ["--variant", "longest", "--seed", "0", "--backbone", "backbone", "--out", "longest", "--work", "work"]
    run(recorder, tmp_path, "train", *shared, *train)
    run(recorder, tmp_path, "score", "--model", "longest/model", "--data", "pairs.parquet", "--out", "scores.parquet")
    seen, problems = unused(recorder)
    assert not problems
    assert seen == {"--help", "list", "check", "train longest", "score longest"}


@pytest.mark.slow
def test_every_verb_of_a_workflow_imports_only_what_it_uses(recorder, tmp_path):
    folder = checkout(tmp_path / "checkout")
    optimization = {
        "prompts": "iid",
        "best_of_n": {"pools": ["samples"], "limit": 4, "samples": 4},
        "sampling": {"max_new_tokens": 8},
        "sft": {"learning_rate": 1e-3},
        "ppo": {"enabled": True, "updates": 1, "batch_size": 2, "train_prompts": 4, "evaluation_prompts": 2},
    }
    study = SMOKE | {
        "methods": {"bradley_terry": {}, "longest": {}},
        # Forked processes would have the packages of the server.
        "resources": {"warm_start": False},
        "diagnostics": {"benchmarks": ["world"], "limit": 4},
        "overoptimization": optimization,
    }
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(study))
    snakemake(
        folder, PATH=f"{recorder.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    for arguments in (
        ["--help"],
        ["list", "methods"],
        ["check", "--config", "config/smoke.yaml"],
        ["plan", "--config", "config/smoke.yaml"],
        ["bundle", "--experiment", results(folder), "--out", "smoke.zip"],
        ["verify", "smoke.zip"],
    ):
        run(recorder, folder, *arguments)
    seen, problems = unused(recorder)
    assert not problems
    assert seen == set(ALLOWED)
