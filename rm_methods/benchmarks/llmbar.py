"""LLMBar (Zeng et al., ICLR 2024, arXiv:2310.07641): which of two outputs follows the instruction?

419 pairs: the Natural set, and four Adversarial sets in which the wrong output looks better. Data and metric follow the
official repository (github.com/princeton-nlp/LLMBar @ 900616b): `Dataset/LLMBar/**/dataset.json` and
`LLMEvaluator/evaluate.py`. The accuracy of a set is a mean over its pairs. `adversarial` is the unweighted mean of the
four sets; the accuracies of GPT-4 in the repository give the paper's 82.8. `average` is the same over all five sets.

Ties: an official evaluator that rates outputs one by one is graded twice, with the outputs swapped. With equal ratings
it picks the second output in one order and the first in the other, so its accuracy is one half. The metrics
`..._ties_half` have that rule. The main metrics are strict.
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
    mean_of,
    present_subsets,
    sample_items,
    size_notes,
)
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.pair_items import STRICT, PairItems, required_root, whole_number
from rm_methods.benchmarks.sources import ItemReport, local_files, local_rows, text_of

TIE_RULE = f"{STRICT}; `..._ties_half`: half (official rule for ratings of single outputs)"

ADVERSARIAL = ("neighbor", "gptinst", "gptout", "manual")
SUBSETS = ("natural", *ADVERSARIAL)

SIZES = {"natural": 100, "neighbor": 134, "gptinst": 92, "gptout": 47, "manual": 46}

OPTIONS = {**SAMPLING_OPTIONS}

comparisons = best_against_others


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the `dataset.json` of each set below `root`."""
    folder = required_root(card, root, "the hub repository has only a loading script, which `datasets` does not run")
    files = local_files(card, folder)
    missing = [subset for subset in SUBSETS if subset not in files]
    if missing:
        report.notes.append(
            f"Sets missing: {', '.join(missing)}. Averages are means over the others, not the paper's averages."
        )
    make = PairItems(report)
    items = [_item(row, subset, where, make) for subset, where, row in local_rows(files, report)]
    report.notes += size_notes(Counter(item.subset for item in items), SIZES)
    yield from sample_items(items, options, report)


def _item(row: dict[str, Any], subset: str, where: str, make: PairItems) -> BenchmarkItem:
    prompt = [{"role": "user", "content": text_of(row, "input", where)}]
    responses = [text_of(row, key, where, may_be_empty=True) for key in ("output_1", "output_2")]
    better = whole_number(row, "label", (1, 2), where)
    return make.item(prompt, responses, better - 1, subset=subset, where=where)


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credits of one item: accuracy (strict), and ties_half, where equal scores earn one half. NaN earns nothing."""
    strict = best_is_strictly_above(label, scores)
    return {"accuracy": strict, "ties_half": strict + 0.5 * float(scores[0] == scores[1])}


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """average, adversarial and the present sets; and the same with ties that count half."""
    present = present_subsets(items, SUBSETS, "llmbar")
    parts = {"average": SUBSETS, "adversarial": ADVERSARIAL} | {subset: (subset,) for subset in SUBSETS}
    strict = []
    for name, subsets in parts.items():
        strata = {subset: (subset,) for subset in subsets if subset in present}
        if strata:
            strict.append(mean_of(name, "accuracy", strata))
    half = [replace(metric, name=f"{metric.name}_ties_half", credit="ties_half", strict=False) for metric in strict]
    return [*strict, *half]
