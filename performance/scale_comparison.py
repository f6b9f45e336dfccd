"""Seconds, memory and sizes of one comparison of 1,000 runs: tables and figures, report, export to MLflow, dry run.

    python performance/scale_comparison.py                             # 100 variants x 10 seeds x 4 benchmarks
    python performance/scale_comparison.py --variants 10 --only dry    # only the dry run, of 100 runs

The results are made up (`report_and_export.py`, which needs the repository). Each stage is a process, so its peak
memory is its own. MLflow writes to a new SQLite file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from report_and_export import compare_runs, make_up

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMNS = {name: ["overall"] for name in ("rm_bench", "rewardbench2", "judge_bench", "helpsteer3")}
RESULTS = Path("results/large")  # where `make_up` writes, below the folder


def make_results(folder: Path, size: argparse.Namespace) -> None:
    """Credits of 500 items of each benchmark, and training logs of 100 lines, of every run."""
    results = make_up(folder, size.variants, size.seeds, items=500, steps=100, columns=COLUMNS)
    assert results == folder / RESULTS


def compare(folder: Path, size: argparse.Namespace) -> None:
    compare_runs(folder / RESULTS)


def write_page(folder: Path, size: argparse.Namespace) -> None:
    from rm_methods.html_report.page import write_report
    from rm_methods.html_report.stored_results import newest_config

    results = folder / RESULTS
    write_report(newest_config(results), results, results / "report.html")


def export(folder: Path, size: argparse.Namespace) -> None:
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.html_report.stored_results import newest_config
    from rm_methods.tracking.export import export_experiment, unchecked_export

    results = folder / RESULTS
    experiment = unchecked_export(Experiment(newest_config(results)), results)
    result = export_experiment(experiment, results / "tracking", f"sqlite:///{folder}/mlflow.db")
    if result.pending:
        sys.exit(f"{len(result.pending)} runs are pending: {result.pending[0]['reason']}")


def dry_run(folder: Path, size: argparse.Namespace) -> None:
    """`snakemake -n` of an experiment of this size, of which nothing was run."""
    config = yaml.safe_load((REPOSITORY / "config/quickstart.yaml").read_text(encoding="utf-8"))
    for section in ("diagnostics", "overoptimization"):
        del config[section]
    config["seeds"] = list(range(size.seeds))
    hinges = {f"hinge_{number:03d}": {"method": "hinge"} for number in range(1, size.variants)}
    config["methods!"] = {"bradley_terry": {}} | hinges
    del config["methods"]
    config["benchmarks"] |= {name: {} for name in list(COLUMNS)[1:]}
    (folder / "dry.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = ["snakemake", "-n", "-q", "--cores", "2", "--directory", folder, "--configfile", folder / "dry.yaml"]
    subprocess.run([str(word) for word in command], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


STAGES: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "make up the results": make_results,
    "compare": compare,
    "report": write_page,
    "export, everything new": export,
    "export, nothing new": export,
    "dry run (snakemake -n)": dry_run,
}


def measure(stage: str, folder: Path, size: argparse.Namespace) -> dict[str, Any]:
    """Run a stage in this process: seconds, CPU seconds and peak memory, of its children too."""
    started = time.perf_counter()
    STAGES[stage](folder, size)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "stage": stage,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in usages),
        "peak_gib": max(usage.ru_maxrss for usage in usages) / 2**20,
    }


def measured_in_a_process(stage: str, folder: Path, size: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a new process."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    command += ["--variants", str(size.variants), "--seeds", str(size.seeds)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    record: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return record


def sizes_of_outputs(results: Path) -> list[str]:
    """Sizes of what a reader opens."""
    files = [*sorted((results / "comparison").glob("*")), results / "report.html"]
    return [f"{file.relative_to(results)} {file.stat().st_size / 2**20:.2f} MiB" for file in files if file.exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=100, help="default: 100")
    parser.add_argument("--seeds", type=int, default=10, help="of each variant (default: 10)")
    parser.add_argument("--folder", type=Path, default=None, help="keep the files here")
    parser.add_argument("--only", default="", help="stages whose name contains this text")
    parser.add_argument("--stage", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage is not None:
        print(json.dumps(measure(arguments.stage, arguments.folder, arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{arguments.variants} variants x {arguments.seeds} seeds x {len(COLUMNS)} benchmarks")
        print(f"{'stage':30} {'seconds':>9} {'CPU s':>9} {'peak GiB':>9}")
        for stage in STAGES:
            if arguments.only in stage:
                record = measured_in_a_process(stage, folder, arguments)
                print(
                    f"{stage:30} {record['seconds']:9.1f} {record['cpu_seconds']:9.1f} {record['peak_gib']:9.2f}",
                    flush=True,
                )
        print("\n".join(sizes_of_outputs(folder / RESULTS)))


if __name__ == "__main__":
    main()
