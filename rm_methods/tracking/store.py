"""The store of MLflow: its address, a SQLite database made in one step, and whether a server answers.

Reasons (MLflow 3.17, measured): processes that start on a missing SQLite database at the same time break it for good
(the migrations race), so it is created under a lock and moved into place whole.  On an existing database concurrent
writers lose nothing.  With MLflow's default retries a client waits minutes for a dead server, and two minutes for a
database that cannot be opened, so both are tried once first.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rm_methods.files import written_atomically
from rm_methods.system.tracking_address import DEFAULT_DRIVERS, SERVERS, redacted, uri_scheme, without_secrets

PROBE_SECONDS = 4
LOCK_SECONDS = 300
OLDEST_SERVER = 3  # major version of MLflow: older ones have no external models
_POSTGRESQL_LOCK = 7226835  # any number that all exports share


def import_mlflow():
    """Import MLflow with telemetry off and with retries that give up within seconds.  Values that the user set stay."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # only this literal value is understood
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return mlflow


def database_file(uri: str) -> Path | None:
    """The file of a SQLite address, None for any other address."""
    if not uri_scheme(uri).startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def ensure_store(uri: str) -> None:
    """Create the SQLite database of `uri` if it is missing; any number of processes may call this at once.

    An existing database is never changed, even if its schema is older than this MLflow (MLflow then says how to
    upgrade it, which should not happen without a backup).  Other addresses need nothing.
    """
    path = database_file(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if not path.exists():
            import_mlflow()
            from mlflow.db import upgrade

            assert upgrade.callback is not None  # a click command with a function
            with written_atomically(path) as new:
                upgrade.callback(f"sqlite:///{new.resolve()}")  # what `mlflow db upgrade` does


@contextmanager
def one_writer(uri: str) -> Iterator[None]:
    """Hold a SQLite or PostgreSQL database for one exporting process, so that two of them cannot both find a run
    missing and add it.

    A server offers no such lock.  Two exports that reach it at once may store a run twice; the next one marks the
    younger as superseded.
    """
    path = database_file(uri)
    if path is not None:
        ensure_store(uri)
        with _lock(path):
            yield
    elif uri_scheme(uri).startswith("postgresql"):
        with _postgresql_lock(uri):
            yield
    else:
        yield


@contextmanager
def _postgresql_lock(uri: str) -> Iterator[None]:
    """An advisory lock, which the server releases if this process dies."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_POSTGRESQL_LOCK})"))
        yield


def _lock(database: Path):
    from filelock import FileLock

    return FileLock(f"{database}.lock", timeout=LOCK_SECONDS)


def unreachable_reason(uri: str) -> str | None:
    """Why a server or database cannot be used now; None if it gives an answer that is not of an old release, or does
    not exist yet but can be made."""
    scheme = uri_scheme(uri)
    if scheme in SERVERS:
        return _silent_server(uri)
    if scheme.partition("+")[0] in DEFAULT_DRIVERS:
        return _closed_database(uri)
    return None


def _silent_server(uri: str) -> str | None:
    import requests

    address = uri.rstrip("/")
    try:
        requests.get(f"{address}/health", timeout=PROBE_SECONDS, allow_redirects=False)
        version = requests.get(f"{address}/version", timeout=PROBE_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return f"no answer from {redacted(uri)} within {PROBE_SECONDS} s ({type(error).__name__})"
    major = version.text.strip().partition(".")[0]
    if version.ok and major.isdigit() and int(major) < OLDEST_SERVER:
        return f"{redacted(uri)} runs MLflow {version.text.strip()[:40]}, and {OLDEST_SERVER}.0 or newer is needed"
    return None


def _closed_database(uri: str) -> str | None:
    """One attempt: MLflow itself tries ten times, with growing pauses, whatever the problem is."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    path = database_file(uri)
    if path is not None and not path.exists():
        return None
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(PROBE_SECONDS))  # of libpq, which waits forever by default
    try:
        address = sqlalchemy.make_url(uri)
        if (
            path is None
            and address.host
            and (reason := _closed_port(address.host, address.port, address.get_backend_name()))
        ):
            return reason
        with sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool).connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()  # SQLite reads nothing of a file before
    except (SQLAlchemyError, ImportError, OSError) as error:
        return one_line(error, uri)
    return None


def _closed_port(host: str, port: int | None, kind: str) -> str | None:
    """Why nothing listens at a database's port, None if something does."""
    port = port or {"postgresql": 5432, "mysql": 3306, "mssql": 1433}[kind]
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        return f"no database at {host}:{port} ({error.strerror or error})"
    return None


def one_line(error: BaseException, uri: str) -> str:
    """An error in one line, without the secrets of the address."""
    text = " ".join(without_secrets(str(error), uri).split())
    return f"{type(error).__name__}: {text[:300]}"
