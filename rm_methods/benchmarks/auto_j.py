"""Auto-J pairwise test set (Li et al., ICLR 2024, arXiv:2310.05470): human preferences in 58 scenarios, with ties.

Data and metric follow the official repository (github.com/GAIR-NLP/auto-j @ 2ae17a3). Its file
`data/test/testdata_pairwise.jsonl` has 24 pairs a scenario, labeled 0 (response 1 is better), 1 (response 2 is better)
or 2 (tie). The official metric is the agreement over three classes (`codes/leaderboard/pairwise_eval.py`, type "single"
for reward models), over all rows and in each of eight groups of scenarios (`codes/leaderboard/utils_constants.py`).

A scalar reward says "tie" only by a threshold. For its table, the official leaderboard searched the threshold from 0 to
2.0 on the test data (README); the code of that search is not public. Here the main metric is `accuracy_without_ties`,
strict, over the rows that humans did not label as ties. The option `ties: keep` adds the official agreement with the
threshold 0: only equal scores mean "tie". A search that includes 0 can only give more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from rm_methods.benchmarks.pair_items import STRICT, PairItems, required_root, whole_number
from rm_methods.benchmarks.sources import ItemReport, SourceRow, local_files, local_rows, text_of
from rm_methods.errors import DataError, nearest

TIE_RULE = f"{STRICT}; `...agreement`: right if the label is a tie, otherwise wrong (official, threshold 0)"

TIE = 2  # the label
SCENARIOS = {
    "summarization": ("note_summarization", "post_summarization", "text_summarization"),
    "exam_questions": (
        "math_reasoning",
        "solving_exam_question_with_math",
        "solving_exam_question_without_math",
    ),
    "code": (
        "code_correction_rewriting",
        "code_generation",
        "code_simplification",
        "code_to_code_translation",
        "explaining_code",
    ),
    "rewriting": (
        "instructional_rewriting",
        "language_polishing",
        "paraphrasing",
        "text_correction",
        "text_simplification",
    ),
    "creative_writing": (
        "counterfactual",
        "creative_writing",
        "writing_advertisement",
        "writing_blog_post",
        "writing_marketing_materials",
        "writing_personal_essay",
        "writing_presentation_script",
        "writing_social_media_post",
        "writing_song_lyrics",
    ),
    "functional_writing": (
        "functional_writing",
        "writing_biography",
        "writing_cooking_recipe",
        "writing_email",
        "writing_job_application",
        "writing_legal_document",
        "writing_news_article",
        "writing_product_description",
        "writing_scientific_paper",
        "writing_technical_document",
    ),
    "general_communication": (
        "analyzing_general",
        "asking_how_to_question",
        "brainstorming",
        "chitchat",
        "explaining_general",
        "open_question",
        "planning",
        "recommendation",
        "roleplay",
        "seeking_advice",
        "value_judgement",
        "verifying_fact",
    ),
    "nlp_tasks": (
        "classification_identification",
        "data_analysis",
        "information_extraction",
        "keywords_extraction",
        "others",
        "question_generation",
        "ranking",
        "reading_comprehension",
        "text_to_text_translation",
        "title_generation",
        "topic_modeling",
    ),
}
SUBSETS = tuple(SCENARIOS)
ROWS_PER_SCENARIO = 24
SIZES = {group: ROWS_PER_SCENARIO * len(scenarios) for group, scenarios in SCENARIOS.items()}
GROUP_OF_SCENARIO = {scenario: group for group, scenarios in SCENARIOS.items() for scenario in scenarios}

OPTIONS = {
    "ties": {
        "enum": ["exclude", "keep"],
        "default": "exclude",
        "description": "Rows that humans labeled as ties: exclude them, or keep them for `agreement` over three "
        "classes. `accuracy_without_ties` never counts them.",
    },
    **SAMPLING_OPTIONS,
}


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from `testdata_pairwise.jsonl` below `root`.

    Raises:
        DataError: as `local_rows`; a row is wrong, or all rows are ties.
    """
    files = local_files(card, required_root(card, root, "the test data are not on a hub"))
    items = list(sample_items(_items(local_rows(files, report), options["ties"] == "exclude", report), options, report))
    if items and all(item.label == TIE for item in items):
        raise DataError(f"{card.name}: all {len(items)} items are labeled as ties, so nothing can be compared.")
    yield from items


def _items(rows: Iterator[SourceRow], exclude_ties: bool, report: ItemReport) -> Iterator[BenchmarkItem]:
    make = PairItems(report)
    sizes: Counter[str] = Counter()
    for _, where, row in rows:
        scenario = text_of(row, "scenario", where)
        if scenario not in GROUP_OF_SCENARIO:
            raise DataError(
                f"{where}: scenario {scenario!r} is not one of Auto-J. {nearest(scenario, GROUP_OF_SCENARIO)}"
            )
        sizes[GROUP_OF_SCENARIO[scenario]] += 1
        prompt = [{"role": "user", "content": text_of(row, "prompt", where)}]
        responses = [text_of(row, key, where, may_be_empty=True) for key in ("response 1", "response 2")]
        label = whole_number(row, "label", (0, 1, TIE), where)
        if label == TIE and exclude_ties:
            report.exclude("labeled as a tie (options.ties)", where)
            continue
        meta = {"scenario": scenario}
        yield make.item(prompt, responses, label, subset=GROUP_OF_SCENARIO[scenario], where=where, meta=meta)
    if missing := [group for group in SUBSETS if not sizes[group]]:
        report.notes.append(f"Groups missing: {', '.join(missing)}. Figures over all rows are not the official ones.")
    report.notes += size_notes(sizes, SIZES)


def _is_tie(label: Any) -> bool:
    return isinstance(label, int) and label == TIE


def comparisons(label: Any, n_responses: int) -> list[tuple[int, int]]:
    """The one comparison (better, worse) of an item, none if its label is a tie.

    Raises:
        DataError: the label is none of 0, 1, 2, or the item does not have two responses.
    """
    if n_responses != 2:
        raise DataError(f"an item of Auto-J has 2 responses, found {n_responses}.")
    return [] if _is_tie(label) else best_against_others(label, n_responses)


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credits of one item: accuracy (strict; of no meaning for a tie), and agreement of the three classes."""
    if _is_tie(label):
        return {"accuracy": 0.0, "agreement": float(scores[0] == scores[1])}
    strict = best_is_strictly_above(label, scores)
    return {"accuracy": strict, "agreement": strict}


def _group_of_untied(item: BenchmarkItem) -> str:
    return "" if item.label == TIE else item.subset


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """accuracy_without_ties over all rows and in each group; with ties in the items also the agreement."""
    present = present_subsets(items, SUBSETS, "auto_j")
    groups = [group for group in SUBSETS if group in present]
    without_ties = [
        pooled("accuracy_without_ties", "accuracy", groups),
        *(pooled(group, "accuracy", [group]) for group in groups),
    ]
    result = [replace(metric, part_of=_group_of_untied) for metric in without_ties]
    if any(item.label == TIE for item in items):
        result.append(pooled("agreement", "agreement", groups, strict=False))
        result += [pooled(f"{group}_agreement", "agreement", [group], strict=False) for group in groups]
    return result
