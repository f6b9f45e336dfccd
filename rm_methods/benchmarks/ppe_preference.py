"""PPE human preference (Frick et al., "How to Evaluate Reward Models for RLHF", arXiv:2410.14872).

Two answers of Chatbot Arena per prompt and one human vote. Accuracy is the share of rows in which the voter's answer
scores strictly higher. Rows whose vote is a tie have no better answer: they are excluded and counted.

This follows the paper, because we could not read the official metric code (github.com/lmarena/PPE). How that code
treats equal scores and tie votes is open. Others report accuracies over about 10,200 of the 16,038 rows, so they leave
out ties, too. The paper's other metrics (separability, Spearman, Kendall, Brier, ...) compare rankings of models. They
are not means of credits of rows, so they are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import (
    SAMPLING_OPTIONS,
    Metric,
    best_against_others,
    best_is_strictly_above,
    pooled,
    present_subsets,
    sample_items,
    size_notes,
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.sources import ItemReport, check_new, hub_rows, id_of, local_files, local_rows, text_of
from rm_methods.errors import DataError, nearest
from rm_methods.preferences.pair import prompt_group

TIE_RULE = "equal scores are wrong (strict); rows whose human vote is a tie are excluded"

SUBSET = "human_preference"
SIZES = {SUBSET: 16_038}  # rows of the official split, tie votes included
WINNERS = {"model_a": 0, "model_b": 1}  # value of `winner` -> index of the better response
TIES = ("tie", "tie (bothbad)", "both_bad")  # as the releases of Chatbot Arena spell them

# Domain -> the column that marks its rows.
FLAGS = {
    "hard": "hard_prompt",
    "easy": "easy_prompt",
    "if": "if_prompt",
    "math": "math_prompt",
    "code": "is_code",
}
LANGUAGES = {"English": "english", "Chinese": "chinese", "Russian": "russian"}
DOMAINS = (*FLAGS, "english", "non_english", "chinese", "russian")

OPTIONS = {**SAMPLING_OPTIONS}

METRIC_DETAILS = {"domains": f"list of the domains of the row, of {', '.join(DOMAINS)}"}

comparisons = best_against_others


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the Parquet file below `root`, or from the hub if `root` is None."""
    items = list(sample_items(_read_votes(card, root, report), options, report))
    present = {domain for item in items for domain in item.meta["domains"]}
    if missing := [domain for domain in DOMAINS if domain not in present]:
        report.notes.append(f"Domains missing: {', '.join(missing)}. They have no figures.")
    yield from items


def _read_votes(card: BenchmarkCard, root: Path | None, report: ItemReport) -> Iterator[BenchmarkItem]:
    if root is None:
        rows = hub_rows(card, report, SUBSET, split="test")
    else:
        rows = local_rows(local_files(card, root), report)
    first_use: dict[str, str] = {}
    sizes = {SUBSET: 0}
    for _, where, row in rows:
        sizes[SUBSET] += 1
        winner = row.get("winner")
        if winner in TIES:
            report.exclude(f"the human vote is {winner!r}", where)
            continue
        if winner not in WINNERS:
            raise DataError(f"{where}: winner {winner!r:.60} is not allowed. {nearest(str(winner), (*WINNERS, *TIES))}")
        item = _item(row, where, report)
        check_new(item.item_id, where, first_use)
        if item.responses[0] == item.responses[1]:
            report.count("both responses are the same text: always a tie, kept", where)
        if not all(response.strip() for response in item.responses):
            report.count("empty response, kept", where)
        yield item
    report.notes += size_notes(sizes, SIZES)


def _item(row: dict[str, Any], where: str, report: ItemReport) -> BenchmarkItem:
    messages = [{"role": "user", "content": text_of(row, "prompt", where)}]
    return BenchmarkItem(
        item_id=id_of(row, "question_id", where),
        subset=SUBSET,
        prompt=messages,
        responses=[text_of(row, key, where, may_be_empty=True) for key in ("response_1", "response_2")],
        label=WINNERS[row["winner"]],
        group=prompt_group(messages),
        meta={"domains": _domains(row, where, report), "models": [row.get(key) for key in ("model_a", "model_b")]},
    )


def _domains(row: dict[str, Any], where: str, report: ItemReport) -> list[str]:
    """The domains of a row; a row may have several of the flagged ones.

    Raises:
        DataError: a flag is not true, false or null, or the language is not text.
    """
    domains = []
    for domain, column in FLAGS.items():
        flag = row.get(column)
        if flag is None:
            report.count(f"`{column}` is missing: not in the domain {domain!r}", where)
        elif not isinstance(flag, bool):
            raise DataError(f"{where}: `{column}` must be true or false, found {flag!r:.60}.")
        elif flag:
            domains.append(domain)
    language = text_of(row, "language", where)
    if language != "English":
        domains.append("non_english")
    if language in LANGUAGES:
        domains.append(LANGUAGES[language])
    return domains


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credit of one item: accuracy, 1 if the voter's response scores strictly higher."""
    return {"accuracy": best_is_strictly_above(label, scores)}


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """Accuracy over all rows, and over the rows of each domain that is present."""
    present = present_subsets(items, [SUBSET], "ppe_preference")
    domains = {domain for item in items for domain in item.meta.get("domains", ())}
    return [
        pooled("accuracy", "accuracy", present),
        *(
            Metric(domain, "accuracy", {domain: (1.0, (domain,))}, part_of=partial(_part_of, domain=domain))
            for domain in DOMAINS
            if domain in domains
        ),
    ]


def _part_of(item: BenchmarkItem, domain: str) -> str:
    """The domain for an item in it, "" for any other item: domains overlap, so they cannot be subsets."""
    return domain if domain in item.meta.get("domains", ()) else ""
