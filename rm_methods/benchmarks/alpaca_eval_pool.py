"""A Best-of-N pool with a recorded judge: AlpacaEval instructions with the answers of many models.

The judge (GPT-4 Turbo, weighted) compared each answer with that of one baseline. The gold value of a candidate is its
preference less 1, in [0, 1]: 1 where the judge prefers it to the baseline's answer, 0.5 for the baseline itself. The
metric is the gold of the candidate that a scorer ranks first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import SAMPLING_OPTIONS, Metric, pooled, present_subsets, sample_items
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.pool_grading import (
    GOLD_RULE,
    agreement,
    candidate_gold,
    gold_comparisons,
    gold_of_top,
    gold_ties,
)
from rm_methods.benchmarks.sources import ItemReport, check_new, check_plain, local_files, local_rows, text_of
from rm_methods.errors import DataError, UserError, nearest
from rm_methods.files import content_hash
from rm_methods.preferences.pair import prompt_group

TIE_RULE = f"{GOLD_RULE}; `best_of_all_expected`: their mean"

SUBSETS = ("helpful_base", "koala", "oasst", "selfinstruct", "vicuna")

OPTIONS = {**SAMPLING_OPTIONS}


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the pool file below `root`; it is made from the public annotations and is not on a hub."""
    if root is None:
        raise UserError(
            f"benchmarks.{card.name}.root is not set: the pool is made from the annotations at {card.url} and is "
            f"not on a hub. Name the folder that holds {card.files['pool']}."
        )
    yield from sample_items(_read_pool(card, root, report), options, report)


def _read_pool(card: BenchmarkCard, root: Path, report: ItemReport) -> Iterator[BenchmarkItem]:
    first_use: dict[str, str] = {}
    for _, where, row in local_rows(local_files(card, root, names=["pool"]), report):
        item = _item(row, where)
        check_new(item.item_id, where, first_use)
        if max(item.label) == min(item.label):
            report.exclude("all candidates have the same preference: nothing to rank", where)
            continue
        if len(set(item.responses)) < len(item.responses):
            report.count("some candidates repeat the text of another, kept", where)
        if any(not response.strip() for response in item.responses):
            report.count("some candidates are empty, kept", where)
        yield item


def _item(row: dict[str, Any], where: str) -> BenchmarkItem:
    instruction = text_of(row, "instruction", where)
    candidates = row.get("candidates")
    dataset = row.get("dataset")
    if dataset not in SUBSETS:
        raise DataError(f"{where}: dataset {dataset!r} is not one of AlpacaEval. {nearest(str(dataset), SUBSETS)}")
    if not isinstance(candidates, (list, tuple)) or len(candidates) < 2:
        raise DataError(
            f"{where}: `candidates` must be a list of at least two answers, found {str(candidates)[:80]!r}."
        )
    for number, candidate in enumerate(candidates, start=1):
        if not isinstance(candidate, dict) or not isinstance(candidate.get("output"), str):
            raise DataError(f"{where}: candidate {number} has no text `output`.")
        check_plain(candidate["output"], f"{where}: candidate {number}: `output`")
        preference = candidate.get("preference")
        if isinstance(preference, bool) or not isinstance(preference, (int, float)) or not 1 <= preference <= 2:
            raise DataError(
                f"{where}: candidate {number}: `preference` must be a number from 1 to 2, found {preference!r}."
            )
    messages = [{"role": "user", "content": instruction}]
    return BenchmarkItem(
        item_id=content_hash(instruction),
        subset=dataset,
        prompt=messages,
        responses=[candidate["output"] for candidate in candidates],
        label=[candidate["preference"] - 1.0 for candidate in candidates],
        group=prompt_group(messages),
        meta={"generators": [candidate.get("generator") for candidate in candidates]},
    )


def comparisons(label: Any, n_responses: int) -> list[tuple[int, int]]:
    """All pairs (better, worse) of candidates whose preference differs.

    Raises:
        DataError: the label is not a list of one number a candidate.
    """
    return gold_comparisons(_gold(label, n_responses))


def check_label(label: Any, n_responses: int) -> None:
    """Refuse what `comparisons` refuses, without listing them: their number grows with the square of the candidates."""
    _gold(label, n_responses)


def tie_counts(label: Any, scores: np.ndarray) -> tuple[int, int]:
    """Number of comparisons with equal scores, and of all."""
    return gold_ties(candidate_gold(label, len(scores)), scores)


def _gold(label: Any, n_responses: int) -> np.ndarray:
    if isinstance(label, dict):
        raise DataError(f"label {str(label)[:80]!r} is not allowed; expected a list of one gold value a candidate.")
    return candidate_gold(label, n_responses)


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credits of one item: gold of the top candidate (strict, expected over ties), agreement on pairs of candidates."""
    gold = candidate_gold(label, len(scores))
    strict, expected = gold_of_top(gold, scores)
    return {"best_of_all": strict, "best_of_all_expected": expected, "agreement": agreement(gold, scores)}


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """best_of_all (main), the same with ties at random, agreement: means over all prompts."""
    present = present_subsets(items, SUBSETS, "alpaca_eval_pool")
    return [
        pooled("best_of_all", "best_of_all", present),
        pooled("best_of_all_expected", "best_of_all_expected", present, strict=False),
        pooled("agreement", "agreement", present),
    ]
