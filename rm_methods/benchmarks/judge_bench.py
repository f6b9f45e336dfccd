"""JudgeBench (Tan et al., ICLR 2025, arXiv:2410.12784), for reward models: which of two answers is correct?

Rules of the official code (github.com/ScalerLab/JudgeBench @ e2c52c2, utils/metrics.py and run_judge.py). A reward
model decides "A>B" if s_A > s_B, otherwise "B>A". Ties have no class.

* single game (`--single_game`): right if the decision equals the label, so a tie is right if the label is "B>A";
* double game (the default): a second game with the answers swapped. Each game that agrees with the label counts +1, the
  other -1, and the pair is right if the sum is above 0. A tie wins one game and loses the other, so it is wrong.

For a scorer that reads each answer alone, the double game equals strict comparison, and the main metrics use that. One
rule is different here: a score of NaN gives no credit. The official single game gives it for the label "B>A".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import SAMPLING_OPTIONS, Metric, pooled, present_subsets, sample_items, size_notes
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.sources import ItemReport, check_new, hub_rows, local_files, local_rows, text_of
from rm_methods.errors import DataError, nearest
from rm_methods.preferences.pair import prompt_group

TIE_RULE = (
    "equal scores are wrong (strict, same as the official double game); "
    '`..._single_game`: decision "B>A" (official single game)'
)

CATEGORIES = {
    "knowledge": "mmlu-pro",
    "reasoning": "livebench-reasoning",
    "math": "livebench-math",
    "coding": "livecodebench",
}
SIZES = {
    "gpt": {"mmlu-pro": 154, "livebench-reasoning": 98, "livebench-math": 56, "livecodebench": 42},
    "claude": {"mmlu-pro": 154, "livebench-reasoning": 51, "livebench-math": 34, "livecodebench": 31},
}
LABELS = {"A>B": (0, 1), "B>A": (1, 0)}

OPTIONS = {
    "response_model": {
        "enum": ["gpt", "claude"],
        "default": "gpt",
        "description": "Whose answers are judged: gpt (GPT-4o, 350 pairs, usually reported) or claude "
        "(Claude 3.5 Sonnet, 270 pairs).",
    },
    **SAMPLING_OPTIONS,
}


def read(
    card: BenchmarkCard, root: Path | None, options: dict[str, Any], report: ItemReport, pairs: Path | None = None
) -> Iterator[BenchmarkItem]:
    """Items from the official file of the response model below `root`, or from its hub split if `root` is None."""
    yield from sample_items(_read_pairs(card, root, options["response_model"], report), options, report)


def _read_pairs(
    card: BenchmarkCard, root: Path | None, response_model: str, report: ItemReport
) -> Iterator[BenchmarkItem]:
    if root is None:
        rows = hub_rows(card, report, response_model, split=response_model)
    else:
        rows = local_rows(local_files(card, root, names=[response_model]), report)
    first_use: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for _, where, row in rows:
        item = _item(row, where)
        sizes[item.subset] += 1
        check_new(item.item_id, where, first_use)
        if item.responses[0] == item.responses[1]:
            report.count("both answers are the same text: always a tie, kept", item.item_id)
        if not all(response.strip() for response in item.responses):
            report.count("empty answer, kept", item.item_id)
        yield item
    missing = [category for category, subset in CATEGORIES.items() if not sizes[subset]]
    if missing:
        report.notes.append(
            f"Categories missing: {', '.join(missing)}. `overall` is over the others and not the official figure."
        )
    report.notes += size_notes(sizes, SIZES[response_model])


def _item(row: dict[str, Any], where: str) -> BenchmarkItem:
    for key in ("pair_id", "source", "question", "response_A", "response_B", "label"):
        text_of(row, key, where, may_be_empty=key.startswith("response"))
    subset = next((prefix for prefix in CATEGORIES.values() if row["source"].startswith(prefix)), None)
    if subset is None:
        raise DataError(
            f"{where}: source {row['source']!r} is not one of JudgeBench. {nearest(row['source'], CATEGORIES.values())}"
        )
    if row["label"] not in LABELS:
        raise DataError(f"{where}: label {row['label']!r} is not allowed. {nearest(row['label'], LABELS)}")
    messages = [{"role": "user", "content": row["question"]}]
    return BenchmarkItem(
        item_id=row["pair_id"],
        subset=subset,
        prompt=messages,
        responses=[row["response_A"], row["response_B"]],
        label=row["label"],
        group=prompt_group(messages),
        meta={key: row[key] for key in ("source", "response_model", "original_id") if key in row},
    )


def comparisons(label: Any, n_responses: int) -> list[tuple[int, int]]:
    """The one comparison (better, worse) of an item.

    Raises:
        DataError: the label is neither "A>B" nor "B>A", or the item does not have two responses.
    """
    if not isinstance(label, str) or label not in LABELS:
        raise DataError(f"label {label!r} is not allowed. {nearest(str(label), LABELS)}")
    if n_responses != 2:
        raise DataError(f"an item of JudgeBench has 2 responses, found {n_responses}.")
    return [LABELS[label]]


def grade(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credits of one item: strict, single_game and double_game (see the module's text)."""
    ((better, worse),) = comparisons(label, len(scores))
    if np.isnan(scores).any():
        return {"strict": 0.0, "single_game": 0.0, "double_game": 0.0}
    first = "A>B" if scores[0] > scores[1] else "B>A"
    second = "B>A" if scores[1] > scores[0] else "A>B"  # A and B are swapped, and the decision is swapped back
    games_won = (first == label) + (second == label)
    return {
        "strict": float(scores[better] > scores[worse]),
        "single_game": float(first == label),
        "double_game": float(games_won - (2 - games_won) > 0),
    }


def metrics(items: Sequence[BenchmarkItem]) -> list[Metric]:
    """overall (micro average, as official) and the present categories: strict, and by the official single game.

    The official double game is given for overall alone; it equals the strict rule for scorers that read answers alone.
    """
    present = present_subsets(items, CATEGORIES.values(), "judge_bench")
    parts: dict[str, Collection[str]] = {"overall": present}
    parts |= {category: [subset] for category, subset in CATEGORIES.items() if subset in present}
    return [
        *(pooled(name, "strict", subsets) for name, subsets in parts.items()),
        *(pooled(f"{name}_single_game", "single_game", subsets, strict=False) for name, subsets in parts.items()),
        pooled("overall_double_game", "double_game", present),
    ]
