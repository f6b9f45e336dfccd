"""Checks addresses of MLflow and hides their secrets, without opening a connection or a file."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from rm_methods.errors import UserError

DEFAULT_DATABASE = "mlflow.db"
SERVERS = ("http", "https")
# Package that SQLAlchemy takes for a database if the address names no driver.
DEFAULT_DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc", "sqlite": "sqlite3"}
_PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}  # module: name of its package, where the two differ
_ALLOWED = (
    "sqlite:///<file>.db, http(s)://<server>, postgresql, mysql or mssql with the address of a database, or databricks"
)


def resolve_uri(tracking_uri: str | None) -> str:
    """The address given, else MLFLOW_TRACKING_URI, else ``sqlite:///<current folder>/mlflow.db``.

    Raises:
        UserError: an address that can never work: a folder (MLflow keeps no runs in folders any more), an unknown
            scheme, a server without a name, a database whose driver is not installed.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / DEFAULT_DATABASE}"
    if problem := _address_problem(uri):
        raise UserError(
            f"The MLflow address '{redacted(uri)}' {problem}. Allowed: {_ALLOWED}. Change it, or leave `uri` out and "
            "unset MLFLOW_TRACKING_URI for the default."
        )
    return uri


def _address_problem(uri: str) -> str | None:
    """The problem of an address, as far as the address alone shows it."""
    if uri == "databricks":
        return None
    scheme = uri_scheme(uri)
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
        package = _PACKAGES.get(module, module)
        return f"needs the package {package}, which is not installed (pip install {package})"
    return None


def uri_scheme(uri: str) -> str:
    """The text before "://".  `urlsplit` accepts no underscore (as in the driver psycopg_async)."""
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
    if not uri_scheme(uri).startswith("sqlite"):
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
