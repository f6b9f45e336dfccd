"""`~` and environment variables in the settings that are paths.

A schema says which these are: `format: path` (a file or folder, or a name that may also be one), `format: file` (a
file whose content counts), `format: tracking-uri` (a path only after `sqlite:///`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from rm_methods.errors import UserError

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^{}]*)\})")
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(.*)\Z", re.DOTALL)


def expand_paths(value: Any, schema: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """`value` with all its paths expanded; one that cannot be expanded becomes None, with a sentence in `problems`.

    Args:
        schema: of `value`; its properties, additionalProperties and items are followed.
        where: key path of `value`.
    """
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        parts = {key: properties.get(key, others) for key in value}
        return {
            key: expand_paths(inside, parts[key], f"{where}.{key}" if where else key, problems)
            if isinstance(parts[key], Mapping)
            else inside
            for key, inside in value.items()
        }
    if isinstance(value, list):
        items = schema.get("items", {})
        return [expand_paths(inside, items, f"{where}.{k}", problems) for k, inside in enumerate(value)]
    if not isinstance(value, str) or schema.get("format") not in ("path", "file", "tracking-uri"):
        return value
    try:
        return _expand_uri(value) if schema["format"] == "tracking-uri" else expand_path(value)
    except UserError as error:
        problems.append(f"{where}: {error}")
        return None


def expand_path(path: str) -> str:
    """A path with `~`, `~user`, `$NAME` and `${NAME}` replaced.

    Raises:
        UserError: a variable that is not set or whose value holds another one, or a user that this machine does not
            have.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(
            f"'{path}' begins with the home of a user that this machine does not have; write the folder out"
        )
    expanded = _VARIABLE.sub(lambda match: _variable(match, path), expanded)
    if _VARIABLE.search(expanded):
        raise UserError(f"'{path}' is '{expanded}', which has a variable again; write the folder out")
    return expanded


def _variable(match: re.Match[str], path: str) -> str:
    name = match[1] or match[2] or ""
    if name not in os.environ:
        raise UserError(
            f"'{path}' names the environment variable {name!r}, which is not set; set it, or write the folder out"
        )
    return os.environ[name]


def _expand_uri(uri: str) -> str:
    if sqlite := _SQLITE.match(uri):
        return sqlite[1] + expand_path(sqlite[2])
    if variable := _VARIABLE.search(uri):
        raise UserError(
            f"has the variable {variable[0]}, but only sqlite addresses have variables expanded; leave `uri` out and "
            "set MLFLOW_TRACKING_URI, which also keeps passwords out of files, or write %24 for a dollar sign"
        )
    return uri
