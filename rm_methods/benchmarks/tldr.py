"""TL;DR summaries (Stiennon et al. 2020, arXiv:2009.01325): which of two summaries of a Reddit post do people prefer?

Format and prompt follow the official repository (github.com/openai/summarize-from-feedback @ 7009674). Its README has
the format of `comparisons/*.json` (JSON lines). The prompt is that of `tldr_task` in
`summarize_from_feedback/utils/experiment_helpers.py`. The authors chose models by the split `valid1` and kept `valid2`
for final evaluations. The metric is the accuracy against `choice`, strict; no row has a tie.

* A summary is used as published, with the space that it begins with: prompt + summary is the official text.
* A post is used whole. Officially a post is cut at its last line breaks until the prompt has at most 512 GPT-2 tokens.
* Comparisons of summaries of news (CNN/DM) are excluded.
* People compared some pairs of summaries several times. Each judgment is an item; items of one post form one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import (
    SAMPLING_OPTIONS,
    Metric,
    best_against_others,
    pooled,
    present_subsets,
    sample_items,
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.length_control import length_controlled
from rm_methods.benchmarks.pair_items import STRICT, PairItems, grade_pair, whole_number
from rm_methods.benchmarks.sources import ItemReport, SourceRow, hub_rows, local_files, local_rows, text_of
from rm_methods.errors import DataError, nearest
from rm_methods.validation import kind_of

TIE_RULE = STRICT

SUBSETS = ("valid1", "valid2")
SOURCE_SPLITS = ("train", *SUBSETS)
PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
# The repository holds a loading script, which `datasets` no longer runs. The hub keeps a converted copy in this branch.
CONVERTED = "refs/convert/parquet"

OPTIONS = {
    "splits": {
        "type": "array",
        "items": {"enum": list(SUBSETS)},
        "minItems": 1,
        "uniqueItems": True,
        "default": ["valid2"],
        "description": "valid2 is for final figures; valid1 is for choices, as in the paper.",
    },
    **SAMPLING_OPTIONS,
}

comparisons = best_against_others
grade = grade_pair


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from `comparisons/*.json` below `root`, or from the hub if `root` is None."""
    yield from sample_items(_read_splits(card, root, options["splits"], report), options, report)


def _read_splits(
    card: BenchmarkCard, root: Path | None, splits: Sequence[str], report: ItemReport
) -> Iterator[BenchmarkItem]:
    make = PairItems(report)
    for _, where, row in _rows(card, root, report):
        split = row.get("split")
        if split not in SOURCE_SPLITS:
            raise DataError(f"{where}: split {split!r} is not one of TL;DR. {nearest(str(split), SOURCE_SPLITS)}")
        if split not in splits:
            report.exclude(f"split {split}, not asked for by options.splits", where)
            continue
        info = row.get("info")
        if not isinstance(info, dict):
            raise DataError(f"{where}: `info` must be an object, found {kind_of(info)}.")
        if info.get("article") is not None:
            report.exclude("news article (CNN/DM), not a Reddit post", where)
            continue
        yield _item(row, info, split, where, make)


def _rows(card: BenchmarkCard, root: Path | None, report: ItemReport) -> Iterator[SourceRow]:
    if root is None:
        yield from hub_rows(
            card,
            report,
            "validation",
            revision=card.revision or CONVERTED,
            data_files={"validation": "comparisons/validation/*.parquet"},
            split="validation",
        )
        return
    files = local_files(card, root)
    missing = [name for name in card.files if name not in files]
    if missing:
        report.notes.append(f"Not below the root, so not evaluated: {', '.join(missing)}.")
    yield from local_rows(files, report)


def _item(row: dict[str, Any], info: dict[str, Any], split: str, where: str, make: PairItems) -> BenchmarkItem:
    parts = {
        "subreddit": text_of(info, "subreddit", f"{where}, info"),
        "title": text_of(info, "title", f"{where}, info", may_be_empty=True),
        "post": text_of(info, "post", f"{where}, info", may_be_empty=True),
    }
    summaries = row.get("summaries")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(one, dict) for one in summaries):
        raise DataError(f"{where}: `summaries` must be a list of two objects, found {str(summaries)[:80]!r}.")
    return make.item(
        [{"role": "user", "content": PROMPT.format(**parts)}],
        [text_of(summary, "text", f"{where}, summaries", may_be_empty=True) for summary in summaries],
        whole_number(row, "choice", (0, 1), where),
        subset=split,
        where=where,
        meta={"batch": row.get("batch"), "policies": [summary.get("policy") for summary in summaries]},
    )


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """accuracy over all rows, the same with length controlled, and the accuracy of each split."""
    present = present_subsets(items, SUBSETS, "tldr")
    controlled = length_controlled("length_controlled", "accuracy", items, present)
    overall = [pooled("accuracy", "accuracy", present), controlled]
    return [*overall, *(pooled(split, "accuracy", [split]) for split in SUBSETS if split in present)]
