"""The record of a benchmark: performance/results/<name>.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema

from performance.harness.benchmark import Benchmark, Measurement, Proof, as_json
from rm_methods.errors import UserError
from rm_methods.files import read_json

VERSION = 1
_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_RATIO = {
    "type": "object",
    "required": ["median", "lowest", "highest"],
    "properties": {name: {"type": "number", "exclusiveMinimum": 0} for name in ("median", "lowest", "highest")},
}
_SIDE = {
    "type": "object",
    "required": ["seconds", "cpu_seconds", "peak_memory_bytes", "amount", "details"],
    "properties": {
        "seconds": _NUMBERS,
        "cpu_seconds": _NUMBERS,
        "peak_memory_bytes": _NUMBERS,
        "amount": {"type": ["number", "null"]},
        "details": {"type": "array", "items": {"type": "object"}},
        "ratio": _RATIO,
        "cpu_ratio": _RATIO,
        "memory_ratio": _RATIO,
    },
}
_CASE = {
    "type": "object",
    "required": ["case", "title"],
    "oneOf": [{"required": ["skipped"]}, {"required": ["proof", "sides", "sides_skipped"]}],
    "properties": {
        "case": {"type": "string"},
        "title": {"type": "string"},
        "skipped": {"type": "string"},
        "proof": {
            "type": "object",
            "required": ["statement", "difference", "tolerance"],
            "properties": {
                "statement": {"type": "string"},
                "difference": {"type": "number", "minimum": 0},
                "tolerance": {"type": "number", "minimum": 0},
            },
        },
        "sides": {"type": "object", "minProperties": 1, "additionalProperties": _SIDE},
        "sides_skipped": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["version", "benchmark", "command", "machine", "options", "rounds", "threads", "tests", "cases"],
    "properties": {
        "version": {"const": VERSION},
        "benchmark": {"type": "string"},
        "command": {"type": "string"},
        "base": {"type": ["string", "null"]},
        "machine": {
            "type": "object",
            "required": [
                "processor",
                "cores",
                "flags",
                "memory_bytes",
                "versions",
                "git_commit",
                "load_average",
                "date",
            ],
        },
        "options": {"type": "object"},
        "rounds": {"type": "integer", "minimum": 1},
        "threads": {"type": "integer", "minimum": 1},
        "tests": {
            "type": "object",
            "required": ["ids", "summary"],
            "properties": {"ids": {"type": "array", "minItems": 1}, "summary": {"type": "string"}},
        },
        "cases": {"type": "array", "minItems": 1, "items": _CASE},
    },
}


def side_record(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """All rounds of one side."""
    return {
        "seconds": [measurement.seconds for measurement in measurements],
        "cpu_seconds": [measurement.cpu_seconds for measurement in measurements],
        "peak_memory_bytes": [measurement.peak_memory_bytes for measurement in measurements],
        "amount": measurements[0].amount,
        "details": [dict(measurement.details) for measurement in measurements],
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Ratio of two medians, and the lowest and the highest ratio within a round.

    Args:
        above: of one side, by round; `below` of the other side in the same rounds.
    """
    rounds = [first / second for first, second in zip(above, below, strict=True)]
    median = statistics.median(above) / statistics.median(below)
    # With an even number of rounds, a ratio of medians can be outside those of the rounds.
    ratios = [*rounds, median]
    return {"median": median, "lowest": min(ratios), "highest": max(ratios)}


def with_ratios(benchmark: Benchmark, sides: dict[str, dict[str, Any]], baseline: str | None) -> dict[str, Any]:
    """The sides, each but the baseline with its ratios to it; without a measured baseline, as given."""
    if baseline is None or baseline not in sides:
        return sides
    base = sides[baseline]
    for name, side in sides.items():
        if name == baseline:
            continue
        for key, result in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
            pair = (base[key], side[key]) if benchmark.compares == "speed" else (side[key], base[key])
            side[result] = ratio(pair[0], pair[1])
        side["memory_ratio"] = ratio(side["peak_memory_bytes"], base["peak_memory_bytes"])
    return sides


def case_record(
    benchmark: Benchmark,
    title: tuple[str, str],
    proof: Proof,
    *,
    measured: Mapping[str, Sequence[Measurement]],
    skipped: Mapping[str, str],
    baseline: str | None,
) -> dict[str, Any]:
    """One case that was measured.

    Args:
        title: name and title of the case.
        skipped: reasons, by side.
    """
    sides = {name: side_record(measurements) for name, measurements in measured.items()}
    return {
        "case": title[0],
        "title": title[1],
        "proof": as_json(proof),
        "sides": with_ratios(benchmark, sides, baseline),
        "sides_skipped": dict(skipped),
    }


def check_record(record: Any, file: Path) -> dict[str, Any]:
    """The record, if it is one.

    Raises:
        UserError: it is not; says where.
    """
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMA).iter_errors(record))
    if error is not None:
        raise UserError(f"{file}: {error.json_path}: {error.message[:300]}")
    return record


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """All records of a folder, by benchmark.

    Raises:
        UserError: a file is no record, or its name is another than its benchmark's.
    """
    records = {}
    for file in sorted(folder.glob("*.json")):
        record = check_record(read_json(file), file)
        if record["benchmark"] != file.stem:
            raise UserError(f"{file}: holds the benchmark '{record['benchmark']}'; name the file like it.")
        records[file.stem] = record
    return records
