"""The JSON files of results: one JSON schema for each kind of file, checked where the file is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rm_methods.errors import DataError
from rm_methods.files import content_hash, read_json
from rm_methods.run_card import RunMetrics, RunSummary
from rm_methods.validation import schema_problems

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_NUMBER = {"type": "number"}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_AMOUNT = {"type": "number", "minimum": 0}
_AMOUNT_OR_NULL = {"type": ["number", "null"], "minimum": 0}
_COUNT = {"type": "integer", "minimum": 0}
_COUNT_OR_NULL = {"type": ["integer", "null"], "minimum": 0}
_FRACTION = {"type": "number", "minimum": 0, "maximum": 1}
_BOOLEAN = {"type": "boolean"}
_ANY_OBJECT = {"type": "object"}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An object with these keys; others are allowed."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _mapping_to(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object with any keys, whose values all have one schema."""
    return {"type": "object", "additionalProperties": value}


def _list_of(item: Mapping[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": item, **limits}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "null"}, schema]}


_IDENTITY = {"variant": _TEXT, "method": _TEXT, "seed": _COUNT, "run_key": _TEXT}
_BIN = _object({"n": _COUNT} | dict.fromkeys(("low", "high", "mean_confidence", "accuracy"), _FRACTION))
_CALIBRATION = _object({"ece": _FRACTION, "ece_if_calibrated": _AMOUNT, "bins": _list_of(_BIN, minItems=1)})
_BENCHMARK = _object(
    {"metrics": _mapping_to(_NUMBER_OR_NULL)},
    {
        "tie_rate": _FRACTION | {"type": ["number", "null"]},
        "tie_rule": _TEXT,
        "calibration": _CALIBRATION,
        "n_scored": _COUNT,
        "n_total": _COUNT,
        "n_truncated": _COUNT_OR_NULL,
        "most_responses": {"type": ["integer", "null"], "minimum": 1},
        "notes": _list_of(_TEXT),
        "made_from": _mapping_to(_TEXT),
        "left_out": _mapping_to(_list_of(_NUMBER_OR_NULL, minItems=2)),
        "left_out_seeds": _list_of(_COUNT, minItems=2),
    },
)
_DIAGNOSED = _object(dict.fromkeys(("n_pairs", "n_items", "not_drawn", "not_a_pair", "n_truncated"), _COUNT))
_ALARM = _object({"step": _COUNT, "best_step": _COUNT, "gold_change": _NUMBER, "proxy_change": _NUMBER})

SCHEMAS = {
    "a summary.json of a run": _object(
        _IDENTITY,
        {
            "kind": _TEXT,
            "experiment": _TEXT,
            "scalar_reward": _BOOLEAN,
            "seed_free": _BOOLEAN,
            "settings": _ANY_OBJECT,
            "training": _ANY_OBJECT,
            "backbone": _ANY_OBJECT,
            "data": _object(
                {},
                {
                    "dataset": _TEXT,
                    "hash": _TEXT,
                    "pairs": _COUNT_OR_NULL,
                    "pairs_offered": _COUNT,
                    "pairs_used": _COUNT,
                },
            ),
            "cost": _object(
                {}, {"wall_seconds": _AMOUNT_OR_NULL, "tokens": _AMOUNT_OR_NULL, "peak_memory_bytes": _AMOUNT_OR_NULL}
            ),
            "metrics": _ANY_OBJECT,
            "report": _ANY_OBJECT,
            "weights_hash": _TEXT,
            "steps": _object(
                dict.fromkeys(("planned", "made", "kept"), _COUNT) | {"kept_because": _TEXT},
                {"stopped_because": _TEXT_OR_NULL},
            ),
            "live_run": _TEXT,
            "depends_on": _ANY_OBJECT,
            "provenance": _ANY_OBJECT,
        },
    ),
    "a metrics.json of a run": _object({**_IDENTITY, "benchmarks": _mapping_to(_BENCHMARK)}),
    "a summary.json with validation metrics": _object(
        {"metrics": _object({}, {"validation_accuracy": _FRACTION, "validation_loss": _NUMBER})}
    ),
    # Tracking reads the same file as `a summary.json of a run`. These are the fields that the curves need.
    "a summary.json of a PPO run": _object(
        {},
        {
            "reward_model": _TEXT,
            "reward_hacking": _object({"alarm": _BOOLEAN}, {"first": _or_null(_ALARM)}),
            "stopped": _or_null(_object({"step": _COUNT, "reason": _TEXT})),
        },
    ),
    "a file with a run key": _object({"run_key": _TEXT}),
    "a file with a run key and a method": _object({"run_key": _TEXT, "method": _TEXT}),
    "a report of diagnostics": _object(
        {"benchmarks": _mapping_to(_DIAGNOSED), "layers": _list_of(_COUNT), "n_layers": _COUNT}
    ),
    "a report of scores": _object({}, {"hashes": _mapping_to(_TEXT)}),
    "a report of a run's scores": _object({"model": _object({"seed": _COUNT, "run_key": _TEXT})}),
    "a file of further metrics": _object({"metrics": _mapping_to(_NUMBER_OR_NULL)}),
    "a description of a scorer": _object(
        {"method": _TEXT, "settings": _ANY_OBJECT}, {"seed": _COUNT, "fitted": _ANY_OBJECT}
    ),
    "a description of an ensemble": _object(
        {"members": _list_of(_TEXT, minItems=1), "centers": _list_of(_NUMBER)},
    ),
    "a record of a prepared backbone": _object({"kind": _TEXT}),
}


# Keys that earlier versions wrote under another name.
RENAMED = {"centres": "centers"}


def score_report(table: Path) -> Path:
    """The report of a score table: `scores.parquet.report.json` beside `scores.parquet`."""
    return table.with_name(f"{table.name}.report.json")


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the hash of its other entries under `checksum`, which `read_record` checks."""
    rest = {name: value for name, value in record.items() if name != "checksum"}
    return rest | {"checksum": content_hash(rest)}


def read_record(source: str | os.PathLike, what: str, stage: str) -> dict[str, Any]:
    """Read a JSON file of a kind.

    Args:
        what: kind of file, a key of `SCHEMAS`.
        stage: the stage that writes the file, for the message.

    Raises:
        UserError: the file is missing or not JSON.
        DataError: it is another file, or a value is missing or of the wrong type; names file and fields.
    """
    content = read_json(source)
    if isinstance(content, dict) and "checksum" in content and content != with_checksum(content):
        raise DataError(
            f"{source}: 'checksum' does not fit the rest: the file was edited. Run the {stage} stage again."
        )
    if problems := schema_problems(content, SCHEMAS[what]):
        problems += [
            f"'{old}' is now called '{new}': an earlier version wrote the file."
            for old, new in RENAMED.items()
            if isinstance(content, dict) and old in content
        ]
        raise DataError(f"{source}: not {what}: {' '.join(problems[:5])} Run the {stage} stage again.")
    return content


def read_run_key(source: str | os.PathLike) -> str:
    """The run key in a summary.json; raises as `read_record`."""
    return read_record(source, "a file with a run key", "train")["run_key"]


def read_summary(source: str | os.PathLike) -> RunSummary:
    """The summary.json of a run; raises as `read_record`."""
    return cast(RunSummary, read_record(source, "a summary.json of a run", "train"))


def read_metrics(source: str | os.PathLike) -> RunMetrics:
    """The metrics.json of an evaluated run; raises as `read_record`."""
    return cast(RunMetrics, read_record(source, "a metrics.json of a run", "evaluate"))
