"""Addresses of pages in MLflow's user interface, and the view of the runs that they open.

MLflow 3.17 opens an experiment on "Traces", which is empty here, and lists runs without any metric.  The addresses
open the list of the runs, with a view that an export stores as MLflow's own button "Share" does: a tag of the
experiment, which the address names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.system.tracking_address import SERVERS, redacted, uri_scheme

LOCAL = "http://127.0.0.1:5000"  # of `make ui`
VIEW_TAG = "mlflow.sharedViewState."  # of an experiment; followed by the key of the view
_WORKFLOW = "workflowType=machine_learning"
_METRICS_SHOWN = 6
_VERDICT_WIDTH = 190  # pixels
_METRIC_WIDTH = 130


def view_key(configured: str) -> str:
    """The key of the view of a configured experiment."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", configured)


def view_state(configured: str, metrics: Sequence[str]) -> str:
    """The view of the runs: current ones only, with verdict and metrics as columns.

    Args:
        metrics: those of the table, in its order; one of each benchmark comes first.
    """
    first_of_benchmark = {metric.partition("/")[0]: metric for metric in reversed(metrics)}
    order = [*reversed(first_of_benchmark.values()), *metrics]
    shown = list(dict.fromkeys(order))[:_METRICS_SHOWN]
    columns = ["tags.`verdict`", *(f"metrics.`{metric}`" for metric in shown)]
    return json.dumps(
        {
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": dict.fromkeys(columns, _METRIC_WIDTH) | {columns[0]: _VERDICT_WIDTH},
            "searchFilter": f"tags.superseded = 'false' and tags.configured_experiment = '{configured}'",
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
        }
    )


def runs_page(uri: str, experiment_id: str, view: str | None = None) -> str:
    """The list of the runs of an experiment.

    Args:
        view: key of a stored view, None for MLflow's own.
    """
    address = f"{_server(uri)}/#/experiments/{experiment_id}/runs?{_WORKFLOW}"
    return address if view is None else f"{address}&viewStateShareKey={view}"


def compare_page(uri: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that compares runs."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    return f"{_server(uri)}/#/compare-runs?runs={runs}&experiments={experiments}&{_WORKFLOW}"


def how_to_open(uri: str, page: str) -> str:
    """What a person does to see a page."""
    if uri_scheme(uri) in SERVERS:
        return page
    return f"{page} (start the page with `make ui` or `mlflow ui --backend-store-uri {redacted(uri)}`)"


def tracked_page(record: Path) -> str | None:
    """What a person does to see the runs of an export; None if nothing was exported.

    Args:
        record: comparison.json of the export.
    """
    try:
        content = read_json(record)
    except UserError:
        return None
    pages = content.get("pages") if isinstance(content, dict) else None
    return str(pages["how_to_open"]) if isinstance(pages, dict) and "how_to_open" in pages else None


def _server(uri: str) -> str:
    return redacted(uri).rstrip("/") if uri_scheme(uri) in SERVERS else LOCAL
