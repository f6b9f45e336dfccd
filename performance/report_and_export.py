"""Time of the report and of the export to MLflow of a large experiment, whose results are made up.

    python -m performance run report_and_export

The results come from the tests of the repository.  The address is a new SQLite file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.stopwatch import Stopwatch

BENCHMARKS = {
    "rm_bench": ["overall", "easy", "normal", "hard"],
    "rewardbench2": ["overall"],
    "judge_bench": ["overall"],
    "ppe_correctness": ["overall"],
    "helpsteer3": ["overall"],
    "llmbar": ["overall"],
    "hh_rlhf": ["overall"],
    "heldout": ["test"],
}


def make_up(
    folder: Path,
    *,
    variants: int,
    seeds: int,
    items: int,
    steps: int,
    columns: Mapping[str, list[str]] = BENCHMARKS,
) -> Path:
    """Write an experiment with its training logs; returns the folder of its results.

    Args:
        items: of each benchmark.
        steps: lines of each training log.
        columns: metrics by benchmark.
    """
    from tests.comparison.test_folders import stored

    methods = {"bradley_terry": "bradley_terry"} | {f"hinge_{k:02d}": "hinge" for k in range(1, variants)}
    benchmarks = {name: {"metrics": metrics, "items": items, "strata": 1} for name, metrics in columns.items()}
    results = stored(folder, "large", methods, range(seeds), benchmarks=benchmarks)
    names = ("loss", "accuracy", "margin", "reward_mean", "reward_min", "reward_max", "grad_norm", "learning_rate")
    rows = [{"step": step, "time": 0.5 * step} | dict.fromkeys(names, 1 / step) for step in range(1, steps + 1)]
    log = "".join(json.dumps(row) + "\n" for row in rows)
    for run in results.glob("runs/*/*"):
        (run / "metrics.jsonl").write_text(log)
    return results


def compare_runs(results: Path) -> None:
    """Compare the runs of a made-up experiment."""
    from rm_methods.comparison.compare import compare
    from rm_methods.comparison.runs import recorded_columns
    from rm_methods.experiment.evaluated_runs import files_of_runs
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.html_report.stored_results import newest_config

    config = newest_config(results)
    files = files_of_runs(Experiment(config), results)
    compare(files, recorded_columns(config, files), "bradley_terry", results / "comparison")


def prepare(work: Work) -> None:
    """Make up the results, once for all cases."""
    options = work.options
    folder = work.shared / "made_up"
    if not folder.exists():
        folder.mkdir()
        results = make_up(
            folder,
            variants=options["variants"],
            seeds=options["seeds"],
            items=options["items"],
            steps=options["steps"],
        )
        compare_runs(results)
        (work.shared / "results.json").write_text(json.dumps(str(results)))


def results_of(work: Work) -> Path:
    """The folder of the made-up results."""
    return Path(json.loads((work.shared / "results.json").read_text()))


def report(results: Path, out: Path) -> Path:
    """Write the report."""
    from rm_methods.html_report.page import write_report
    from rm_methods.html_report.stored_results import newest_config

    write_report(newest_config(results), results, out)
    return out


def export(results: Path, scratch: Path) -> Any:
    """Export all runs to an SQLite file in a folder."""
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.html_report.stored_results import newest_config
    from rm_methods.tracking.export import export_experiment, unchecked_export

    exported = unchecked_export(Experiment(newest_config(results)), results)
    return export_experiment(exported, scratch / "tracking", f"sqlite:///{scratch}/mlflow.db")


def prove(work: Work) -> Proof:
    """The page names every variant, and every run is exported."""
    results = results_of(work)
    variants = [path.name for path in (results / "runs").iterdir()]
    with TemporaryDirectory() as scratch:
        if work.case == "report":
            text = report(results, Path(scratch) / "report.html").read_text(encoding="utf-8")
            absent = [name for name in variants if name not in text]
            return Proof(f"the page names all {len(variants)} variants", float(len(absent)), 0.0)
        outcome = export(results, Path(scratch))
        exported = [run for run in outcome.runs if run["status"] == "exported"]
        expected = len(list((results / "runs").glob("*/*")))
        return Proof(f"all {expected} runs are exported", float(expected - len(exported)), 0.0)


def measure(work: Work) -> Measurement:
    """Do it once, in new folders."""
    results = results_of(work)
    runs = len(list((results / "runs").glob("*/*")))
    with TemporaryDirectory() as scratch:
        if work.case == "export_again":
            export(results, Path(scratch))
        with Stopwatch() as watch:
            if work.case == "report":
                report(results, Path(scratch) / "report.html")
            else:
                export(results, Path(scratch))
        return watch.measurement(amount=runs)


BENCHMARK = Benchmark(
    name="report_and_export",
    title="Report and export to MLflow",
    question="How long do the report and the export of a large experiment take?",
    sides=(Side("ours", "ours"),),
    cases=(
        Case("report", "report"),
        Case("export", "export, everything new"),
        Case("export_again", "export, nothing new"),
    ),
    tests=(
        "tests/html_report/test_page.py::test_the_table_has_the_rows_and_the_exact_means_of_the_comparison",
        "tests/html_report/test_page.py::test_the_page_is_the_same_bytes_for_the_same_results",
        "tests/tracking/test_export.py::test_a_run_is_stored_with_everything_that_belongs_to_it",
        "tests/tracking/test_export.py::test_a_second_export_changes_nothing",
    ),
    options={
        "variants": Option(30, "with weights"),
        "seeds": Option(10, "of each variant"),
        "items": Option(500, "of each of the 8 benchmarks"),
        "steps": Option(100, "lines in each training log, with 8 metrics each"),
    },
    prepare=prepare,
    prove=prove,
    measure=measure,
    unit="runs",
)
