"""Seconds and memory of every stage that reads or writes score tables, on made-up tables of 10 million rows.

    python performance/scale_tables.py                                 # 10 million rows each
    python performance/scale_tables.py --prompts 2000 --pairs 500000   # a tenth

Two tables are made up: a Best-of-N pool (`--prompts` x `--candidates`, with log-probabilities) and pairs (`--pairs`).
Responses have about 50 characters. Each stage is a process, so its peak memory is its own. No model is run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WORDS = "a response about fruit that nobody wrote, number"
IDENTITY = {"variant": "made_up", "method": "bradley_terry", "seed": 0, "run_key": "made up"}
SCORINGS = 2  # runs that the Best-of-N summary compares
POOL = "alpaca_eval_pool"
PAIRS = "ultrafeedback"


def pool_items(prompts: int, candidates: int) -> Iterator[Any]:
    """Items of a Best-of-N pool with a gold value in [0, 1] and a log-probability of each candidate."""
    from rm_methods.benchmarks.item import BenchmarkItem

    generator = np.random.default_rng(0)
    for number in range(prompts):
        yield BenchmarkItem(
            item_id=f"prompt-{number:08d}",
            subset="koala",
            prompt=[{"role": "user", "content": f"Say something about fruit {number}."}],
            responses=[f"{WORDS} {number} {index}" for index in range(candidates)],
            label=generator.random(candidates).round(3).tolist(),
            meta={"plain_sampling": True, "log_probabilities": (-50 * generator.random(candidates)).tolist()},
        )


def pair_items(pairs: int) -> Iterator[Any]:
    """Pairs of responses of different lengths."""
    from rm_methods.benchmarks.item import BenchmarkItem

    extra = np.random.default_rng(0).integers(0, 40, size=(pairs, 2))
    for number in range(pairs):
        yield BenchmarkItem(
            item_id=f"test/pair-{number:08d}",
            subset="test_prefs",
            prompt=[{"role": "user", "content": f"Say something about fruit {number}."}],
            responses=[f"{WORDS} {number} {index}{'!' * extra[number, index]}" for index in (0, 1)],
            label=0,
        )


def scored(prompts: Iterator[Any], seed: int) -> Iterator[Any]:
    """A row of the score table for every response: normal scores of 3 digits, so that some are tied."""
    from rm_methods.benchmarks.item import response_hashes
    from rm_methods.benchmarks.score_table import ScoredResponse

    generator = np.random.default_rng(seed)
    for item in prompts:
        scores = generator.normal(size=len(item.responses)).round(3).tolist()
        for index, (digest, score) in enumerate(zip(response_hashes(item), scores, strict=True)):
            yield ScoredResponse(item.item_id, index, digest, score, 100 + index % 50, False)


def write_pool(folder: Path, size: argparse.Namespace) -> None:
    from rm_methods.benchmarks.item import write_items

    write_items(pool_items(size.prompts, size.candidates), folder / "pool.parquet")


def write_pairs(folder: Path, size: argparse.Namespace) -> None:
    from rm_methods.benchmarks.item import write_items

    write_items(pair_items(size.pairs), folder / "pairs.parquet")


def write_pool_scores(folder: Path, size: argparse.Namespace) -> None:
    from rm_methods.benchmarks.score_table import write_scores

    write_scores(scored(pool_items(size.prompts, size.candidates), 0), folder / "pool_scores_0.parquet")


def write_more_pool_scores(folder: Path, size: argparse.Namespace) -> None:
    from rm_methods.benchmarks.score_table import write_scores

    for seed in range(1, SCORINGS):
        write_scores(scored(pool_items(size.prompts, size.candidates), seed), folder / f"pool_scores_{seed}.parquet")


def write_pair_scores(folder: Path, size: argparse.Namespace) -> None:
    from rm_methods.benchmarks.score_table import write_scores

    write_scores(scored(pair_items(size.pairs), 0), folder / "pairs_scores.parquet")


def read_scores(folder: Path, size: argparse.Namespace) -> None:
    from rm_methods.benchmarks.score_table import read_scores

    assert len(read_scores(folder / "pool_scores_0.parquet")) == size.prompts * size.candidates


def check_pool(folder: Path, size: argparse.Namespace) -> None:
    """Read items and scores, and check that they belong together."""
    from rm_methods.overoptimization.best_of_n import read_pool

    items, scores = read_pool(folder / "pool.parquet", folder / "pool_scores_0.parquet")
    assert len(items) == len(scores) == size.prompts


def evaluate_pool(folder: Path, size: argparse.Namespace) -> None:
    """Gold of the top candidate, agreement, ties, credits."""
    from rm_methods.benchmarks.evaluation import evaluate_run

    tables = [(POOL, folder / "pool.parquet", folder / "pool_scores_0.parquet")]
    evaluate_run(tables, IDENTITY, folder / "pool_metrics.json", folder / "pool_credits.parquet")


def evaluate_pairs(folder: Path, size: argparse.Namespace) -> None:
    """Accuracy, ties, calibration, length control, credits."""
    from rm_methods.benchmarks.evaluation import evaluate_run

    tables = [(PAIRS, folder / "pairs.parquet", folder / "pairs_scores.parquet")]
    evaluate_run(tables, IDENTITY, folder / "pairs_metrics.json", folder / "pairs_credits.parquet")


def best_of_n(folder: Path, size: argparse.Namespace) -> None:
    """Curves, table, figure and samples of two runs."""
    from rm_methods.overoptimization.summary import PoolRun, summarize_best_of_n

    runs = [
        PoolRun(
            "made_up", "bradley_terry", seed, "pool", folder / "pool.parquet", folder / f"pool_scores_{seed}.parquet"
        )
        for seed in range(SCORINGS)
    ]
    summarize_best_of_n(runs, None, folder / "best_of_n")


def mask_pool(folder: Path, size: argparse.Namespace) -> None:
    """The copy without texts that a bundle holds."""
    from rm_methods.benchmarks.item import mask_items

    mask_items(folder / "pool.parquet", folder / "masked.parquet")


STAGES: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "write items of the pool": write_pool,
    "write scores of the pool": write_pool_scores,
    "write scores of another run": write_more_pool_scores,
    "read scores": read_scores,
    "read and check the pool": check_pool,
    "evaluate the pool": evaluate_pool,
    "Best-of-N, two runs": best_of_n,
    "mask the pool": mask_pool,
    "write items of the pairs": write_pairs,
    "write scores of the pairs": write_pair_scores,
    "evaluate the pairs": evaluate_pairs,
}


def measure(stage: str, folder: Path, size: argparse.Namespace) -> dict[str, Any]:
    """Run a stage in this process: its seconds, CPU seconds and peak memory, imports included."""
    started = time.perf_counter()
    STAGES[stage](folder, size)
    return {
        "stage": stage,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time(),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measured_in_a_process(stage: str, folder: Path, size: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a new process."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    command += ["--prompts", str(size.prompts), "--candidates", str(size.candidates), "--pairs", str(size.pairs)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    record: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20_000, help="of the pool (default: 20000)")
    parser.add_argument("--candidates", type=int, default=500, help="of each prompt (default: 500)")
    parser.add_argument("--pairs", type=int, default=5_000_000, help="default: 5000000, a score table of 10 million")
    parser.add_argument("--folder", type=Path, default=None, help="keep the files here")
    parser.add_argument("--only", default="", help="stages whose name contains this text")
    parser.add_argument("--stage", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage is not None:
        print(json.dumps(measure(arguments.stage, arguments.folder, arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"pool of {arguments.prompts * arguments.candidates:,} rows; {arguments.pairs:,} pairs")
        print(f"{'stage':30} {'seconds':>9} {'CPU s':>9} {'peak GiB':>9}")
        for stage in STAGES:
            if arguments.only in stage:
                record = measured_in_a_process(stage, folder, arguments)
                print(
                    f"{stage:30} {record['seconds']:9.1f} {record['cpu_seconds']:9.1f} {record['peak_gib']:9.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
