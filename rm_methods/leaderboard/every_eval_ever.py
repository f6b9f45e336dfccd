"""Results in the schema of Every Eval Ever, version 0.3.0, so that they can be put beside other evaluations.

Source: github.com/evaleval/every_eval_ever, every_eval_ever/schemas/eval.schema.json.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rm_methods import __version__

SCHEMA_VERSION = "0.3.0"


def every_eval_ever(model: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one model on one benchmark.

    Args:
        model: "name", "revision" and "settings" of results.json.
        result: an entry of "benchmarks" there.
    """
    now = str(int(time.time()))
    benchmark = result["benchmark"]
    organization, _, _ = model["name"].rpartition("/")
    is_hub_id = model["name"].count("/") == 1 and not model["name"].startswith((".", "/", "~"))
    info: dict[str, Any] = {
        "name": model["name"],
        "id": model["name"],
        "inference_engine": {"name": "transformers", "version": _transformers_version()},
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": "open_weights" if is_hub_id else "unknown",
            "revision": str(model["revision"]),
            **{f"scoring.{key}": str(value) for key, value in model["settings"].items()},
        },
    }
    if is_hub_id:
        info["developer"] = organization
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{benchmark}/{model['name'].replace('/', '_')}/{now}",
        "evaluation_timestamp": now,
        "retrieved_timestamp": now,
        "source_metadata": {
            "source_name": "rm-methods benchmark",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "rm-methods", "version": __version__},
        "model_info": info,
        "evaluation_results": [
            _result(result, name, values["model"])
            for name, values in result["metrics"].items()
            if values["model"] is not None
        ],
    }


def _result(result: Mapping[str, Any], name: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    low, high = result["limits"][name]
    score: dict[str, Any] = {
        "score": estimate["value"],
        "details": {
            "tie_rate": str(result["tie_rate"]),
            "truncated_items": str(result["truncated"]),
            "groups": str(estimate["groups"]),
        },
    }
    if estimate["low"] is not None:
        score["uncertainty"] = {
            "confidence_interval": {
                "lower": estimate["low"],
                "upper": estimate["high"],
                "confidence_level": 0.95,
                "method": "items, clustered by prompt",
            },
            "num_samples": estimate["items"],
        }
    return {
        "evaluation_result_id": f"{result['benchmark']}.{name}",
        "evaluation_name": result["title"],
        "source_data": _source(result),
        "metric_config": {
            "metric_id": f"{result['benchmark']}.{name}",
            "metric_name": name,
            "metric_unit": "proportion",
            "evaluation_description": f"equal scores: {result['tie_rule']}",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": low,
            "max_score": high,
        },
        "score_details": score,
    }


def _source(result: Mapping[str, Any]) -> dict[str, Any]:
    hubs = [source for source in result["sources"] if "hub" in source]
    if not hubs:
        hashes = {source["file"].rpartition("/")[2]: source["sha256"] for source in result["sources"]}
        return {
            "dataset_name": result["title"],
            "source_type": "url",
            "url": [result["url"]],
            "additional_details": {f"sha256 {name}": value for name, value in hashes.items()},
        }
    return {
        "dataset_name": result["title"],
        "source_type": "hf_dataset",
        "hf_repo": hubs[0]["hub"],
        "samples_number": result["items"],
        "additional_details": {"revision": str(hubs[0]["revision"])},
    }


def _transformers_version() -> str:
    from importlib.metadata import version

    return version("transformers")
