"""RM-Bench (Liu et al., ICLR 2025, arXiv:2410.16184): three chosen and three rejected answers per prompt, in styles.

The metric follows the official code (github.com/THU-KEG/RM-Bench @ 73c52d7, scripts/utils.py). The styles are ordered
concise, detailed plain text, detailed markdown. M[i][j] says whether chosen i scores strictly above rejected j. *Hard*
is the mean of the upper triangle (the rejected answer has the fancier style), *normal* the diagonal, *easy* the lower
triangle. The average of a domain is the mean of the three. Overall figures are means over domains, not over rows;
safety pools its two files by rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import (
    SAMPLING_OPTIONS,
    Metric,
    mean_of,
    present_subsets,
    sample_items,
    size_notes,
    wins_of_scores,
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.sources import (
    ItemReport,
    check_new,
    check_plain,
    hub_rows,
    id_of,
    local_files,
    local_rows,
    text_of,
)
from rm_methods.errors import DataError, nearest
from rm_methods.preferences.pair import prompt_group

TIE_RULE = "equal scores are wrong, in each of the nine comparisons of an item (official)"

DOMAINS = {"chat": ("chat",), "code": ("code",), "math": ("math",), "safety": ("safety-refuse", "safety-response")}
SUBSETS = tuple(subset for subsets in DOMAINS.values() for subset in subsets)
SIZES = {"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157}
LEVELS = ("easy", "normal", "hard")

OPTIONS = {
    "domains": {
        "type": ["array", "null"],
        "items": {"enum": list(DOMAINS)},
        "minItems": 1,
        "uniqueItems": True,
        "default": None,
        "description": "Domains to evaluate; null takes all that are present. Without all four, `overall` is not the "
        "official Overall.",
    },
    **SAMPLING_OPTIONS,
}


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the official files below `root` (total_dataset, or one per domain), or from the hub."""
    items = list(_read_domains(card, root, set(options["domains"] or DOMAINS), report))
    present = {item.subset for item in items}
    missing = [domain for domain, subsets in DOMAINS.items() if not present & set(subsets)]
    empty = [domain for domain in options["domains"] or () if domain in missing]
    if empty:
        raise DataError(f"{card.name}: no rows of the domains {empty} that options.domains asks for.")
    if missing:
        report.notes.append(
            f"Domains missing: {', '.join(missing)}. `overall` is the mean over the others and is not the official "
            "Overall."
        )
    if "safety" not in missing and not present >= set(DOMAINS["safety"]):
        report.notes.append(
            "Only one of the two safety files exists: `safety` is not the official figure, which pools both by rows."
        )
    report.notes += size_notes(Counter(item.subset for item in items), SIZES)
    yield from sample_items(items, options, report)


def _read_domains(
    card: BenchmarkCard, root: Path | None, domains: set[str], report: ItemReport
) -> Iterator[BenchmarkItem]:
    if root is None:
        rows = hub_rows(card, report, "total_dataset", split="train")
    else:
        files = local_files(card, root)
        if "total_dataset" in files:  # it holds the rows of the other files: reading both would count them twice
            files = {"total_dataset": files["total_dataset"]}
        rows = local_rows(files, report)
    first_use: dict[str, str] = {}
    for name, where, row in rows:
        subset = row.get("domain") if name == "total_dataset" else name
        if subset not in SUBSETS:
            raise DataError(f"{where}: domain {subset!r} is not one of RM-Bench. {nearest(str(subset), SUBSETS)}")
        item = _item(row, subset, where, report)
        check_new(item.item_id, where, first_use)
        if any(subset in DOMAINS[domain] for domain in domains):
            yield item
        else:
            report.exclude("domain not asked for by options.domains", where)


def _item(row: dict[str, Any], subset: str, where: str, report: ItemReport) -> BenchmarkItem:
    prompt = text_of(row, "prompt", where)
    answers = {key: _three_texts(row, key, where) for key in ("chosen", "rejected")}
    if set(answers["chosen"]) & set(answers["rejected"]):
        report.count("a chosen and a rejected answer are the same text: always a tie, kept", where)
    if not all(answer.strip() for side in answers.values() for answer in side):
        report.count("some answers are empty, kept", where)
    messages = [{"role": "user", "content": prompt}]
    return BenchmarkItem(
        item_id=f"{subset}/{id_of(row, 'id', where)}",  # the official id is unique only within a file
        subset=subset,
        prompt=messages,
        responses=[*answers["chosen"], *answers["rejected"]],
        label={"chosen": [0, 1, 2], "rejected": [3, 4, 5]},
        group=prompt_group(messages),
        meta={key: row[key] for key in ("subset", "language", "task_id") if row.get(key) is not None},
    )


def _are_three(answers: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(answers, (list, tuple)) and len(answers) == 3


def _three_texts(row: dict[str, Any], key: str, where: str) -> list[str]:
    answers = row.get(key)
    if not _are_three(answers) or not all(isinstance(answer, str) for answer in answers):
        raise DataError(
            f"{where}: `{key}` must be a list of three texts (concise, detailed, markdown), found "
            f"{str(answers)[:80]!r}."
        )
    for answer in answers:
        check_plain(answer, f"{where}: `{key}`")
    return list(answers)


def comparisons(label: Any, n_responses: int) -> list[tuple[int, int]]:
    """The nine comparisons (better, worse) of an item, row by row of the matrix.

    Raises:
        DataError: the label is not {"chosen": [3 indices], "rejected": [3 indices]} in the order of the styles.
    """
    sides = [label.get(key) for key in ("chosen", "rejected")] if isinstance(label, dict) else []
    indices = [index for side in sides if isinstance(side, list) and len(side) == 3 for index in side]
    if not all(isinstance(index, int) for index in indices) or sorted(indices) != list(range(6)):
        raise DataError(f'label {label!r} is not allowed; expected {{"chosen": [0, 1, 2], "rejected": [3, 4, 5]}}.')
    if n_responses != 6:
        raise DataError(f"an item of RM-Bench has 6 responses, found {n_responses}.")
    return [(better, worse) for better in indices[:3] for worse in indices[3:]]


def levels(matrix: np.ndarray) -> dict[str, float]:
    """Easy, normal, hard and average of a 3 x 3 matrix M[chosen style][rejected style].

    >>> {level: round(value, 2) for level, value in levels(np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0]])).items()}
    {'easy': 1.0, 'normal': 0.67, 'hard': 0.0, 'average': 0.56}
    """
    easy = float(np.mean(matrix[np.tril_indices(3, -1)]))
    normal = float(np.mean(np.diagonal(matrix)))
    hard = float(np.mean(matrix[np.triu_indices(3, 1)]))
    return {"easy": easy, "normal": normal, "hard": hard, "average": (easy + normal + hard) / 3}


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credits of one item: easy, normal, hard, average.  A tie or NaN makes that one comparison wrong."""
    return grade_wins(label, wins_of_scores(scores))


def grade_wins(label: Any, wins: np.ndarray) -> dict[str, float]:
    """`grade` from which response is preferred to which, bool [6, 6]."""
    won = [float(wins[better, worse]) for better, worse in comparisons(label, len(wins))]
    return levels(np.array(won).reshape(3, 3))


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """overall, easy, normal, hard over the domains present; the average and the levels of each domain."""
    present = present_subsets(items, SUBSETS, "rm_bench")
    domains = {}
    for domain, subsets in DOMAINS.items():
        if present_subsets_of_domain := tuple(subset for subset in subsets if subset in present):
            domains[domain] = present_subsets_of_domain
    result = [mean_of("overall", "average", domains)]
    result += [mean_of(level, level, domains) for level in LEVELS]
    for domain, subsets in domains.items():
        result.append(mean_of(domain, "average", {domain: subsets}))
        result += [mean_of(f"{domain}_{level}", level, {domain: subsets}) for level in LEVELS]
    return result
