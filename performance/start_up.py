"""What it costs to start: `rm-methods --help`, dry runs of the workflow, and a training beside its loop.

    python performance/start_up.py                      # 7 runs of each
    python performance/start_up.py --runs 3 --only help --only dry_run

Judge by CPU seconds (user and system, of the whole process): wall times depend on what else the machine does.  The
least of several runs is the steadiest.

* dry_run: `snakemake -n` with `config/quickstart.yaml`; dry_run_8x5: with 8 methods and 5 seeds; snakemake_alone: with
  a workflow of one rule, which is what Snakemake and its installed plugins cost.  The folder of results is new in the
  first run only.
* train_fresh, train_forked: a Bradley-Terry training of the quickstart without the training loop, that is imports,
  reading, tokenization, saving, and scoring the validation pairs.  Fresh: a new process.  Forked: from a process that
  has imported the packages of the warm start, whose cost is warm_start.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

REPOSITORY = Path(__file__).resolve().parents[1]
QUICKSTART = REPOSITORY / "config" / "quickstart.yaml"
VARIANT = "bradley_terry"
EIGHT_METHODS = ("bradley_terry", "hinge", "focal", "label_smoothing", "symmetric", "ropo", "soft_labels", "rrm")
ONE_RULE = 'rule all:\n    output:\n        "made"\n    shell:\n        "touch {output}"\n'
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cost:
    """CPU and wall seconds of a process; of a training, without its loop."""

    cpu: float
    wall: float


def cost_of(command: Sequence[str | Path], folder: Path) -> Cost:
    """Run a command in a folder, with one thread.

    Raises:
        RuntimeError: it failed; shows the end of what it printed.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [str(word) for word in command], cwd=folder, env=environment(), stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        if status:
            output.seek(0)
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{output.read()[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, wall)


def environment() -> dict[str, str]:
    """This checkout's code, one thread, no network."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    return os.environ | fixed | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def dry_run(folder: Path, config: Path) -> Cost:
    """`snakemake -n` of this checkout's workflow; results would go below `folder`."""
    command = [BIN / "snakemake", "-n", "--snakefile", REPOSITORY / "Snakefile", "--directory", folder]
    return cost_of([*command, "--configfile", config], REPOSITORY)


def snakemake_alone(folder: Path) -> Cost:
    """A dry run of a workflow that has one rule and imports nothing."""
    file = folder / "one_rule.smk"
    file.write_text(ONE_RULE)
    return cost_of([BIN / "snakemake", "-n", "--snakefile", file, "--directory", folder], folder)


def eight_by_five(folder: Path) -> Path:
    """A configuration of 8 methods and 5 seeds on the data of the quickstart."""
    from rm_methods.yaml_files import load_yaml, yaml_text

    quickstart = load_yaml(QUICKSTART)
    config = {key: quickstart[key] for key in ("data", "backbone", "training", "benchmarks")}
    config |= {"experiment": "eight_by_five", "seeds": list(range(5)), "methods": {name: {} for name in EIGHT_METHODS}}
    file = folder / "eight_by_five.yaml"
    file.write_text(yaml_text(config))
    return file


def prepare_training(folder: Path, config: Path) -> list[str]:
    """Prepare pairs and backbone in a folder; the arguments of a training that uses them."""
    shared = ["--config", str(config), "--pairs", "pairs.parquet"]
    command = [BIN / "rm-methods"]
    cost_of([*command, "prepare", *shared, "--report", "report.json"], folder)
    cost_of([*command, "prepare-backbone", *shared, "--out", "backbone"], folder)
    arguments = ["train", *shared, "--backbone", "backbone", "--variant", VARIANT, "--seed", "0"]
    return [*arguments, "--threads", "1"]


def train(arguments: Sequence[str], record: Path, number: int) -> None:
    """Run the verb `train` in this process, which then ends, and write how long its loop took.

    Args:
        number: of the run; each has its folder.
    """
    time_loop(record)
    from rm_methods.cli import main as rm_methods

    rm_methods(args=[*arguments, "--out", f"run{number}", "--work", f"work{number}"], prog_name="rm-methods")


def time_loop(record: Path) -> None:
    """Write CPU and wall seconds of the next training loop to a file."""
    from rm_methods.training import run as stage

    fit = stage.fit

    def fit_with_timed_loop(*arguments, **options):
        from rm_methods.training.trainer import RewardTrainer

        loop = RewardTrainer.train

        def timed(*loop_arguments, **loop_options):
            cpu, wall = time.process_time(), time.monotonic()
            result = loop(*loop_arguments, **loop_options)
            record.write_text(json.dumps([time.process_time() - cpu, time.monotonic() - wall]))
            return result

        RewardTrainer.train = timed
        return fit(*arguments, **options)

    stage.fit = fit_with_timed_loop


def without_loop(cost: Cost, record: Path) -> Cost:
    """The cost of a training without the loop that `record` tells."""
    cpu, wall = json.loads(record.read_text())
    return Cost(cost.cpu - cpu, cost.wall - wall)


def train_fresh(folder: Path, arguments: Sequence[str], number: int) -> Cost:
    """A training in a new process, without its loop."""
    record = folder / f"loop{number}.json"
    command = [sys.executable, __file__, "--child", "fresh", record, str(number), *arguments]
    return without_loop(cost_of(command, folder), record)


def train_forked(folder: Path, arguments: Sequence[str], runs: int) -> tuple[list[Cost], Cost]:
    """Trainings in processes that are forked from one with all packages, without their loops; and the imports' cost."""
    record = folder / "forked.json"
    cost_of([sys.executable, __file__, "--child", "forked", record, str(runs), *arguments], folder)
    told = json.loads(record.read_text())
    costs = [without_loop(Cost(*told["costs"][k]), record.with_suffix(f".{k}")) for k in range(runs)]
    return costs, Cost(*told["imports"])


def fork_trainings(record: Path, runs: int, arguments: Sequence[str]) -> None:
    """Import the packages of the warm start, as its server does, and fork trainings one after another."""
    from rm_methods.system.warm_start import PACKAGES

    started = time.monotonic()
    for package in PACKAGES:
        if importlib.util.find_spec(package.partition(".")[0]):
            importlib.import_module(package)
    gc.collect()
    gc.freeze()
    imports = (time.process_time(), time.monotonic() - started)
    costs = []
    for number in range(runs):
        started = time.monotonic()
        process = os.fork()
        if process == 0:
            train(arguments, record.with_suffix(f".{number}"), runs + number)
        _, status, usage = os.wait4(process, 0)
        if status:
            sys.exit(f"A forked training failed with status {os.waitstatus_to_exitcode(status)}.")
        costs.append((usage.ru_utime + usage.ru_stime, time.monotonic() - started))
    record.write_text(json.dumps({"costs": costs, "imports": imports}))


def measure(runs: int, only: Sequence[str] = ()) -> dict[str, list[Cost]]:
    """The costs of every run, by the name of what was run.

    Args:
        only: names of measures; none means all.
    """
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        simple: dict[str, Callable[[], Cost]] = {
            "help": lambda: cost_of([BIN / "rm-methods", "--help"], folder),
            "snakemake_alone": lambda: snakemake_alone(folder),
            "dry_run": lambda: dry_run(folder, QUICKSTART),
            "dry_run_8x5": lambda: dry_run(folder, eight_by_five(folder)),
        }
        for name in [name for name in simple if name in (only or simple)]:
            costs[name] = [simple[name]() for _ in range(runs)]
        if not only or {"train_fresh", "train_forked"} & set(only):
            arguments = prepare_training(folder, QUICKSTART)
            if not only or "train_fresh" in only:
                costs["train_fresh"] = [train_fresh(folder, arguments, number) for number in range(runs)]
            if not only or "train_forked" in only:
                costs["train_forked"], imports = train_forked(folder, arguments, runs)
                costs["warm_start"] = [imports]
    return costs


MEASURES = ("help", "snakemake_alone", "dry_run", "dry_run_8x5", "train_fresh", "train_forked")


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=7, show_default=True, help="Runs of each.")
@click.option("--only", type=click.Choice(MEASURES), multiple=True, help="Measure only this; may be repeated.")
def main(runs: int, only: tuple[str, ...]) -> None:
    """Print the least and the median of the CPU and wall seconds of each start."""
    click.echo(f"{'seconds':<18}{'runs':>5}{'CPU: least':>12}{'median':>9}{'wall: least':>13}{'median':>9}")
    for name, costs in measure(runs, only).items():
        cpu, wall = [cost.cpu for cost in costs], [cost.wall for cost in costs]
        click.echo(
            f"{name:<18}{len(costs):>5}{min(cpu):>12.2f}{statistics.median(cpu):>9.2f}"
            f"{min(wall):>13.2f}{statistics.median(wall):>9.2f}"
        )


def child(kind: str, record: str, number: str, *arguments: str) -> None:
    """A process of this script: a training (`fresh`), or several that it forks (`forked`)."""
    if kind == "fresh":
        train(arguments, Path(record), int(number))
    else:
        fork_trainings(Path(record), int(number), arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
