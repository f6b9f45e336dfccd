"""Addresses of pages in MLflow's user interface.

MLflow 3.17 opens an experiment on "Traces", which is empty here; these addresses open its runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from rm_methods.system.tracking_address import SERVERS, redacted, uri_scheme

LOCAL = "http://127.0.0.1:5000"  # of `make ui`
_WORKFLOW = "workflowType=machine_learning"


def runs_page(uri: str, experiment_id: str) -> str:
    """The list of the runs of an experiment."""
    return f"{_server(uri)}/#/experiments/{experiment_id}/runs?{_WORKFLOW}"


def compare_page(uri: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that compares runs."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    return f"{_server(uri)}/#/compare-runs?runs={runs}&experiments={experiments}&{_WORKFLOW}"


def how_to_open(uri: str, experiment_id: str) -> str:
    """What a person does to see the runs."""
    page = runs_page(uri, experiment_id)
    if uri_scheme(uri) in SERVERS:
        return page
    return f"{page} (after `make ui`, or `mlflow ui --backend-store-uri {redacted(uri)}`)"


def _server(uri: str) -> str:
    return redacted(uri).rstrip("/") if uri_scheme(uri) in SERVERS else LOCAL
