"""The report of a scoring: rows read, rows refused with reasons, and the accuracy of the scores."""

from __future__ import annotations

import math
import os
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.score_table import Preferences
from rm_methods.files import read_json
from rm_methods.preferences.read_report import unread_columns
from rm_methods.scoring.data import Reading, ScoringData
from rm_methods.scoring.scorer import SCORER_FILE, Scorer, Scoring

WIDTH = 80
EXAMPLES_KEPT = 3


# The report as a value


def make_report(data: ScoringData, scoring: Scoring, model: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The report as a JSON-like value.

    Args:
        scoring: of `data.items`.
        model: `describe_model`.
        seconds: time of the scoring, without loading.
    """
    responses = scoring.responses
    scores = scores_by_item(data.items, [response.score for response in responses])
    truncated = sum(response.truncated for response in responses)
    tokens = sum(response.n_tokens for response in responses)
    return {
        "data": data.name,
        "unit": data.unit,
        "metrics": _metrics(data, scores, scoring.preferences),
        "read": asdict(data.reading),
        "repetitions": 0 if data.rows is None else len(data.rows) - len(data.items),
        "items": len(data.items),
        "groups": len({item.group or item.item_id for item in data.items}),
        "responses": len(responses),
        "truncated": {"count": truncated, "share": truncated / len(responses)},
        "changed_by_template": scoring.changed_texts,
        "not_finite": _not_finite(data, scores),
        "ties": sum(_has_tie(item, item_scores) for item, item_scores in zip(data.items, scores, strict=True)),
        "all_equal": len(responses) > 1 and len({response.score for response in responses}) == 1,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "model": model,
    }


def describe_model(folder: Path, scorer: Scorer) -> dict[str, Any]:
    """The model of a report: its folder and kind, the run that it belongs to, and the settings of the scorer.

    Args:
        scorer: result of `load_scorer` for the folder.
    """
    folder = Path(folder)
    about: dict[str, Any] = {"folder": str(folder.resolve())}
    if (folder / SCORER_FILE).exists():
        description = read_json(folder / SCORER_FILE)
        about |= {"kind": description["method"], "members": len(description.get("members", []))}
    else:
        about["kind"] = (read_json(folder / "config.json").get("architectures") or ["unknown"])[0]
    summary = folder.resolve().parent / "summary.json"  # where the folder is the model of a run
    run = read_json(summary) if summary.exists() else {}
    if isinstance(run, dict) and "run_key" in run:
        about |= {key: run.get(key) for key in ("variant", "seed", "run_key")}
    return about | scorer.computation()


def scores_by_item(items: Sequence[BenchmarkItem], scores: Sequence[float]) -> list[np.ndarray]:
    """The scores of each item as evaluation uses them: float32, NaN if not finite.

    Args:
        scores: of all responses, in the order of the items.
    """
    from rm_methods.benchmarks.evaluation import usable_scores

    ends = np.cumsum([len(item.responses) for item in items])
    return np.split(usable_scores(scores), ends[:-1])


def _not_finite(data: ScoringData, scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """Number of scores that are not finite, and the first items that have one."""
    bad = [position for position, item_scores in enumerate(scores) if not np.isfinite(item_scores).all()]
    count = sum(int((~np.isfinite(scores[position])).sum()) for position in bad)
    if data.rows is None:
        examples = [f"item {data.items[position].item_id}" for position in bad[:EXAMPLES_KEPT]]
    else:
        first = {row.item: row for row in reversed(data.rows)}
        examples = [f"{first[position].file}, row {first[position].row}" for position in bad[:EXAMPLES_KEPT]]
    return {"count": count, "items": len(bad), "examples": examples}


def _has_tie(item: BenchmarkItem, scores: np.ndarray) -> bool:
    """Whether two different texts of the item have one score."""
    by_score: dict[float, set[str]] = defaultdict(set)
    for text, score in zip(item.responses, scores.tolist(), strict=True):
        if math.isfinite(score):
            by_score[score].add(text)
    return any(len(texts) > 1 for texts in by_score.values())


# Metrics with their intervals


def _metrics(
    data: ScoringData, scores: Sequence[np.ndarray], preferences: Mapping[str, Preferences]
) -> dict[str, dict[str, Any]]:
    """Metrics by name with a 95% interval that counts items, clustered by group; none for an unknown benchmark."""
    from rm_methods.benchmarks.cards import load_benchmark_card
    from rm_methods.benchmarks.evaluation import credit_table
    from rm_methods.benchmarks.score_table import preference_arrays

    if data.unit == "pairs":
        return credit_estimates(_accuracy_credits(data.items, scores))
    if data.comparisons:
        return credit_estimates(_comparison_credits(data, scores))
    if data.benchmark is not None:
        card = load_benchmark_card(data.benchmark)
        return credit_estimates(credit_table(card, data.items, scores, preference_arrays(preferences)))
    return {}


def _accuracy_credits(items: Sequence[BenchmarkItem], scores: Sequence[np.ndarray]) -> dict[str, list]:
    """Credits of pairs, in the form of `credit_table`: 1 if chosen scores higher, 0 for ties and scores not finite.

    Data with several splits get one accuracy for each split: a mean over training and test pairs would say little.
    """
    return _accuracy_table(
        [item.subset for item in items],
        [item.group or item.item_id for item in items],
        [float(chosen > rejected) for chosen, rejected in scores],
    )


def _comparison_credits(data: ScoringData, scores: Sequence[np.ndarray]) -> dict[str, list]:
    """Credits of the comparisons of judged responses, as of pairs."""
    by_item = {item.item_id: item_scores for item, item_scores in zip(data.items, scores, strict=True)}
    scored = [entry for entry in data.comparisons if entry.better[0] in by_item and entry.worse[0] in by_item]
    credits = []
    for entry in scored:
        better, worse = (by_item[item_id][index] for item_id, index in (entry.better, entry.worse))
        credits.append(float(better > worse))
    return _accuracy_table([entry.split for entry in scored], [entry.group for entry in scored], credits)


def _accuracy_table(splits: list[str], groups: list[str], credits: list[float]) -> dict[str, list]:
    return {
        "metric": [f"accuracy, {split}" for split in splits] if len(set(splits)) > 1 else ["accuracy"] * len(splits),
        "group": groups,
        "stratum": splits,
        "weight": [1.0] * len(splits),
        "credit": credits,
    }


def credit_estimates(table: dict[str, list]) -> dict[str, dict[str, Any]]:
    """Metrics with 95% intervals that count items, from a credit table.

    Args:
        table: `rm_methods.benchmarks.evaluation.credit_table`.

    Returns:
        By metric: "value", "low", "high" (None without an interval), "items" and "groups" (counts).
    """
    from rm_methods.statistics.designs import item_design
    from rm_methods.statistics.intervals import estimate

    rows: dict[str, list[int]] = defaultdict(list)
    for row, metric in enumerate(table["metric"]):
        rows[metric].append(row)
    result = {}
    for metric, members in rows.items():
        part = {column: [table[column][row] for row in members] for column in ("stratum", "weight", "group", "credit")}
        design = item_design(part["stratum"], part["weight"], part["group"])
        value = estimate(np.array(part["credit"], dtype=np.float64)[:, None], design)
        has_interval = math.isfinite(value.half_width)
        result[metric] = {
            "value": value.mean,
            "low": value.low if has_interval else None,
            "high": value.high if has_interval else None,
            "items": value.n_items,
            "groups": value.n_clusters,
        }
    return result


# The report as text


def report_text(report: dict[str, Any], written: Sequence[Path]) -> str:
    """The report for a terminal: the result first, then warnings, then counts.

    Args:
        written: files that were written.
    """
    unit = report["unit"]
    responses = report["responses"]
    reading = Reading(**report["read"])
    left_out = f", {reading.n_refused:,} of {_counted(reading.rows, 'rows')} refused" if reading.n_refused else ""
    changed = report["changed_by_template"]
    lines = [f"{report['data']}: {_counted(report['items'], unit)} scored{left_out}"]
    lines += [_metric_line(name, metric) for name, metric in report["metrics"].items()]
    if not report["metrics"] and unit == "items":
        lines.append("  for metrics: rm-methods evaluate --benchmark NAME --items ... --scores ...")
    lines += [line for warning in _warnings(report) for line in _wrapped(f"  WARNING: {warning}", "  ")]
    lines += ["", *_reading_lines(reading)]
    if report["repetitions"]:
        lines.append(_count("merged", report["repetitions"], "exact repetitions; the table has a row for each"))
    remark = f"{unit} of {_counted(report['groups'], 'prompts')}, {_counted(responses, 'texts')}"
    lines += [
        _count("scored", report["items"], remark),
        _count("truncated", report["truncated"]["count"], f"texts ({100 * report['truncated']['share']:.1f}%)"),
        *([_count("changed", changed, "texts, by the model's chat template")] if changed else []),
        _count("not finite", report["not_finite"]["count"], "scores"),
        _count("tied", report["ties"], f"{unit} in which two different texts have one score"),
        _count("tokens", report["tokens"], f"in {report['seconds']:,.1f} s"),
        *_wrapped(f"  {'model':<12}{_model_text(report['model'])}", " " * 14),
        *_wrapped(f"  {'written':<12}{', '.join(map(str, written))}", " " * 14),
    ]
    return "\n".join(lines)


def describe_reading(data: ScoringData) -> str:
    """The rows that were read and refused, for a message."""
    return "\n".join(_reading_lines(data.reading))


def _reading_lines(reading: Reading) -> list[str]:
    lines = [_count("rows read", reading.rows), _count("refused", reading.n_refused)]
    for table in (reading.refused, reading.noticed):
        if table is reading.noticed and table:
            lines.append(_count("noticed", sum(entry["count"] for entry in table.values()), "scored all the same"))
        for reason, entry in sorted(table.items(), key=lambda item: -item[1]["count"]):
            examples = "; ".join(_short(example, reading.files) for example in entry["examples"])
            more = "; ..." if entry["count"] > len(entry["examples"]) else ""
            lines += _wrapped(f"{' ' * 14}{entry['count']:>9,}  {reason} ({examples}{more})", " " * 25)
    for file, columns in reading.unread.items():
        where = f" of {_short_path(file, reading.files)}" if len(reading.files) > 1 else ""
        lines += _wrapped(f"  {'not read':<12}columns{where}: {unread_columns(columns)}", " " * 14)
    return lines + [line for note in reading.notes for line in _wrapped(f"  {'note':<12}{note}", " " * 14)]


def _warnings(report: dict[str, Any]) -> list[str]:
    warnings = []
    bad = report["not_finite"]
    files = report["read"]["files"]
    if bad["count"]:
        examples = "; ".join(_short(example, files) for example in bad["examples"])
        warnings.append(
            f"{bad['count']:,} scores of {bad['items']:,} {report['unit']} are NaN or infinite and earn nothing "
            f"({examples}). Check the model's weights and precision."
        )
    if report["all_equal"]:
        warnings.append("all scores are equal. Check that the model is a trained reward model.")
    if report["truncated"]["count"] == report["responses"]:
        warnings.append("every text was cut. Raise --max-length if the model has the positions.")
    return warnings


def _metric_line(name: str, metric: dict[str, Any]) -> str:
    if metric["low"] is None:
        interval = "no interval: all alike"
    else:
        interval = f"95% interval {100 * metric['low']:.1f}% to {100 * metric['high']:.1f}%"
    return f"  {name}: {100 * metric['value']:.1f}% ({interval}, n = {metric['items']:,})"


def _model_text(model: dict[str, Any]) -> str:
    parts = [model["folder"], model["kind"]]
    if model.get("variant") is not None:
        parts.append(f"run {model['variant']} seed {model['seed']}")
    if model.get("members"):
        parts.append(f"{model['members']} members")
    if model.get("template") and model["template"]["date"]:
        parts.append(f"conversations dated {model['template']['date']}")
    parts += [f"{name} {value}" for name, value in model.items() if name not in _NAMED_ABOVE]
    return ", ".join(parts)


_NAMED_ABOVE = ("folder", "kind", "variant", "seed", "run_key", "members", "template", "layout_probe")


def _count(name: str, count: int, remark: str = "") -> str:
    return f"  {name:<12}{count:>9,}  {remark}".rstrip()


def _counted(count: int, plural: str) -> str:
    """
    >>> _counted(1, "pairs")
    '1 pair'
    """
    return f"{count:,} {plural.removesuffix('s') if count == 1 else plural}"


def _short(example: str, files: dict[str, int | None]) -> str:
    """An example without the path of its file if all are of one file; else without the folders that all share."""
    for file in files:
        if example.startswith(f"{file}, "):
            rest = example[len(file) + 2 :]
            return rest if len(files) == 1 else f"{_short_path(file, files)}, {rest}"
    return example


def _short_path(file: str, files: dict[str, int | None]) -> str:
    """The path of a file below the folder that all files share."""
    return os.path.relpath(file, os.path.commonpath([os.path.dirname(path) for path in files]))


def _wrapped(text: str, indent: str) -> list[str]:
    """Lines of at most `WIDTH` characters; paths and other long words are not broken."""
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
