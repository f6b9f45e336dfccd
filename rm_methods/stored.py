"""The JSON files of results, checked where they are read: one JSON schema for each kind of file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError
from rm_methods.files import content_hash, read_json
from rm_methods.validation import schema_problems

_TEXT, _NUMBER, _BOOLEAN, _COUNT = (
    {"type": "string"},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "integer", "minimum": 0},
)
_ANY_OBJECT, _NUMBER_OR_NULL, _TEXT_OR_NULL = (
    {"type": "object"},
    {"type": ["number", "null"]},
    {"type": ["string", "null"]},
)


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _each(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": of}


_IDENTITY = {"variant": _TEXT, "method": _TEXT, "seed": _COUNT, "run_key": _TEXT}
_BENCHMARK = _object(
    {"metrics": _each(_NUMBER_OR_NULL)},
    {
        "tie_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "tie_rule": _TEXT,
        "n_scored": _COUNT,
        "n_total": _COUNT,
        "n_truncated": {"type": ["integer", "null"], "minimum": 0},
        "most_responses": {"type": ["integer", "null"], "minimum": 1},
        "notes": {"type": "array", "items": _TEXT},
        "made_from": _each(_TEXT),
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
                {}, {"dataset": _TEXT, "hash": _TEXT, "pairs": {"type": ["integer", "null"], "minimum": 0}}
            ),
            "cost": _object(
                {},
                {
                    "wall_seconds": {"type": ["number", "null"], "minimum": 0},
                    "tokens": {"type": ["number", "null"], "minimum": 0},
                    "peak_memory_bytes": {"type": ["number", "null"], "minimum": 0},
                },
            ),
            "metrics": _ANY_OBJECT,
            "report": _ANY_OBJECT,
            "depends_on": _ANY_OBJECT,
            "provenance": _ANY_OBJECT,
        },
    ),
    "a metrics.json of a run": _object({**_IDENTITY, "benchmarks": _each(_BENCHMARK)}),
    "a summary.json with validation metrics": _object(
        {
            "metrics": _object(
                {}, {"validation_accuracy": {"type": "number", "minimum": 0, "maximum": 1}, "validation_loss": _NUMBER}
            )
        }
    ),
    # A PPO run is also a run of tracking (`a summary.json of a run`); here only what the curves need.
    "a summary.json of a PPO run": _object(
        {},
        {
            "reward_model": _TEXT,
            "reward_hacking": _object({"alarm": _BOOLEAN}, {"first": {"anyOf": [{"type": "null"}, _ALARM]}}),
            "stopped": {"anyOf": [{"type": "null"}, _object({"step": _COUNT, "reason": _TEXT})]},
        },
    ),
    "a pending record of tracking": _object(
        {
            "request": _object(
                {"summary": _TEXT, **dict.fromkeys(("metrics", "training_log", "model", "further"), _TEXT_OR_NULL)}
                | {"purpose": _TEXT, "experiment": _TEXT}
            )
        }
    ),
    "a file with a run key": _object({"run_key": _TEXT}),
    "a file with a run key and a method": _object({"run_key": _TEXT, "method": _TEXT}),
    "a report of diagnostics": _object(
        {"benchmarks": _each(_DIAGNOSED), "layers": {"type": "array", "items": _COUNT}, "n_layers": _COUNT}
    ),
    "a report of scores": _object({}, {"hashes": _each(_TEXT)}),
    "a file of further metrics": _object({"metrics": _each(_NUMBER_OR_NULL)}),
    "a description of a scorer": _object({"method": _TEXT, "settings": _ANY_OBJECT}, {"seed": _COUNT}),
    "a description of an ensemble": _object(
        {
            "members": {"type": "array", "items": _TEXT, "minItems": 1},
            "centres": {"type": "array", "items": _NUMBER},
        }
    ),
    "a record of a prepared backbone": _object({"kind": _TEXT}),
}


def score_report(table: Path) -> Path:
    """The report of a score table: `scores.parquet.report.json` beside `scores.parquet`."""
    return table.with_name(f"{table.name}.report.json")


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the hash of its other entries under `checksum`, which `read_record` checks."""
    rest = {name: value for name, value in record.items() if name != "checksum"}
    return rest | {"checksum": content_hash(rest)}


# Columns of the evaluations of a PPO run, with their types as in `rm_methods.parquet`.
PPO_EVALUATION_COLUMNS = {
    "step": "integer", "prompt_id": "text", "response": "text", "proxy": "number?", "gold": "number?", "kl": "number?",
    "n_tokens": "integer", "finished": "boolean",
}  # fmt: skip


def read_record(source: str | os.PathLike, what: str, stage: str) -> dict[str, Any]:
    """Read a JSON file of a kind.

    Args:
        what: kind of file, a key of `SCHEMAS`.
        stage: that writes it.

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
        raise DataError(f"{source}: not {what}: {' '.join(problems[:5])} Run the {stage} stage again.")
    return content


def read_run_key(source: str | os.PathLike) -> str:
    """The run key in a summary.json; raises as `read_record`."""
    return read_record(source, "a file with a run key", "train")["run_key"]


def read_summary(source: str | os.PathLike) -> dict[str, Any]:
    """The summary.json of a run; raises as `read_record`."""
    return read_record(source, "a summary.json of a run", "train")
