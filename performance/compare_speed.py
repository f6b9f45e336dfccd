"""Time and memory of the compare stage on made-up results: no training, no data, no network.

    python -m performance run compare_speed

Every benchmark has the items, strata and weights of RM-Bench, and a credit for each item.  The methods are those that
the harness trains, with abilities drawn from a normal law; a content-blind rule and an ensemble are added.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from performance.harness.benchmark import Benchmark, Measurement, Option, Proof, Side, Work
from performance.harness.stopwatch import Stopwatch
from rm_methods.benchmarks.credits import write_credits
from rm_methods.comparison.compare import build_comparison, write_comparison
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import read_runs
from rm_methods.experiment.evaluated_runs import EvaluatedFiles
from rm_methods.files import read_json
from rm_methods.methods.registry import load_method_card, method_names

# Items and weight of each stratum of RM-Bench.
STRATA = {
    "chat": (129, 1 / 4),
    "code": (228, 1 / 4),
    "math": (529, 1 / 4),
    "safety-refuse": (284, 1 / 8),
    "safety-response": (157, 1 / 8),
}
REFERENCE = "bradley_terry"


def trained_variants(count: int) -> list[tuple[str, str]]:
    """(variant, method), the reference first; methods repeat under other names once all are used."""
    methods = [name for name in method_names() if load_method_card(name).has_weights and name != REFERENCE]
    methods = [name for name in methods if load_method_card(name).kind not in ("content_blind", "combined")]
    methods = [REFERENCE, *methods]
    variants = []
    for number in range(count):
        method = methods[number % len(methods)]
        round_number = number // len(methods)
        variants.append((f"{method}_{round_number + 1}" if round_number else method, method))
    return variants


class Results:
    """Writes the results of made-up runs to a folder.  A run gets a credit of 1 where a normal variable is positive:
    ability of the method, of the seed, of the item, and a rest."""

    def __init__(self, folder: Path, benchmarks: list[str], metrics: list[str]):
        self.folder = folder
        self.metrics = metrics
        self.generator = np.random.default_rng(0)
        self.stratum: list[str] = []
        self.weight: list[float] = []
        for name, (items, weight) in STRATA.items():
            self.stratum += [name] * items
            self.weight += [weight] * items
        self.difficulty = {name: self.generator.normal(-0.6, 0.9, len(self.stratum)) for name in benchmarks}

    def write(self, variant: str, method: str, seed: int, ability: float) -> None:
        """Write summary.json, metrics.json and credits.parquet of one run."""
        folder = self.folder / variant / f"seed{seed}"
        folder.mkdir(parents=True)
        n_items = len(self.stratum)
        columns: dict[str, list] = {
            key: [] for key in ("benchmark", "metric", "item_id", "group", "stratum", "weight", "credit")
        }
        reports = {}
        coefficient = np.array(
            [weight / STRATA[name][0] for name, weight in zip(self.stratum, self.weight, strict=True)]
        )
        ability += self.generator.normal(0, 0.05)
        for benchmark, difficulty in self.difficulty.items():
            values = {}
            for metric in self.metrics:
                rest = self.generator.normal(0, 0.45, n_items)
                credits = (ability - difficulty + rest > 0).astype(np.float64)
                values[metric] = float(coefficient @ credits)
                columns["benchmark"] += [benchmark] * n_items
                columns["metric"] += [metric] * n_items
                columns["item_id"] += [f"{benchmark}-{number:05d}" for number in range(n_items)]
                columns["group"] += [f"{benchmark}-{number:05d}" for number in range(n_items)]
                columns["stratum"] += self.stratum
                columns["weight"] += self.weight
                columns["credit"] += credits.tolist()
            reports[benchmark] = {"metrics": values, "tie_rate": 0.0, "tie_rule": "a tie is wrong", "n_truncated": 0}
            reports[benchmark] |= {"n_scored": n_items, "n_total": n_items}
        identity = {"variant": variant, "method": method, "seed": seed, "run_key": f"{variant}-{seed}"}
        card = load_method_card(method)
        summary = {"experiment": "speed", "kind": card.kind, "data": {"hash": "made-up"}, "settings": {}}
        summary |= {"cost": {"tokens": 1_000_000, "wall_seconds": 60.0, "peak_memory_bytes": 2**30, "device": "cpu"}}
        (folder / "summary.json").write_text(
            json.dumps(identity | summary | {"seed_free": card.kind == "content_blind"})
        )
        (folder / "metrics.json").write_text(json.dumps(identity | {"benchmarks": reports}))
        write_credits(columns, folder / "credits.parquet")


def make_results(folder: Path, variants: int, seeds: int, benchmarks: list[str], metrics: list[str]) -> None:
    """The results of all runs."""
    results = Results(folder, benchmarks, metrics)
    for variant, method in trained_variants(variants):
        ability = float(results.generator.normal(0, 0.15))
        for seed in range(seeds):
            results.write(variant, method, seed, ability)
    results.write("ensemble", "ensemble", 0, 0.1)
    results.write("longest", "longest", 0, -0.8)


def benchmarks_and_metrics(options: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the made-up benchmarks and of the metrics of each."""
    benchmarks = [f"benchmark_{number + 1}" for number in range(options["benchmarks"])]
    return benchmarks, [f"metric_{number + 1}" for number in range(options["metrics"])]


def columns_of(options: Mapping[str, Any]) -> list[Column]:
    """The columns of the table."""
    benchmarks, metrics = benchmarks_and_metrics(options)
    return [
        Column(benchmark, metric, f"{benchmark.capitalize().replace('_', ' ')}, {metric.replace('_', ' ')}", 0.5)
        for benchmark in benchmarks
        for metric in metrics
    ]


def evaluated_files(folder: Path) -> list[EvaluatedFiles]:
    """The files of all runs of a folder."""
    folders = sorted(path.parent for path in folder.glob("*/*/summary.json"))
    return [EvaluatedFiles(run / "summary.json", run / "metrics.json", run / "credits.parquet") for run in folders]


def prepare(work: Work) -> None:
    """Write the results of all runs."""
    options = work.options
    benchmarks, metrics = benchmarks_and_metrics(options)
    make_results(work.folder / "runs", options["variants"], options["seeds"], benchmarks, metrics)


def prove(work: Work) -> Proof:
    """The means of the table are those of the runs' metrics."""
    columns = columns_of(work.options)
    files = evaluated_files(work.folder / "runs")
    comparison = build_comparison(read_runs(files, columns), columns, REFERENCE)
    difference = 0.0
    for row in comparison.rows:
        runs = [read_json(path) for path in (work.folder / "runs" / row.variant).glob("*/metrics.json")]
        for column, cell in zip(columns, row.cells, strict=True):
            values = [run["benchmarks"][column.benchmark]["metrics"][column.metric] for run in runs]
            assert cell is not None
            difference = max(difference, abs(cell.estimate.mean - float(np.mean(values))))
    return Proof(
        statement=f"all {len(comparison.rows) * len(columns)} means of the table are those of the runs' metrics",
        difference=difference,
        tolerance=1e-9,
    )


def measure(work: Work) -> Measurement:
    """Read, compare and write once."""
    columns = columns_of(work.options)
    files = evaluated_files(work.folder / "runs")
    with Stopwatch() as watch:
        started = time.perf_counter()
        runs = read_runs(files, columns)
        read = time.perf_counter()
        comparison = build_comparison(runs, columns, REFERENCE)
        built = time.perf_counter()
        write_comparison(comparison, runs, work.folder / "comparison")
        written = time.perf_counter()
    parts = {"reading_seconds": read - started, "statistics_seconds": built - read, "writing_seconds": written - built}
    means = tuple(cell.estimate.mean for row in comparison.rows for cell in row.cells if cell is not None)
    return watch.measurement(amount=len(files), result=means, details=parts)


BENCHMARK = Benchmark(
    name="compare_speed",
    title="Comparing runs",
    question="How long does the compare stage take, with how much memory, for a large experiment?",
    sides=(Side("compare", "compare"),),
    tests=(
        "tests/comparison/test_compare.py::test_mean_is_the_mean_of_the_metrics_and_difference_is_of_the_means",
        "tests/comparison/test_compare.py::test_credits_that_do_not_give_the_metric_are_refused",
        "tests/comparison/test_compare.py::test_writes_every_file_and_returns_the_terminal_table",
    ),
    options={
        "variants": Option(30, "trained methods"),
        "seeds": Option(10, "of each trained method"),
        "benchmarks": Option(8, "of RM-Bench's size"),
        "metrics": Option(1, "of each benchmark, a column each"),
    },
    prepare=prepare,
    prove=prove,
    measure=measure,
    unit="runs",
)
