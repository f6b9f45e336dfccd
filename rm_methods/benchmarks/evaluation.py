"""The evaluate stage: prepares the items of a benchmark, and computes metrics and credits of items from score tables.

Everything here is a pure function of files.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rm_methods.benchmarks.calibration import calibration
from rm_methods.benchmarks.cards import BenchmarkCard, benchmark_module, load_benchmark_card, resolve_benchmark_options
from rm_methods.benchmarks.credits import CREDIT_COLUMNS, write_credits
from rm_methods.benchmarks.grading import present_subsets
from rm_methods.benchmarks.item import (
    BenchmarkItem,
    read_items,
    read_notes,
    response_hashes,
    write_items,
)
from rm_methods.benchmarks.items_hash import items_hash
from rm_methods.benchmarks.members import Members, member_table
from rm_methods.benchmarks.score_table import preference_arrays, read_preferences, read_score_table
from rm_methods.benchmarks.sources import ItemReport
from rm_methods.errors import DataError
from rm_methods.files import file_hash, write_json
from rm_methods.run_card import BenchmarkResult, Calibration, RunMetrics
from rm_methods.stored import with_checksum

if TYPE_CHECKING:
    import pyarrow

_ITEMS_AT_ONCE = 1000  # only the hashes of so many items are Python objects at a time
IDENTITY = ("variant", "method", "seed", "run_key")


# Prepare: the items of a benchmark


def prepare_items(
    card_name: str, config: dict[str, Any], pairs: Path | None, out_items: Path, out_report: Path
) -> dict[str, Any]:
    """Read the items of a benchmark into a Parquet file, and write a JSON report of the rows read and excluded.

    Args:
        card_name: the benchmark.
        config: {"root": folder with the public files or None for the hub, "options": {...}}; both are optional.
        pairs: the experiment's prepared pairs, for benchmarks made of them.

    Returns:
        the report.

    Raises:
        UserError, ConfigError, DataError: the benchmark, an option, a file or a row is wrong, or a row is lost.
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
            f"{card.name}: {report.rows} rows gave {len(items)} items and {excluded} exclusions: "
            "rows are not accounted for."
        )
    for item in items:
        _check_label(module, card, item)  # here the source is still open
    write_items(items, out_items, report.notes)
    sizes = Counter(item.subset for item in items)
    summary = {
        "benchmark": card.name,
        "title": card.title,
        "license": card.license,
        "options": options,
        "sources": report.sources,
        "n_rows": report.rows,
        "n_items": len(items),
        "n_responses": sum(len(item.responses) for item in items),
        "subsets": dict(sorted(sizes.items())),
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
    return f"{card.name}: no items to evaluate. {read} {'; '.join(reasons)}"


# Pure grading


def _comparisons(module: ModuleType, card: BenchmarkCard, item: BenchmarkItem) -> list[tuple[int, int]]:
    """The comparisons (better, worse) of an item; a bad label is reported with the item."""
    try:
        return module.comparisons(item.label, len(item.responses))
    except DataError as error:
        raise DataError(f"{card.name}: item {item.item_id!r}: {error}") from None


def _check_label(module: ModuleType, card: BenchmarkCard, item: BenchmarkItem) -> None:
    """Refuse a bad label.

    Raises:
        DataError: names the item.
    """
    if not hasattr(module, "check_label"):
        _comparisons(module, card, item)
        return
    try:
        module.check_label(item.label, len(item.responses))
    except DataError as error:
        raise DataError(f"{card.name}: item {item.item_id!r}: {error}") from None


def usable_scores(values: Iterable[float]) -> np.ndarray:
    """Scores in float32, which decides ties. A score that is not finite becomes NaN: it earns nothing.

    Raises:
        DataError: the values are not one number a response, for example lists of one number.
    """
    values = values if isinstance(values, np.ndarray) else list(values)
    try:
        with np.errstate(over="ignore"):
            scores = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise DataError(f"scores {values!r:.80} are not numbers.") from None
    if scores.ndim != 1:
        raise DataError(f"scores of the shape {scores.shape} are not one number a response: flatten them first.")
    return np.where(np.isfinite(scores), scores, np.float32("nan"))


def credit_table(
    card: BenchmarkCard,
    items: Sequence[BenchmarkItem],
    scores: Sequence[np.ndarray],
    preferences: Mapping[str, np.ndarray] | None = None,
) -> dict[str, list]:
    """The credits of every metric and item, as columns (`CREDIT_COLUMNS`).

    A metric is the sum over its strata of weight x mean credit. If one of its strata has no items, or if it has no
    strata, it is undefined and has no rows.

    Args:
        scores: for each item the float32 scores of its responses, NaN for a missing one.
        preferences: of a joint model (`align_preferences`).  A module with `grade_wins` compares pair by pair; for the
            other benchmarks the scores count.

    Raises:
        DataError: no items, an unknown subset, a label that the benchmark does not have, or too many or few scores.
    """
    module = benchmark_module(card)
    present_subsets(items, card.subsets, card.name)
    for item, item_scores in zip(items, scores, strict=True):
        if len(item_scores) != len(item.responses):
            raise DataError(
                f"{card.name}: item {item.item_id!r} has {len(item.responses)} responses but {len(item_scores)} scores."
            )
        _check_label(module, card, item)
    if hasattr(module, "grade_all"):
        graded = module.grade_all(items, scores)
    else:
        graded = [
            module.grade_wins(item.label, preferences[item.item_id] > 0)
            if preferences and item.item_id in preferences and hasattr(module, "grade_wins")
            else module.grade(item.label, item_scores)
            for item, item_scores in zip(items, scores, strict=True)
        ]
    table: dict[str, list] = {column: [] for column in CREDIT_COLUMNS}
    for metric in module.metrics(items):
        stratum_of_part = {part: stratum for stratum, (_, parts) in metric.strata.items() for part in parts}
        strata = [stratum_of_part.get(metric.part_of(item)) for item in items]
        if not metric.strata or set(metric.strata) - set(strata):
            continue
        for item, credits, stratum in zip(items, graded, strata, strict=True):
            if stratum is None:
                continue
            table["benchmark"].append(card.name)
            table["metric"].append(metric.name)
            table["item_id"].append(item.item_id)
            table["group"].append(item.group or item.item_id)
            table["stratum"].append(stratum)
            table["weight"].append(metric.strata[stratum][0])
            table["credit"].append(credits[metric.credit])
    return table


def metric_values(table: dict[str, list]) -> dict[str, float]:
    """The metrics of one benchmark from its credit table. Sums are exact (fsum), whatever the order of the items."""
    credits: dict[str, dict[tuple[str, float], list[float]]] = defaultdict(lambda: defaultdict(list))
    for metric, stratum, weight, credit in zip(
        table["metric"], table["stratum"], table["weight"], table["credit"], strict=True
    ):
        credits[metric][stratum, weight].append(credit)
    metrics = {}
    for metric, strata in credits.items():
        terms = [weight * math.fsum(values) / len(values) for (_, weight), values in strata.items()]
        metrics[metric] = math.fsum(terms)
    return metrics


def tie_rate(
    card: BenchmarkCard,
    items: Sequence[BenchmarkItem],
    scores: Sequence[np.ndarray],
    preferences: Mapping[str, np.ndarray] | None = None,
) -> float:
    """Share of the comparisons (better, worse response) whose two float32 scores are equal; NaN equals nothing.

    Args:
        preferences: as for `credit_table`; where they count, a preference of 0 is a tie.
    """
    module = benchmark_module(card)
    equal = 0
    total = 0
    for item, item_scores in zip(items, scores, strict=True):
        by_pairs = preferences and item.item_id in preferences and hasattr(module, "grade_wins")
        if not by_pairs and hasattr(module, "tie_counts"):
            equal_of_item, total_of_item = module.tie_counts(item.label, item_scores)
            equal += equal_of_item
            total += total_of_item
            continue
        for better, worse in _comparisons(module, card, item):
            if preferences and by_pairs:
                equal += bool(preferences[item.item_id][better, worse] == 0)
            else:
                equal += bool(item_scores[better] == item_scores[worse])
            total += 1
    return equal / total


def _calibration(
    card: BenchmarkCard, items: Sequence[BenchmarkItem], scores: Sequence[np.ndarray]
) -> Calibration | None:
    """Calibration on a benchmark of pairs; None on other benchmarks, and without a pair that has both scores.

    The scores of a joint model count too: on a pair their difference is the logit of its preference.
    """
    if any(len(item.responses) != 2 for item in items):
        return None
    module = benchmark_module(card)
    margins = []
    for item, item_scores in zip(items, scores, strict=True):
        for better, worse in _comparisons(module, card, item):
            margins.append(float(item_scores[better]) - float(item_scores[worse]))
    return calibration(np.array(margins, dtype=np.float64))


# Evaluate: score tables to metrics


def align_scores(items: Sequence[BenchmarkItem], scores_path: str | os.PathLike) -> tuple[list[np.ndarray], int]:
    """The usable scores of each item's responses from a score table, and the number of items with a truncated response.

    Raises:
        DataError: as `_aligned`.
    """
    scores_R, truncated_R = _aligned(items, scores_path)
    n_truncated = sum(bool(truncated.any()) for truncated in _by_item(items, truncated_R))
    return _by_item(items, usable_scores(scores_R)), n_truncated


def _by_item(items: Sequence[BenchmarkItem], values_R: np.ndarray) -> list[np.ndarray]:
    """The values of each item's responses, as views.

    Args:
        values_R: of all responses, in the order of the items.
    """
    return [values_R[start:end] for start, end in itertools.pairwise(_starts(items).tolist())]


def align_preferences(items: Sequence[BenchmarkItem], scores_path: str | os.PathLike) -> dict[str, np.ndarray] | None:
    """What a joint model preferred in each item with more than two responses, float32 [n, n] by item; NaN for unknown.

    None for other models.

    Raises:
        DataError: the preferences are not those of the items.
    """
    stored = read_preferences(scores_path)
    if stored is None:
        return None
    expected = {item.item_id: len(item.responses) for item in items if len(item.responses) > 2}
    if {item_id: len(matrix) for item_id, matrix in stored.items()} != expected:
        raise DataError(
            f"{scores_path}: the preferences of the joint model do not fit the {len(items)} items. Run the score stage "
            "again."
        )
    return preference_arrays(stored)


def _aligned(items: Sequence[BenchmarkItem], scores_path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """The stored scores, float64 [responses], and whether each text was cut, bool [responses]; in the order of items.

    Tables have millions of rows, so no row becomes a Python object.

    Raises:
        DataError: rows are missing, unknown, double, or of another text; with counts and an example of each.
    """
    import pyarrow.compute as pc

    table = read_score_table(scores_path)
    starts = _starts(items)
    n_responses = int(starts[-1])
    place_T = _places(items, starts, table)
    known = np.flatnonzero(place_T >= 0)
    row_R = np.full(n_responses, -1, dtype=np.int64)
    row_R[place_T[known]] = known  # of rows that are double, the last one counts
    scored = np.flatnonzero(row_R >= 0)
    hashes = _hashes(items)
    is_in_order = np.array_equal(row_R, np.arange(len(table)))
    stored = table["response_hash"] if is_in_order else table["response_hash"].take(row_R[scored])
    expected = hashes if len(scored) == n_responses else hashes.take(scored)
    differs = pc.not_equal(stored, expected).to_numpy()
    other_text = scored[differs]
    if len(table) != n_responses or len(scored) != n_responses or len(other_text):
        problems = _problems(items, starts, table, place_T, other_text)
        raise DataError(
            f"{scores_path}: the score table does not fit the {len(items)} items ({n_responses} responses): "
            f"{'; '.join(problems)}. It was made from other items: run the score stage again."
        )
    return table["score"].to_numpy().astype(np.float64)[row_R], table["truncated"].to_numpy()[row_R]


def _starts(items: Sequence[BenchmarkItem]) -> np.ndarray:
    """Number of the first response of each item, and the number of all responses, int64 [items + 1]."""
    return np.cumsum([0, *(len(item.responses) for item in items)], dtype=np.int64)


def _places(items: Sequence[BenchmarkItem], starts: np.ndarray, table: pyarrow.Table) -> np.ndarray:
    """The response of each row of a score table, as its number among those of all items; -1 for an unknown one.

    Args:
        starts: `_starts`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.array([item.item_id for item in items], type=table["item_id"].type)
    item_T = pc.fill_null(pc.index_in(table["item_id"], value_set=ids), -1).to_numpy().astype(np.int64)
    index_T = table["response_index"].to_numpy().astype(np.int64)
    is_known = (item_T >= 0) & (index_T >= 0)
    is_known[is_known] = index_T[is_known] < np.diff(starts)[item_T[is_known]]
    return np.where(is_known, starts[item_T] + index_T, -1)


def _hashes(items: Sequence[BenchmarkItem]) -> pyarrow.ChunkedArray:
    """The hashes of all responses, in the order of the items."""
    import pyarrow as pa

    chunks = []
    for first in range(0, len(items), _ITEMS_AT_ONCE):
        group = items[first : first + _ITEMS_AT_ONCE]
        chunks.append(pa.array([digest for item in group for digest in response_hashes(item)], type=pa.string()))
    return pa.chunked_array(chunks, type=pa.string())


def _problems(
    items: Sequence[BenchmarkItem],
    starts: np.ndarray,
    table: pyarrow.Table,
    place_T: np.ndarray,
    other_text: np.ndarray,
) -> list[str]:
    """Why a score table does not fit the items.

    Args:
        starts: `_starts`.
        place_T: `_places`.
        other_text: responses, by their numbers, whose row has the hash of another text.
    """
    keys = table.select(["item_id", "response_index"])
    unknown = np.flatnonzero(place_T < 0)
    double = []
    row_of_unknown: dict[tuple[str, int], int] = {}
    for row, record in zip(unknown.tolist(), keys.take(unknown).to_pylist(), strict=True):
        if row_of_unknown.setdefault((record["item_id"], record["response_index"]), row) != row:
            double.append(row)
    known = np.flatnonzero(place_T >= 0)
    order = known[np.argsort(place_T[known], kind="stable")]
    double += order[1:][np.diff(place_T[order]) == 0].tolist()

    def of_response(number: int) -> tuple[str, int]:
        position = int(np.searchsorted(starts, number, side="right")) - 1
        return items[position].item_id, int(number - starts[position])

    missing = np.setdiff1d(np.arange(starts[-1]), place_T)
    examples: list[tuple[str, int, tuple[str, int] | None]] = [
        ("missing", len(missing), of_response(missing[0]) if len(missing) else None),
        ("not in the benchmark", len(row_of_unknown), next(iter(row_of_unknown), None)),
        ("double", len(double), tuple(keys.take([min(double)]).to_pylist()[0].values()) if double else None),
        ("scored with another text", len(other_text), of_response(other_text[0]) if len(other_text) else None),
    ]
    return [f"{count} {fault} (such as item {key[0]!r}, response {key[1]})" for fault, count, key in examples if key]


def left_out_scores(
    items: Sequence[BenchmarkItem], scores_path: str | os.PathLike, members: Members, name: str
) -> list[list[np.ndarray]] | None:
    """The usable scores that a combined run would have without each of its members.

    Args:
        scores_path: score table of the combined run.
        name: benchmark (or pool) of the items; `members` has tables of it.

    Returns:
        For each member the scores of every item's responses without it; None if the method of the run does not define
        them.

    Raises:
        DataError: a score table does not fit the items.
    """
    combined_R, _ = _aligned(items, scores_path)
    members_MR = np.stack([_aligned(items, table)[0] for table in members.tables[name]])
    with np.errstate(invalid="ignore", over="ignore"):  # scores that are not finite earn nothing, see `usable_scores`
        left_out_MR = members.left_out_scores(members_MR, combined_R)
    if left_out_MR is None:
        return None
    if left_out_MR.shape != members_MR.shape:
        raise TypeError(
            f"left_out_scores gave the shape {left_out_MR.shape}; {members_MR.shape} (members, responses) is needed."
        )
    return [_by_item(items, usable_scores(left_out_R)) for left_out_R in left_out_MR]


def _left_out_metrics(
    card: BenchmarkCard, items: Sequence[BenchmarkItem], scores: Sequence[Sequence[np.ndarray]]
) -> dict[str, list[float | None]]:
    """By metric, one value for each of several scorings of the items; None where the metric is undefined."""
    values = [metric_values(credit_table(card, items, scoring)) for scoring in scores]
    names = [metric.name for metric in benchmark_module(card).metrics(items)]
    return {name: [metrics.get(name) for metrics in values] for name in names}


def evaluate_run(
    benchmarks: Sequence[tuple[str, str | os.PathLike, str | os.PathLike]],
    identity: Mapping[str, Any],
    out_metrics: str | os.PathLike,
    out_credits: str | os.PathLike,
    members: Members | None = None,
) -> RunMetrics:
    """Evaluate one run on its benchmarks: write metrics.json and credits.parquet (docs/architecture.md).

    Args:
        benchmarks: (name, items file, score table) of each.
        identity: variant, method, seed and run_key of the run.
        members: of a combined run, for its metrics without each of them.

    Returns:
        The content of metrics.json.

    Raises:
        UserError, DataError: a benchmark is unknown or named twice, a file is unreadable, or a score table does not fit
            its items.
    """
    names = [name for name, _, _ in benchmarks]
    if len(set(names)) < len(names):
        raise DataError(f"a benchmark is named twice: {', '.join(names)}.")
    results: dict[str, BenchmarkResult] = {}
    all_credits: dict[str, list] = {column: [] for column in CREDIT_COLUMNS}
    for name, items_path, scores_path in benchmarks:
        card = load_benchmark_card(name)
        items = read_items(items_path)
        scores, n_truncated = align_scores(items, scores_path)
        preferences = align_preferences(items, scores_path)
        table = credit_table(card, items, scores, preferences)
        for column in CREDIT_COLUMNS:
            all_credits[column] += table[column]
        metrics_of_card = benchmark_module(card).metrics(items)
        results[name] = {
            "metrics": {**dict.fromkeys(metric.name for metric in metrics_of_card), **metric_values(table)},
            "tie_rate": tie_rate(card, items, scores, preferences),
            "tie_rule": benchmark_module(card).TIE_RULE,
            "n_scored": sum(bool(np.isfinite(item_scores).all()) for item_scores in scores),
            "n_total": len(items),
            "n_truncated": n_truncated,
            "most_responses": max(len(item.responses) for item in items),
            "notes": [*read_notes(items_path), *(metric.note for metric in metrics_of_card if metric.note)],
            # Readers of the metrics notice by these hashes that a table was changed later.
            "made_from": {"items": items_hash(items_path), "scores": file_hash(scores_path)},
        }
        if (measured := _calibration(card, items, scores)) is not None:
            results[name]["calibration"] = measured
        if members is None or name not in members.tables:
            continue
        left_out = left_out_scores(items, scores_path, members, name)
        if left_out is not None:
            results[name]["left_out"] = _left_out_metrics(card, items, left_out)
            results[name]["left_out_seeds"] = list(members.seeds)
            tables = zip(members.seeds, members.tables[name], strict=True)
            results[name]["made_from"] |= {member_table(seed): file_hash(table) for seed, table in tables}
    write_credits(all_credits, out_credits)
    metrics = with_checksum({key: identity[key] for key in IDENTITY} | {"benchmarks": results})
    write_json(out_metrics, metrics)
    return cast(RunMetrics, metrics)
