"""What it costs to start: `rm-methods --help`, dry runs of the workflow, and a training beside its loop.

    python -m performance run start_up
    python -m performance run start_up --rounds 7 --case help --case dry_run

Judge by CPU seconds: wall times depend on what else the machine does.  Everything runs with one thread.

* dry_run: `snakemake -n` with `config/quickstart.yaml`; dry_run_8x5: with 8 methods and 5 seeds; snakemake_alone: with
  a workflow of one rule, which is what Snakemake and its installed plugins cost.  The folder of results is new in the
  first round only.
* train_fresh, train_forked: a Bradley-Terry training of the quickstart without the training loop, that is imports,
  reading, tokenization, saving, and scoring the validation pairs.  Fresh: in a process that imported nothing; the start
  of Python itself is not counted.  Forked: from a process that has imported the packages of the warm start, whose cost
  is warm_start.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from performance.harness.benchmark import Benchmark, Case, Measurement, Proof, Side, Work
from performance.harness.machine import ROOT
from performance.harness.stopwatch import Stopwatch, peak_memory_bytes

QUICKSTART = ROOT / "config" / "quickstart.yaml"
VARIANT = "bradley_terry"
EIGHT_METHODS = ("bradley_terry", "hinge", "focal", "label_smoothing", "symmetric", "ropo", "soft_labels", "rrm")
ONE_RULE = 'rule all:\n    output:\n        "made"\n    shell:\n        "touch {output}"\n'
BIN = Path(sys.executable).parent


def run_command(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command in a folder, with one thread; returns what it printed.

    Raises:
        RuntimeError: it failed; shows the end of what it printed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}")
    return done.stdout


def dry_run(folder: Path, config: Path) -> str:
    """`snakemake -n` of this checkout's workflow; results would go below `folder`."""
    command = [BIN / "snakemake", "-n", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    return run_command([*command, "--configfile", config], ROOT)


def eight_by_five(folder: Path) -> Path:
    """A configuration of 8 methods and 5 seeds on the data of the quickstart."""
    from rm_methods.yaml_files import load_yaml, yaml_text

    quickstart = load_yaml(QUICKSTART)
    config = {key: quickstart[key] for key in ("data", "backbone", "training", "benchmarks")}
    config |= {"experiment": "eight_by_five", "seeds": list(range(5)), "methods": {name: {} for name in EIGHT_METHODS}}
    file = folder / "eight_by_five.yaml"
    file.write_text(yaml_text(config))
    return file


# Cases that are a command, and a word that it prints.
COMMANDS: dict[str, tuple[Callable[[Path], str], str]] = {
    "help": (lambda folder: run_command([BIN / "rm-methods", "--help"], folder), "train"),
    "snakemake_alone": (
        lambda folder: run_command(
            [BIN / "snakemake", "-n", "--snakefile", folder / "one_rule.smk", "--directory", folder], folder
        ),
        "all",
    ),
    "dry_run": (lambda folder: dry_run(folder, QUICKSTART), "train"),
    "dry_run_8x5": (lambda folder: dry_run(folder, folder / "eight_by_five.yaml"), "train"),
}


def prepare(work: Work) -> None:
    """Write the workflows, and prepare pairs and backbone once for both trainings."""
    (work.folder / "one_rule.smk").write_text(ONE_RULE)
    eight_by_five(work.folder)
    if work.case.startswith("train") and not (work.shared / "backbone").exists():
        command = [BIN / "rm-methods"]
        shared = ["--config", QUICKSTART, "--pairs", "pairs.parquet"]
        run_command([*command, "prepare", *shared, "--report", "report.json"], work.shared)
        run_command([*command, "prepare-backbone", *shared, "--out", "backbone"], work.shared)


def train(inputs: Path, folder: Path) -> None:
    """Run the verb `train` in this process, and write how long its loop took to loop.json.

    Args:
        inputs: folder with pairs and backbone.
        folder: of the run.
    """
    time_loop(folder / "loop.json")
    from rm_methods.cli import main as rm_methods

    arguments = ["train", "--config", QUICKSTART, "--pairs", inputs / "pairs.parquet"]
    arguments += ["--backbone", inputs / "backbone", "--variant", VARIANT, "--seed", "0", "--threads", "1"]
    arguments += ["--out", folder / "run", "--work", folder / "work"]
    rm_methods(args=[str(word) for word in arguments], prog_name="rm-methods", standalone_mode=False)


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


def without_loop(watch: Stopwatch, record: Path) -> Measurement:
    """The cost of a training without the loop that `record` tells."""
    cpu, wall = json.loads(record.read_text())
    return Measurement(
        seconds=watch.seconds - wall,
        cpu_seconds=watch.cpu_seconds - cpu,
        peak_memory_bytes=peak_memory_bytes(),
        details={"loop_cpu_seconds": cpu},
    )


def import_packages() -> None:
    """Import the packages of the warm start, as its server does."""
    from rm_methods.system.warm_start import PACKAGES

    for package in PACKAGES:
        if importlib.util.find_spec(package.partition(".")[0]):
            importlib.import_module(package)
    gc.collect()
    gc.freeze()


def train_forked(inputs: Path, folder: Path) -> None:
    """`train` in a forked process.

    Raises:
        RuntimeError: it failed; its traceback was printed.
    """
    process = os.fork()
    if process == 0:
        status = 1
        try:
            train(inputs, folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # Not sys.exit: what follows in the parent is not for this process.
            os._exit(status)
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"A forked training failed with status {os.waitstatus_to_exitcode(status)}.")


def prove(work: Work) -> Proof:
    """Commands print what they must; a forked training has the weights of a fresh one."""
    if work.case in COMMANDS:
        run, word = COMMANDS[work.case]
        return Proof(f"the output names {word}", float(word not in run(work.folder).split()), 0.0)
    if work.case.startswith("train"):
        with TemporaryDirectory() as one, TemporaryDirectory() as other:
            train_forked(work.shared, Path(one))
            train(work.shared, Path(other))
            return Proof("weights are those of a fresh process", weights_apart(Path(one), Path(other)), 0.0)
    from rm_methods.system.warm_start import PACKAGES

    return Proof("packages to import are named", float(not PACKAGES), 0.0)


def weights_apart(one: Path, other: Path) -> float:
    """Largest difference of two trained models' weights."""
    from safetensors.numpy import load_file

    file = next((one / "run").rglob("model.safetensors")).relative_to(one)
    weights, others = load_file(one / file), load_file(other / file)
    return max(float(abs(weights[name] - others[name]).max()) for name in weights)


def measure(work: Work) -> Measurement:
    """Start once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if work.case in COMMANDS:
        with Stopwatch() as watch:
            COMMANDS[work.case][0](work.folder)
        return watch.measurement()
    if work.case == "warm_start":
        with Stopwatch() as watch:
            import_packages()
        return watch.measurement()
    if work.case == "train_forked":
        import_packages()
    with TemporaryDirectory() as scratch:
        run = train_forked if work.case == "train_forked" else train
        with Stopwatch() as watch:
            run(work.shared, Path(scratch))
        return without_loop(watch, Path(scratch) / "loop.json")


BENCHMARK = Benchmark(
    name="start_up",
    title="Start-up",
    question="What does it cost to start the command, the workflow and a training?",
    sides=(Side("ours", "ours"),),
    cases=(
        Case("help", "`rm-methods --help`"),
        Case("snakemake_alone", "dry run of one rule"),
        Case("dry_run", "dry run of the quickstart"),
        Case("dry_run_8x5", "dry run of 8 methods, 5 seeds"),
        Case("warm_start", "imports of the warm start"),
        Case("train_fresh", "training without its loop, new process"),
        Case("train_forked", "training without its loop, forked"),
    ),
    tests=(
        "tests/test_cli.py::test_help_imports_nothing_heavy",
        "tests/workflow/test_workflow.py::test_dry_run_of_the_quickstart_shows_every_job",
        "tests/system/test_warm_start.py::test_a_forked_command_sees_what_a_cold_one_sees",
    ),
    prepare=prepare,
    prove=prove,
    measure=measure,
)
