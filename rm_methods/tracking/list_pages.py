"""Prints the address of each experiment's runs in MLflow; `make ui` calls it before it starts the page.

Usage:
    python -m rm_methods.tracking.list_pages sqlite:///mlflow.db
"""

from __future__ import annotations

import sys

from rm_methods.errors import UserError
from rm_methods.system.tracking_address import resolve_uri
from rm_methods.tracking.pages import VIEW_TAG, runs_page
from rm_methods.tracking.store import database_file, import_mlflow, one_line, unreachable_reason


def pages_text(uri: str) -> str:
    """One line for each experiment that an export filled, or why none is listed."""
    database = database_file(uri)
    if database is not None and not database.exists():
        return f"No runs yet: {database} is missing. Run the workflow first."
    if reason := unreachable_reason(uri):
        return f"The runs cannot be listed: {reason}"
    import_mlflow()
    from mlflow import MlflowClient

    try:
        experiments = list(MlflowClient(tracking_uri=uri).search_experiments())
    except Exception as error:  # of MLflow, SQLAlchemy or a driver: the page may start all the same
        return f"The runs cannot be listed: {one_line(error, uri)}"
    lines = []
    for experiment in experiments:
        views = sorted(tag.removeprefix(VIEW_TAG) for tag in experiment.tags if tag.startswith(VIEW_TAG))
        for view in views:
            lines.append(f"Runs of {view}: {runs_page(uri, experiment.experiment_id, view)}")
    return "\n".join(lines) or "No runs yet. Run the workflow first."


def main() -> None:
    try:
        print(pages_text(resolve_uri(sys.argv[1] if len(sys.argv) > 1 else None)), flush=True)
    except UserError as error:
        sys.exit(f"rm-methods: {error}")


if __name__ == "__main__":
    main()
