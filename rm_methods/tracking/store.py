"""Where MLflow keeps runs: the address, a SQLite database made in one step, and whether a server answers.

Facts behind the choices (MLflow 3.17, measured): several processes that start on a missing SQLite database at once break it for good
(the migrations race), so it is created under a lock and moved into place whole.  On an existing database concurrent writers lose
nothing.  A dead server keeps a client busy for minutes with MLflow's own retry defaults, so it is asked first, once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rm_methods.errors import UserError
from rm_methods.files import written_atomically

DEFAULT_DATABASE = "mlflow.db"
PROBE_SECONDS = 4
LOCK_SECONDS = 300


def import_mlflow():
    """Import MLflow with telemetry off and with retries that give up within seconds.  Values that the user set stay."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # only this literal value is understood
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return mlflow


def resolve_uri(tracking_uri: str | None) -> str:
    """The address given, else MLFLOW_TRACKING_URI, else ``sqlite:///<current folder>/mlflow.db``.

    Raises:
        UserError: for a folder of files, which MLflow no longer accepts as a store.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / DEFAULT_DATABASE}"
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme in ("", "file"):
        raise UserError(
            f"The MLflow address {uri!r} is a folder; MLflow no longer keeps runs in folders. Allowed: sqlite:///<file>.db, "
            "http(s)://<server>, or another database. Change it, or unset MLFLOW_TRACKING_URI for the default."
        )
    return uri


def redacted(uri: str) -> str:
    """The address without user name and password, for files and messages."""
    credentials, at, _ = urlsplit(uri).netloc.rpartition("@")
    return uri.replace(credentials + at, "", 1) if at else uri


def database_file(uri: str) -> Path | None:
    """The file of a SQLite address, None for any other address."""
    if not urlsplit(uri).scheme.startswith("sqlite"):
        return None
    path = uri.partition(":///")[2].partition("?")[0]
    if not path or path == ":memory:":
        raise UserError(f"The MLflow address {uri!r} names no file. Allowed: sqlite:///<file>.db.")
    return Path(path)


def ensure_store(uri: str) -> None:
    """Create the SQLite database of `uri` if it is missing; any number of processes may call this at once.

    An existing database is left as it is, even if its schema is older than this MLflow (MLflow then says how to upgrade it, which
    should not happen without a backup).  For other addresses there is nothing to do.
    """
    path = database_file(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if not path.exists():
            import_mlflow()
            from mlflow.db import upgrade

            with written_atomically(path) as new:
                upgrade.callback(f"sqlite:///{new.resolve()}")  # what `mlflow db upgrade` does


@contextmanager
def one_writer(uri: str) -> Iterator[None]:
    """Hold the SQLite database for one exporting process, so that two of them cannot both find a run missing and add it."""
    path = database_file(uri)
    if path is None:
        yield
        return
    ensure_store(uri)
    with _lock(path):
        yield


def _lock(database: Path):
    from filelock import FileLock

    return FileLock(f"{database}.lock", timeout=LOCK_SECONDS)


def unreachable_reason(uri: str) -> str | None:
    """Why an http(s) server cannot be used now, None if it answers (whatever it says) or if there is no server to ask."""
    if urlsplit(uri).scheme not in ("http", "https"):
        return None
    import requests

    try:
        requests.get(uri.rstrip("/") + "/health", timeout=PROBE_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return f"no answer from {redacted(uri)} within {PROBE_SECONDS} s ({type(error).__name__})"
    return None
