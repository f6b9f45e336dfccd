"""Where MLflow keeps runs: the address, a SQLite database made in one step, and whether a server answers.

Facts behind the choices (MLflow 3.17, measured): several processes that start on a missing SQLite database at once break it for good
(the migrations race), so it is created under a lock and moved into place whole.  On an existing database concurrent writers lose
nothing.  A dead server keeps a client busy for minutes with MLflow's own retry defaults, and a database that cannot be opened for two, so
both are asked first, once.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from rm_methods.errors import UserError
from rm_methods.files import written_atomically

DEFAULT_DATABASE = "mlflow.db"
PROBE_SECONDS = 4
LOCK_SECONDS = 300
SERVERS = ("http", "https")
# Package that SQLAlchemy takes for a database if the address names no driver.
DEFAULT_DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc", "sqlite": "sqlite3"}
_PACKAGES = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # where pip's name is another one
_ALLOWED = (
    "sqlite:///<file>.db, http(s)://<server>, postgresql, mysql or mssql with the address of a database, or databricks"
)


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


def resolve_uri(tracking_uri: str | None) -> str:
    """The address given, else MLFLOW_TRACKING_URI, else ``sqlite:///<current folder>/mlflow.db``.

    Raises:
        UserError: an address that can never work: a folder (MLflow keeps no runs in folders any more), an unknown scheme, a server without
            a name, a database whose driver is not installed.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / DEFAULT_DATABASE}"
    if problem := _address_problem(uri):
        raise UserError(
            f"The MLflow address '{redacted(uri)}' {problem}. Allowed: {_ALLOWED}. Change it, or leave `uri` out and unset "
            "MLFLOW_TRACKING_URI for the default."
        )
    return uri


def _address_problem(uri: str) -> str | None:
    """What is wrong with an address, as far as that can be said without asking anybody."""
    if uri == "databricks":
        return None
    scheme = _scheme(uri)
    kind, _, driver = scheme.partition("+")
    if kind in ("", "file"):
        return "is a folder; MLflow no longer keeps runs in folders"
    try:
        parts = _behind_scheme(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is not an address ({error})"
    if kind in SERVERS:
        return None if host else "names no server"
    if kind == "databricks" or _has_plugin(scheme):
        return None
    if kind not in DEFAULT_DRIVERS:
        close = difflib.get_close_matches(scheme, [*SERVERS, *DEFAULT_DRIVERS, "databricks"], n=1)
        return f"begins with '{scheme}', which MLflow does not know" + (
            f" (did you mean '{close[0]}'?)" if close else ""
        )
    module = driver or DEFAULT_DRIVERS[kind]
    if kind == "sqlite":
        return _file_problem(uri)
    if importlib.util.find_spec(module) is None:
        return f"needs the package {_PACKAGES.get(module, module)}, which is not installed (pip install {_PACKAGES.get(module, module)})"
    return None


def _scheme(uri: str) -> str:
    """What stands before "://"; not `urlsplit`'s, which knows no underscore (as in the driver psycopg_async)."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator else urlsplit(uri).scheme


def _behind_scheme(uri: str) -> SplitResult:
    return urlsplit(f"//{uri.partition('://')[2]}")


def _has_plugin(scheme: str) -> bool:
    from importlib.metadata import entry_points

    return bool(entry_points(group="mlflow.tracking_store", name=scheme))


def _file_problem(uri: str) -> str | None:
    path = uri.partition(":///")[2].partition("?")[0]
    if not path or path == ":memory:":
        return "names no file; write sqlite:/// and the path of a file"
    if os.path.isdir(path):
        return f"names the folder {path}; name a file in it"
    return None


def redacted(uri: str) -> str:
    """The address without user name, password and query, for files and messages."""
    if not _scheme(uri).startswith("sqlite"):
        uri = re.sub(r"://.*@", "://", uri, flags=re.DOTALL)
    return uri.partition("?")[0]


def without_secrets(text: str, uri: str) -> str:
    """A message of MLflow, SQLAlchemy or a driver without the parts of the address that `redacted` leaves out."""
    text = text.replace(uri, redacted(uri))
    try:
        parts = _behind_scheme(uri)
        secrets = [
            parts.password,
            unquote(parts.password or ""),
            parts.query,
            *(value for _, value in parse_qsl(parts.query)),
        ]
    except ValueError:
        secrets = []
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def database_file(uri: str) -> Path | None:
    """The file of a SQLite address, None for any other address."""
    if not _scheme(uri).startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


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
    """Why a server or database cannot be used now; None if it answers (whatever it says), or if it is not there yet but can be made."""
    scheme = _scheme(uri)
    if scheme in SERVERS:
        return _silent_server(uri)
    if scheme.partition("+")[0] in DEFAULT_DRIVERS:
        return _closed_database(uri)
    return None


def _silent_server(uri: str) -> str | None:
    import requests

    try:
        requests.get(uri.rstrip("/") + "/health", timeout=PROBE_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return f"no answer from {redacted(uri)} within {PROBE_SECONDS} s ({type(error).__name__})"
    return None


def _closed_database(uri: str) -> str | None:
    """MLflow itself tries ten times, longer and longer, whatever the trouble is."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    path = database_file(uri)
    if path is not None and not path.exists():
        return None
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(PROBE_SECONDS))  # of libpq, which waits for ever by default
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
