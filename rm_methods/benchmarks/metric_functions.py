"""The published metrics of a benchmark as one plain function of scores and labels; no files, no network.

It calls what the evaluate stage calls: `grade` (or `grade_all`) and `metrics` of the benchmark's module. The module
`preference_metric` gives the same to the `evaluate` library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_methods.benchmarks.cards import BenchmarkCard, benchmark_module, load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, usable_scores
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError, nearest

# Detail of an item -> what it is, for benchmarks that control length.
_LENGTH_DETAILS = {"responses": "texts of the responses, in the order of the scores: for the length-controlled metrics"}
_ITEM_FIELDS = ("responses",)  # details that are fields of an item; the others are in its `meta`


def detail_keys(card: BenchmarkCard) -> dict[str, str]:
    """What some metrics of a benchmark need to know of an item beside scores, label and subset.

    Returns:
        key of `details` in `benchmark_metrics` -> what it is; empty for most benchmarks.
    """
    keys = dict(getattr(benchmark_module(card), "METRIC_DETAILS", {}))
    if any("length_controlled" in metric for metric in card.columns):
        keys |= _LENGTH_DETAILS
    return keys


def item_details(card: BenchmarkCard, item: BenchmarkItem) -> dict[str, Any]:
    """The details of an item that some metrics of its benchmark need, as `benchmark_metrics` takes them."""
    values = item.meta | {name: list(getattr(item, name)) for name in _ITEM_FIELDS}
    return {key: values[key] for key in detail_keys(card) if key in values}


def benchmark_metrics(
    benchmark: str,
    scores: Sequence[Sequence[float]],
    labels: Sequence[Any],
    subsets: Sequence[str],
    *,
    details: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, float]:
    """The metrics of a benchmark as published, with its averages and its tie rule.

    Args:
        benchmark: name of its card.
        scores: for each item the scores of its responses, in their order. They count as float32. NaN or an infinite
            one is a missing score, which earns nothing and stays in the denominator.
        labels: for each item, as in the items file: 0, "A>B", {"chosen": [0, 1, 2], "rejected": [3, 4, 5]}, ...
        subsets: for each item.
        details: for each item what `detail_keys` names. Without them, metrics that need them are left out.

    Returns:
        metric -> value. Most are in [0, 1]; Ties of RewardBench 2 is in [-0.01, 1.01].

    Raises:
        UserError: no card has this name.
        DataError: lists of different lengths, scores that are not one number a response, an unknown subset or detail,
            or a label that the benchmark does not have.

    >>> label = {"chosen": [0, 1, 2], "rejected": [3, 4, 5]}
    >>> metrics = benchmark_metrics("rm_bench", [[3, 1, 2, 2, 0, 3]], [label], ["chat"])
    >>> round(metrics["hard"], 2), round(metrics["normal"], 2)
    (0.33, 0.67)
    """
    card = load_benchmark_card(benchmark)
    sizes = {"scores": len(scores), "labels": len(labels), "subsets": len(subsets)}
    if details is not None:
        sizes["details"] = len(details)
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise DataError(f"{benchmark}: {counts}. Give one of each per item.")
    allowed = detail_keys(card)
    keys_of_subset: dict[str, tuple[str, ...]] = {}
    items = []
    usable = []
    for row, (values, label, subset) in enumerate(zip(scores, labels, subsets, strict=True), start=1):
        where = f"{benchmark}: item {row}"
        try:
            item_scores = usable_scores(values)
        except (DataError, TypeError) as error:
            raise DataError(f"{where}: {error}") from None
        known = _details_of(details[row - 1] if details is not None else {}, allowed, where)
        _check_like_others(known, subset, keys_of_subset, where)
        responses = known.pop("responses", None)
        if responses is None:
            responses = [""] * len(item_scores)
        elif len(responses) != len(item_scores):
            raise DataError(f"{benchmark}: item {row} has {len(responses)} responses but {len(item_scores)} scores.")
        items.append(BenchmarkItem(f"row {row}", subset, (), responses, label, meta=known))
        usable.append(item_scores)
    return metric_values(credit_table(card, items, usable))


def _check_like_others(
    details: Mapping[str, Any], subset: str, keys_of_subset: dict[str, tuple[str, ...]], where: str
) -> None:
    """Refuse details that other items of the subset do not have: the metric would be over some of the items.

    Args:
        keys_of_subset: of the items so far, updated.
    """
    keys = tuple(sorted(details))
    others = keys_of_subset.setdefault(subset, keys)
    if keys != others:
        raise DataError(
            f"{where} has the details {', '.join(keys) or 'none'}, other items of {subset} have "
            f"{', '.join(others) or 'none'}. Give all of them the same."
        )


def _details_of(details: Any, allowed: Mapping[str, str], where: str) -> dict[str, Any]:
    """A copy of the details of one item.

    Raises:
        DataError: they are not a mapping, or one is unknown.
    """
    if not isinstance(details, Mapping):
        raise DataError(f"{where}: details {details!r:.80} are not a mapping of names to values.")
    for key in details:
        if key not in allowed:
            raise DataError(f"{where}: unknown detail {key!r:.60}. {nearest(str(key), allowed)}")
    if not isinstance(details.get("responses", []), (list, tuple)):
        raise DataError(f"{where}: `responses` must be a list of texts, found {str(details['responses'])[:80]!r}.")
    return dict(details)
