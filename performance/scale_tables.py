"""Time and memory of every stage that reads or writes score tables, on made-up tables of 10 million rows.

    python -m performance run scale_tables
    python -m performance run scale_tables --option prompts=2000 --option pairs=1000000

Two tables are made up: a Best-of-N pool with log-probabilities, and pairs.  Responses have about 50 characters.  No
model is run.  Items and scores of a stage are those that the stage before it wrote.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.stopwatch import Stopwatch

WORDS = "a response about fruit that nobody wrote, number"
IDENTITY = {"variant": "made_up", "method": "bradley_terry", "seed": 0, "run_key": "made up"}
POOL = "alpaca_eval_pool"
PAIRS = "ultrafeedback"
# Tables on which results are compared with plain loops.
SMALL = {"prompts": 30, "candidates": 8, "pairs": 60, "summary_prompts": 30}


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


def pool_of(options: Mapping[str, Any]) -> Iterator[Any]:
    """The items of the pool."""
    return pool_items(options["prompts"], options["candidates"])


def summary_pool(options: Mapping[str, Any]) -> Iterator[Any]:
    """The items of the pool of the Best-of-N summary."""
    return pool_items(options["summary_prompts"], options["candidates"])


def write_items_of(items: Iterator[Any], file: Path) -> None:
    """Write items."""
    from rm_methods.benchmarks.item import write_items

    write_items(items, file)


def write_scores_of(items: Iterator[Any], seed: int, file: Path) -> None:
    """Write a score table of items."""
    from rm_methods.benchmarks.score_table import write_scores

    write_scores(scored(items, seed), file)


# What a stage reads, by file name: each is written once, by the stage that is about it or before the first that reads.
INPUTS: dict[str, Callable[[Mapping[str, Any], Path], None]] = {
    "pool.parquet": lambda options, file: write_items_of(pool_of(options), file),
    "pool_scores.parquet": lambda options, file: write_scores_of(pool_of(options), 0, file),
    "pairs.parquet": lambda options, file: write_items_of(pair_items(options["pairs"]), file),
    "pairs_scores.parquet": lambda options, file: write_scores_of(pair_items(options["pairs"]), 0, file),
    "summary.parquet": lambda options, file: write_items_of(summary_pool(options), file),
    "summary_scores_0.parquet": lambda options, file: write_scores_of(summary_pool(options), 0, file),
    "summary_scores_1.parquet": lambda options, file: write_scores_of(summary_pool(options), 1, file),
}


def read_scores_of_pool(folder: Path) -> tuple[float, ...]:
    """Number and sum of the scores."""
    from rm_methods.benchmarks.score_table import read_scores

    table = read_scores(folder / "pool_scores.parquet")
    return (len(table), float(table["score"].sum()))


def check_pool(folder: Path) -> tuple[float, ...]:
    """Read items and scores, and check that they belong together; number and sum of the scores."""
    from rm_methods.benchmarks.item import read_items
    from rm_methods.overoptimization.best_of_n import read_pool_scores

    scores = read_pool_scores(read_items(folder / "pool.parquet"), folder / "pool_scores.parquet")
    return (sum(map(len, scores)), float(sum(values.sum() for values in scores)))


def evaluate(benchmark: str, items: Path, scores: Path) -> dict[str, float]:
    """The metrics of one table."""
    from rm_methods.benchmarks.evaluation import evaluate_run
    from rm_methods.files import read_json

    metrics = items.with_suffix(".metrics.json")
    evaluate_run([(benchmark, items, scores)], IDENTITY, metrics, items.with_suffix(".credits.parquet"))
    return read_json(metrics)["benchmarks"][benchmark]["metrics"]


def evaluate_pool(folder: Path) -> tuple[float, ...]:
    """Gold of the top candidate, agreement, ties, credits; the first."""
    return (evaluate(POOL, folder / "pool.parquet", folder / "pool_scores.parquet")["best_of_all"],)


def evaluate_pairs(folder: Path) -> tuple[float, ...]:
    """Accuracy, ties, calibration, length control, credits; the first."""
    return (evaluate(PAIRS, folder / "pairs.parquet", folder / "pairs_scores.parquet")["accuracy"],)


def best_of_n(folder: Path) -> tuple[float, ...]:
    """Curves, table, figure and samples of two runs; the gold value of the top candidate, of each run."""
    from rm_methods.overoptimization.summary import PoolRun, summarize_best_of_n

    items = folder / "summary.parquet"
    runs = [
        PoolRun("made_up", "bradley_terry", seed, "pool", items, folder / f"summary_scores_{seed}.parquet")
        for seed in (0, 1)
    ]
    summarize_best_of_n(runs, None, folder / "best_of_n")
    with (folder / "best_of_n" / "best_of_n_runs.csv").open(encoding="utf-8") as file:
        return tuple(float(row["gold_end"]) for row in csv.DictReader(file))


def mask_pool(folder: Path) -> tuple[float, ...]:
    """The copy without texts that a bundle holds; its number of items."""
    from pyarrow.parquet import read_metadata

    from rm_methods.benchmarks.item import mask_items

    mask_items(folder / "pool.parquet", folder / "masked.parquet")
    return (read_metadata(folder / "masked.parquet").num_rows,)


POOL_FILES = ("pool.parquet", "pool_scores.parquet")
PAIR_FILES = ("pairs.parquet", "pairs_scores.parquet")
SUMMARY_FILES = ("summary.parquet", "summary_scores_0.parquet", "summary_scores_1.parquet")
# File that a case writes, by case.
WRITES = {
    "write_items": "pool.parquet",
    "write_scores": "pool_scores.parquet",
    "write_pairs": "pairs.parquet",
    "write_pair_scores": "pairs_scores.parquet",
}
# What the other cases do, and the files that they read.
READS: dict[str, tuple[Callable[[Path], tuple[float, ...]], tuple[str, ...]]] = {
    "read_scores": (read_scores_of_pool, ("pool_scores.parquet",)),
    "check_pool": (check_pool, POOL_FILES),
    "evaluate_pool": (evaluate_pool, POOL_FILES),
    "mask_pool": (mask_pool, ("pool.parquet",)),
    "best_of_n": (best_of_n, SUMMARY_FILES),
    "evaluate_pairs": (evaluate_pairs, PAIR_FILES),
}


def expected(case: str, options: Mapping[str, Any]) -> tuple[float, ...]:
    """The result of a case that reads, by plain loops."""
    if case == "mask_pool":
        return (options["prompts"],)
    if case == "evaluate_pairs":
        scores = scores_of(pair_items(options["pairs"]), 0)
        return (float(np.mean([chosen > rejected for chosen, rejected in scores])),)
    items = list(summary_pool(options) if case == "best_of_n" else pool_of(options))
    if case in ("read_scores", "check_pool"):
        scores = scores_of(iter(items), 0)
        return (sum(map(len, scores)), sum(map(sum, scores)))
    results = []
    for seed in (0, 1) if case == "best_of_n" else (0,):
        golds = []
        for item, values in zip(items, scores_of(iter(items), seed), strict=True):
            tops = [gold for gold, score in zip(item.label, values, strict=True) if score == max(values)]
            golds.append(float(np.mean(tops)) if case == "best_of_n" else min(tops))
        results.append(float(np.mean(golds)))
    return tuple(results)


def scores_of(items: Iterator[Any], seed: int) -> list[list[float]]:
    """The made-up scores of each item's responses."""
    by_item: dict[str, list[float]] = {}
    for row in scored(items, seed):
        by_item.setdefault(row.item_id, []).append(row.score)
    return list(by_item.values())


def rows_of(case: str, options: Mapping[str, Any]) -> int:
    """Responses that a case processes; of Best-of-N for both runs."""
    if "pair" in case:
        return 2 * options["pairs"]
    return options["candidates"] * (2 * options["summary_prompts"] if case == "best_of_n" else options["prompts"])


def prepare(work: Work) -> None:
    """Write what the case reads, unless an earlier case did."""
    for name in READS[work.case][1] if work.case in READS else ():
        if not (work.shared / name).exists():
            INPUTS[name](work.options, work.shared / name)


def prove(work: Work) -> Proof:
    """On small tables, what was written is read again, and results are those of plain loops."""
    options = {**work.options, **SMALL}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if work.case in WRITES:
            name = WRITES[work.case]
            INPUTS[name](options, folder / name)
            return Proof("what was written is read again (small table)", float(unlike_rows(name, options, folder)), 0.0)
        stage, names = READS[work.case]
        for name in names:
            INPUTS[name](options, folder / name)
        pairs = zip(stage(folder), expected(work.case, options), strict=True)
        return Proof("results are those of plain loops (small table)", max(abs(a - b) for a, b in pairs), 1e-4)


def unlike_rows(name: str, options: Mapping[str, Any], folder: Path) -> int:
    """Items or scores of a file that differ from those that were written."""
    from rm_methods.benchmarks.item import read_items
    from rm_methods.benchmarks.score_table import read_scores

    items = list(pair_items(options["pairs"]) if name in PAIR_FILES else pool_of(options))
    if name in ("pool.parquet", "pairs.parquet"):
        # A file without groups has the identifiers as groups.
        grouped = [replace(item, group=item.item_id) for item in items]
        return sum(read != item for read, item in zip(read_items(folder / name), grouped, strict=True))
    rows = list(scored(iter(items), 0))
    table = read_scores(folder / name)
    triples = zip(table["item_id"], table["response_index"], table["score"].astype(np.float32), strict=True)
    written = [(row.item_id, row.response_index, np.float32(row.score)) for row in rows]
    return sum(read != row for read, row in zip(triples, written, strict=True))


def measure(work: Work) -> Measurement:
    """Do it once; imports are counted."""
    result: tuple[float, ...] = ()
    with Stopwatch() as watch:
        if work.case in WRITES:
            name = WRITES[work.case]
            INPUTS[name](work.options, work.shared / name)
        else:
            result = READS[work.case][0](work.shared)
    return watch.measurement(amount=rows_of(work.case, work.options), result=result)


BENCHMARK = Benchmark(
    name="scale_tables",
    title="Large score tables",
    question="How long do the stages that read or write score tables take, with how much memory?",
    sides=(Side("ours", "ours"),),
    cases=(
        Case("write_items", "write the items of the pool"),
        Case("write_scores", "write the scores of the pool"),
        Case("read_scores", "read the scores"),
        Case("check_pool", "read items and scores, check that they fit"),
        Case("evaluate_pool", "evaluate the pool"),
        Case("mask_pool", "mask the pool"),
        Case("best_of_n", "Best-of-N, two runs"),
        Case("write_pairs", "write the items of the pairs"),
        Case("write_pair_scores", "write the scores of the pairs"),
        Case("evaluate_pairs", "evaluate the pairs"),
    ),
    tests=(
        "tests/benchmarks/test_item.py::test_items_are_read_as_they_were_written",
        "tests/benchmarks/test_score_table.py",
        "tests/benchmarks/test_evaluation.py::test_columns_agree_with_plain_objects_on_damaged_tables",
        "tests/benchmarks/test_evaluation.py::test_ties_are_counted_as_if_every_comparison_was_listed",
        "tests/overoptimization/test_best_of_n.py",
    ),
    options={
        "prompts": Option(20_000, "of the pool"),
        "candidates": Option(500, "of each prompt"),
        "summary_prompts": Option(2_000, "of the pool of the Best-of-N summary"),
        "pairs": Option(100_000, "5000000 makes a score table of 10 million rows, and takes about 10 GB"),
    },
    prepare=prepare,
    prove=prove,
    measure=measure,
    rounds=1,
    unit="rows",
)
