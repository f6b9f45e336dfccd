"""Time, memory and sizes of one comparison of 1,000 runs: tables and figures, report, export to MLflow, dry run.

    python -m performance run scale_comparison                                            # 100 variants x 10 seeds
    python -m performance run scale_comparison --option variants=10 --case dry_run        # the dry run of 100 runs

The results are made up, with `report_and_export.py`.  MLflow writes to a new SQLite file.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.machine import ROOT
from performance.harness.stopwatch import Stopwatch
from performance.report_and_export import compare_runs, export, make_up, report
from performance.start_up import BIN, run_command
from rm_methods.files import read_json

COLUMNS = {name: ["overall"] for name in ("rm_bench", "rewardbench2", "judge_bench", "helpsteer3")}
RESULTS = Path("results/large")  # where `make_up` writes, below the folder
# Of the experiment whose results are checked.
SMALL = {"variants": 3, "exported_variants": 3, "seeds": 2, "items": 20, "steps": 3}


def folder_of(work: Work) -> Path:
    """Where the case works; exports have results of their size."""
    return work.shared / ("exports" if work.case.startswith("export") else "all")


def variants_of(work: Work) -> int:
    """Variants with weights of the case."""
    count: int = work.options["exported_variants" if work.case.startswith("export") else "variants"]
    return count


def prepare(work: Work) -> None:
    """Make up the results, and do once what the case continues."""
    options = work.options
    folder = folder_of(work)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / RESULTS
    if work.case == "dry_run":
        write_config(folder, options)
        return
    if not results.exists():
        make_up(
            folder,
            variants=variants_of(work),
            seeds=options["seeds"],
            items=options["items"],
            steps=options["steps"],
            columns=COLUMNS,
        )
    if work.case != "compare" and not (results / "comparison").exists():
        compare_runs(results)
    if work.case == "export_again" and not (folder / "mlflow.db").exists():
        export(results, folder)


def write_config(folder: Path, options: Mapping[str, Any]) -> None:
    """The configuration of an experiment of this size, of which nothing was run."""
    from rm_methods.yaml_files import load_yaml, yaml_text

    config = load_yaml(ROOT / "config" / "quickstart.yaml")
    for section in ("diagnostics", "overoptimization"):
        del config[section]
    config["seeds"] = list(range(options["seeds"]))
    hinges = {f"hinge_{number:03d}": {"method": "hinge"} for number in range(1, options["variants"])}
    config["methods!"] = {"bradley_terry": {}} | hinges
    del config["methods"]
    config["benchmarks"] |= {name: {} for name in list(COLUMNS)[1:]}
    (folder / "dry.yaml").write_text(yaml_text(config), encoding="utf-8")


def dry_run(folder: Path, *flags: str) -> str:
    """`snakemake -n` of that experiment; returns what it printed."""
    command = [BIN / "snakemake", "-n", *flags, "--cores", "2", "--directory", folder]
    return run_command([*command, "--configfile", folder / "dry.yaml"], ROOT)


def run(work: Work) -> None:
    """Do the case, of which everything was prepared."""
    results = folder_of(work) / RESULTS
    if work.case == "compare":
        compare_runs(results)
    elif work.case == "report":
        report(results, results / "report.html")
    elif work.case == "dry_run":
        dry_run(folder_of(work), "-q")
    else:
        pending = export(results, folder_of(work)).pending
        if pending:
            raise RuntimeError(f"{len(pending)} runs are pending: {pending[0]['reason']}")


def prove(work: Work) -> Proof:
    """The case is complete for a small experiment."""
    with TemporaryDirectory() as scratch:
        small = replace(work, options={**work.options, **SMALL}, shared=Path(scratch))
        prepare(small)
        run(small)
        statement, absent = completeness(small)
        return Proof(statement, absent, 0.0)


def planned_trainings(output: str) -> int:
    """Trainings in the table of jobs of a dry run."""
    match = re.search(r"^ *train +(\d+)", output, re.MULTILINE)
    return int(match[1]) if match else 0


def completeness(work: Work) -> tuple[str, float]:
    """What a case must have made, and how much of it is absent."""
    results = folder_of(work) / RESULTS
    variants = [path.name for path in results.glob("runs/*")]
    runs = variants_of(work) * work.options["seeds"]
    if work.case in ("compare", "report"):
        file = results / ("comparison/table.csv" if work.case == "compare" else "report.html")
        text = file.read_text(encoding="utf-8")
        statement = f"a small experiment's {file.name} names all {len(variants)} variants"
        return statement, float(sum(name not in text for name in variants))
    if work.case == "dry_run":
        return f"{runs} trainings are planned", float(abs(planned_trainings(dry_run(folder_of(work))) - runs))
    records = [read_json(file) for file in (folder_of(work) / "tracking").glob("*/seed*.json")]
    exported = [record for record in records if record["status"] == "exported"]
    return f"all {runs} runs are exported", float(abs(len(exported) - runs))


def measure(work: Work) -> Measurement:
    """Do it once, with the sizes in MiB of what a reader opens."""
    results = folder_of(work) / RESULTS
    if work.case == "export":
        (folder_of(work) / "mlflow.db").unlink(missing_ok=True)
        shutil.rmtree(folder_of(work) / "tracking", ignore_errors=True)
    with Stopwatch() as watch:
        run(work)
    made = {"compare": sorted((results / "comparison").glob("*")), "report": [results / "report.html"]}
    sizes = {file.name: file.stat().st_size / 2**20 for file in made.get(work.case, [])}
    details = {"sizes": sizes, "largest": max(sizes.values())} if sizes else {}
    return watch.measurement(amount=variants_of(work) * work.options["seeds"], details=details)


BENCHMARK = Benchmark(
    name="scale_comparison",
    title="Comparing 1,000 runs",
    question="How long do comparison, report, export and dry run of 1,000 runs take, with how much memory?",
    sides=(Side("ours", "ours"),),
    cases=(
        Case("compare", "compare"),
        Case("report", "report"),
        Case("export", "export, everything new"),
        Case("export_again", "export, nothing new"),
        Case("dry_run", "dry run (`snakemake -n`)"),
    ),
    tests=(
        "tests/comparison/test_compare.py::test_mean_is_the_mean_of_the_metrics_and_difference_is_of_the_means",
        "tests/comparison/test_compare.py::test_writes_every_file_and_returns_the_terminal_table",
        "tests/html_report/test_page.py::test_the_table_has_the_rows_and_the_exact_means_of_the_comparison",
        "tests/tracking/test_export.py::test_a_second_export_changes_nothing",
        "tests/workflow/test_workflow.py::test_dry_run_of_the_quickstart_shows_every_job",
    ),
    options={
        "variants": Option(100, "with weights"),
        "exported_variants": Option(10, "the same of the exports, which take longest"),
        "seeds": Option(10, "of each variant"),
        "items": Option(500, "of each of the 4 benchmarks"),
        "steps": Option(100, "lines in each training log, with 8 metrics each"),
    },
    prepare=prepare,
    prove=prove,
    measure=measure,
    rounds=1,
    unit="runs",
    detail_columns={"largest": "largest file, MiB"},
)
