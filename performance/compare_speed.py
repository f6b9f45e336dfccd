"""Time and memory of the compare stage on made-up results: no training, no GPU, no network.

Usage:

    python performance/compare_speed.py                      # 30 methods x 10 seeds x 8 benchmarks: a minute
    python performance/compare_speed.py --out FOLDER         # keeps the tables and figures

Every benchmark has the items, strata and weights of RM-Bench, and a credit for each item.  The methods are those that
the harness trains, with abilities drawn from a normal law; a content-blind rule and an ensemble are added.  A second
process compares the files, so its peak memory is that of the stage.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rm_methods.benchmarks.credits import write_credits
from rm_methods.comparison.compare import build_comparison, write_comparison
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import read_runs
from rm_methods.experiment.evaluated_runs import EvaluatedFiles
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


def compare_results(folder: Path, out: Path, columns: list[Column]) -> None:
    """Compare the runs of a folder and print what this process took: seconds of each step, CPU time, peak memory."""
    names = ("summary.json", "metrics.json", "credits.parquet")
    folders = sorted(path.parent for path in folder.glob("*/*/summary.json"))
    files = [EvaluatedFiles(*(run / name for name in names)) for run in folders]
    started = time.perf_counter()
    runs = read_runs(files, columns)
    read = time.perf_counter()
    comparison = build_comparison(runs, columns, REFERENCE)
    built = time.perf_counter()
    write_comparison(comparison, runs, out)
    written = time.perf_counter()
    cpu = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{len(files)} runs, {len(columns)} columns: {written - started:.1f} s (reading {read - started:.1f}, "
        f"statistics {built - read:.1f}, tables and figures {written - built:.1f}), {cpu:.1f} s of CPU, "
        f"peak memory {peak / 2**30:.2f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=30, help="trained methods (default: 30)")
    parser.add_argument("--seeds", type=int, default=10, help="of each trained method (default: 10)")
    parser.add_argument("--benchmarks", type=int, default=8, help="of RM-Bench's size (default: 8)")
    parser.add_argument("--metrics", type=int, default=1, help="of each benchmark, a column each (default: 1)")
    parser.add_argument("--out", type=Path, default=None, help="keep the tables and figures in this folder")
    parser.add_argument("--compare-only", type=Path, default=None, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    benchmarks = [f"benchmark_{number + 1}" for number in range(arguments.benchmarks)]
    metrics = [f"metric_{number + 1}" for number in range(arguments.metrics)]
    if arguments.compare_only is not None:
        columns = [
            Column(benchmark, metric, f"{benchmark.capitalize().replace('_', ' ')}, {metric.replace('_', ' ')}", 0.5)
            for benchmark in benchmarks
            for metric in metrics
        ]
        compare_results(arguments.compare_only, arguments.out, columns)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "runs"
        make_results(folder, arguments.variants, arguments.seeds, benchmarks, metrics)
        out = arguments.out or Path(temporary) / "comparison"
        size = sum(path.stat().st_size for path in folder.rglob("credits.parquet"))
        print(f"Made the results of all runs: {size / 2**20:.0f} MiB of credits.", flush=True)
        command = [sys.executable, __file__, "--compare-only", folder, "--out", out]
        command += ["--benchmarks", arguments.benchmarks, "--metrics", arguments.metrics]
        subprocess.run([str(word) for word in command], check=True)


if __name__ == "__main__":
    main()
