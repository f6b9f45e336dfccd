"""The evaluate stage: items of a benchmark, score tables to metrics and per-item credits.  Everything here is a pure function of files."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard, benchmark_module, load_benchmark_card, resolve_benchmark_options
from rm_methods.benchmarks.grading import present_subsets
from rm_methods.benchmarks.item import BenchmarkItem, read_items, read_notes, write_items
from rm_methods.benchmarks.score_table import read_scores, response_hash
from rm_methods.benchmarks.sources import ItemReport
from rm_methods.errors import DataError
from rm_methods.files import file_hash, write_json
from rm_methods.parquet import write_parquet
from rm_methods.stored import with_checksum

CREDIT_COLUMNS = ("benchmark", "metric", "item_id", "group", "stratum", "weight", "credit")
IDENTITY = ("variant", "method", "seed", "run_key")


# Prepare: the items of a benchmark


def prepare_items(
    card_name: str, config: dict[str, Any], pairs: Path | None, out_items: Path, out_report: Path
) -> dict[str, Any]:
    """Read the items of a benchmark into a Parquet file, and a JSON report of everything that was read and left out.

    Args:
        card_name: the benchmark.
        config: {"root": folder with the public files or None for the hub, "options": {...}}, both may be left out.
        pairs: the experiment's prepared pairs, for benchmarks made of them.

    Returns:
        the report.

    Raises:
        UserError, ConfigError, DataError: the benchmark, an option, a file or a row is wrong; a row is not accounted for.
    """
    card = load_benchmark_card(card_name)
    module = benchmark_module(card)
    options = resolve_benchmark_options(card, config.get("options"))
    root = None if config.get("root") is None else Path(config["root"]).expanduser()
    report = ItemReport()
    items = list(module.read(card, root, options, report, pairs=pairs))
    if not items:
        raise DataError(_no_items(card, report))
    present_subsets(items, card.subsets, card.name)
    excluded = sum(entry["count"] for entry in report.excluded.values())
    if report.rows != len(items) + excluded:
        raise DataError(
            f"{card.name}: {report.rows} rows gave {len(items)} items and {excluded} exclusions: rows are not accounted for."
        )
    for item in items:
        _comparisons(module, card, item)  # refuses a label while its source is still at hand
    write_items(items, out_items, report.notes)
    summary = {
        "benchmark": card.name,
        "title": card.title,
        "licence": card.licence,
        "options": options,
        "sources": report.sources,
        "n_rows": report.rows,
        "n_items": len(items),
        "n_responses": sum(len(item.responses) for item in items),
        "subsets": {
            subset: sum(item.subset == subset for item in items) for subset in sorted({item.subset for item in items})
        },
        "excluded": report.excluded,
        "unread": report.unread,
        "counted": report.counted,
        "tie_rule": module.TIE_RULE,
        "notes": report.notes,
    }
    write_json(out_report, summary)
    return summary


def _no_items(card: BenchmarkCard, report: ItemReport) -> str:
    sources = ", ".join(str(source.get("file") or source.get("hub")) for source in report.sources)
    reasons = [
        f"{entry['count']} excluded: {reason} (such as {entry['examples'][0]})"
        for reason, entry in report.excluded.items()
    ]
    read = f"{report.rows} rows were read from {sources}."
    return f"{card.name}: there are no items to evaluate. {read} {'; '.join(reasons)}"


# Pure grading


def _comparisons(module: ModuleType, card: BenchmarkCard, item: BenchmarkItem) -> list[tuple[int, int]]:
    """The comparisons (better, worse) of an item; a bad label is reported with the item."""
    try:
        return module.comparisons(item.label, len(item.responses))
    except DataError as error:
        raise DataError(f"{card.name}: item {item.item_id!r}: {error}") from None


def usable_scores(values: Iterable[float]) -> np.ndarray:
    """Scores in float32, in which ties are decided; what is not finite becomes NaN: it could not be scored and earns nothing."""
    with np.errstate(over="ignore"):
        scores = np.asarray(list(values), dtype=np.float32)
    return np.where(np.isfinite(scores), scores, np.float32("nan"))


def credit_table(card: BenchmarkCard, items: Sequence[BenchmarkItem], scores: Sequence[np.ndarray]) -> dict[str, list]:
    """One row a metric and item, as columns (`CREDIT_COLUMNS`); a metric is the sum over its strata of weight x mean credit.

    A metric that is undefined, because one of its strata has no items, has no rows.

    Args:
        scores: for each item the float32 scores of its responses, NaN where there is none.

    Raises:
        DataError: no items, an unknown subset, a label that the benchmark does not have, or scores of another number.
    """
    module = benchmark_module(card)
    present_subsets(items, card.subsets, card.name)
    graded = []
    for item, item_scores in zip(items, scores, strict=True):
        if len(item_scores) != len(item.responses):
            raise DataError(
                f"{card.name}: item {item.item_id!r} has {len(item.responses)} responses but {len(item_scores)} scores."
            )
        _comparisons(module, card, item)
        graded.append(module.grade(item.label, item_scores))
    table: dict[str, list] = {column: [] for column in CREDIT_COLUMNS}
    for metric in module.metrics(items):
        place = {part: (stratum, weight) for stratum, (weight, parts) in metric.strata.items() for part in parts}
        found = [place.get(metric.part_of(item)) for item in items]
        if {there[0] for there in found if there} != set(metric.strata):
            continue
        for item, credits, there in zip(items, graded, found, strict=True):
            if there:
                stratum, weight = there
                row = (
                    card.name,
                    metric.name,
                    item.item_id,
                    item.group or item.item_id,
                    stratum,
                    weight,
                    credits[metric.credit],
                )
                for column, value in zip(CREDIT_COLUMNS, row, strict=True):
                    table[column].append(value)
    return table


def metric_values(table: dict[str, list]) -> dict[str, float]:
    """The metrics of one benchmark from its credit table.  Sums are exact (fsum), so the order of the items has no influence."""
    credits: dict[str, dict[tuple[str, float], list[float]]] = defaultdict(lambda: defaultdict(list))
    for metric, stratum, weight, credit in zip(
        table["metric"], table["stratum"], table["weight"], table["credit"], strict=True
    ):
        credits[metric][stratum, weight].append(credit)
    return {
        metric: math.fsum(weight * math.fsum(values) / len(values) for (_, weight), values in strata.items())
        for metric, strata in credits.items()
    }


def tie_rate(card: BenchmarkCard, items: Sequence[BenchmarkItem], scores: Sequence[np.ndarray]) -> float:
    """Share of the benchmark's comparisons (better response, worse response) whose two float32 scores are equal; NaN equals nothing."""
    module = benchmark_module(card)
    equal = total = 0
    for item, item_scores in zip(items, scores, strict=True):
        for better, worse in _comparisons(module, card, item):
            equal += bool(item_scores[better] == item_scores[worse])
            total += 1
    return equal / total


# Evaluate: score tables to metrics


def align_scores(items: Sequence[BenchmarkItem], scores_path: str | os.PathLike) -> tuple[list[np.ndarray], int]:
    """The scores of each item's responses from a score table, and the number of items with a truncated response.

    Raises:
        DataError: rows are missing, unknown, double, or of another text than the item's, with counts and an example of each.
    """
    rows, doubles = {}, []
    frame = read_scores(scores_path)
    columns = ("item_id", "response_index", "response_hash", "score", "truncated")
    for item_id, index, text_hash, score, truncated in zip(
        *(frame[column].tolist() for column in columns), strict=True
    ):
        if (item_id, index) in rows:
            doubles.append((item_id, index))
        rows[item_id, index] = (text_hash, score, truncated)
    expected = {(item.item_id, index): text for item in items for index, text in enumerate(item.responses)}
    faults = {
        "missing": [key for key in expected if key not in rows],
        "not in the benchmark": [key for key in rows if key not in expected],
        "double": doubles,
        "scored with another text": [
            key for key, text in expected.items() if key in rows and rows[key][0] != response_hash(text)
        ],
    }
    found = [
        f"{len(keys)} {fault} (such as item {keys[0][0]!r}, response {keys[0][1]})"
        for fault, keys in faults.items()
        if keys
    ]
    if found:
        raise DataError(
            f"{scores_path}: the score table does not fit the {len(items)} items ({len(expected)} responses): {'; '.join(found)}. "
            "It was made from other items: run the score stage again."
        )
    per_item = [[rows[item.item_id, index] for index in range(len(item.responses))] for item in items]
    n_truncated = sum(any(truncated for _, _, truncated in item_rows) for item_rows in per_item)
    return [usable_scores(score for _, score, _ in item_rows) for item_rows in per_item], n_truncated


def evaluate_run(
    benchmarks: Sequence[tuple[str, str | os.PathLike, str | os.PathLike]],
    identity: dict[str, Any],
    out_metrics: str | os.PathLike,
    out_credits: str | os.PathLike,
) -> dict[str, Any]:
    """Evaluate one run on its benchmarks: write metrics.json and credits.parquet (docs/architecture.md).

    Args:
        benchmarks: (name, items file, score table) of each.
        identity: variant, method, seed and run_key of the run.

    Returns:
        what is written to metrics.json.

    Raises:
        UserError, DataError: a benchmark is unknown or named twice, a file is unreadable, or a score table does not fit its items.
    """
    names = [name for name, _, _ in benchmarks]
    if len(set(names)) < len(names):
        raise DataError(f"a benchmark is named twice: {', '.join(names)}.")
    result: dict[str, Any] = {key: identity[key] for key in IDENTITY} | {"benchmarks": {}}
    all_credits: dict[str, list] = {column: [] for column in CREDIT_COLUMNS}
    for name, items_path, scores_path in benchmarks:
        card = load_benchmark_card(name)
        items = read_items(items_path)
        scores, n_truncated = align_scores(items, scores_path)
        table = credit_table(card, items, scores)
        for column in CREDIT_COLUMNS:
            all_credits[column] += table[column]
        result["benchmarks"][name] = {
            "metrics": dict.fromkeys(metric.name for metric in benchmark_module(card).metrics(items))
            | metric_values(table),
            "tie_rate": tie_rate(card, items, scores),
            "tie_rule": benchmark_module(card).TIE_RULE,
            "n_scored": sum(bool(np.isfinite(item_scores).all()) for item_scores in scores),
            "n_total": len(items),
            "n_truncated": n_truncated,
            "most_responses": max(len(item.responses) for item in items),
            "notes": read_notes(items_path),
            # So that tables that are edited or made anew later are noticed where the metrics are read.
            "made_from": {"items": file_hash(items_path), "scores": file_hash(scores_path)},
        }
    write_credits(all_credits, out_credits)
    result = with_checksum(result)
    write_json(out_metrics, result)
    return result


def write_credits(table: dict[str, list], target: str | os.PathLike) -> None:
    """Write a credit table to Parquet, atomically."""
    import pyarrow as pa

    numbers = {"weight": pa.float64(), "credit": pa.float64()}
    columns = {column: pa.array(table[column], numbers.get(column, pa.string())) for column in CREDIT_COLUMNS}
    write_parquet(pa.table(columns), target)
