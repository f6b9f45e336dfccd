"""Made-up pairs and scorers for the tests of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard, benchmark_module
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.score_table import ScoredResponse, response_hash, write_scores
from rm_methods.preferences.pair import make_pair, write_pairs


def example_pairs(splits: tuple[str, ...], target: Path) -> Path:
    """A file of prepared pairs: two of each split and two for training.  The same texts stand in every split."""
    prompt = [{"role": "user", "content": "Name a fruit."}]
    answers = [("A plum.", "A brick."), ("A pear, if you like.", "Mud.")]
    write_pairs(
        [make_pair(prompt, *two, split=split, source="made up") for split in ("train", *splits) for two in answers],
        target,
    )
    return target


def scores_by(scorer: Callable[[str], float], items: list[BenchmarkItem]) -> list[np.ndarray]:
    """Scores of every item by a function of the response text."""
    return [np.asarray([scorer(response) for response in item.responses], dtype=np.float32) for item in items]


def perfect_scores(card: BenchmarkCard, items: list[BenchmarkItem]) -> list[np.ndarray]:
    """Scores that win every comparison of every item: comparisons won minus comparisons lost."""
    scores = []
    for item in items:
        values = np.zeros(len(item.responses), dtype=np.float32)
        for better, worse in benchmark_module(card).comparisons(item.label, len(item.responses)):
            values[better] += 1
            values[worse] -= 1
        scores.append(values)
    return scores


def score_rows(items: list[BenchmarkItem], scores: list[np.ndarray]) -> list[ScoredResponse]:
    """The rows of a score table."""
    return [
        ScoredResponse(item.item_id, index, response_hash(text), float(score), 10, False)
        for item, item_scores in zip(items, scores, strict=True)
        for index, (text, score) in enumerate(zip(item.responses, item_scores, strict=True))
    ]


def write_score_table(items: list[BenchmarkItem], scores: list[np.ndarray], target: Path) -> Path:
    write_scores(score_rows(items, scores), target)
    return target


def prepared(name: str, root: Path, folder: Path, **options: Any) -> tuple[dict[str, Any], list[BenchmarkItem]]:
    """The report and the items of a benchmark from local files; both are written into `folder`."""
    config = {"root": str(root), "options": options}
    report = prepare_items(name, config, None, folder / "items.parquet", folder / "report.json")
    return report, read_items(folder / "items.parquet")


def write_lines(path: Path, *rows: dict[str, Any]) -> None:
    """A file of JSON lines, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def graded_items(subset: str, label: Any, right: int, tied: int, total: int) -> list[tuple[BenchmarkItem, np.ndarray]]:
    """Pairs of a subset with scores: so many in the order of the label, then so many equal, and the others wrong.

    Args:
        label: index of the better response.
    """
    graded = []
    for number in range(total):
        scores = np.zeros(2, dtype=np.float32)
        if number < right:
            scores[label] = 1.0
        elif number >= right + tied:
            scores[label] = -1.0
        graded.append((BenchmarkItem(f"{subset}-{label}-{number}", subset, (), ["", ""], label), scores))
    return graded


def metrics_of_graded(card: BenchmarkCard, graded: list[tuple[BenchmarkItem, np.ndarray]]) -> dict[str, float]:
    """The metrics of items with their scores."""
    return metric_values(credit_table(card, [item for item, _ in graded], [scores for _, scores in graded]))
