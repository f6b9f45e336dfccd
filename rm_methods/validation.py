"""JSON-schema checks whose messages name the key path, the value seen, what is allowed, and the nearest name for an unknown key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from rm_methods.errors import nearest

_BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}


@cache
def _validator():
    """JSON Schema takes 64.0 for an integer; range() and paths do not."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    whole = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    return extend(Draft202012Validator, type_checker=whole)


def schema_problems(value: Any, schema: Mapping[str, Any], where: str = "") -> list[str]:
    """Every breach of a JSON schema, one sentence each.

    Args:
        where: key path of `value` itself, put before the paths inside it.
    """
    problems = []
    for error in sorted(_validator()(schema).iter_errors(value), key=lambda error: list(map(str, error.absolute_path))):
        path = ".".join([*([where] if where else []), *map(str, error.absolute_path)])
        if error.validator == "additionalProperties" and error.validator_value is False:
            allowed = error.schema.get("properties", {})
            prefix = f"{path}." if path else ""
            problems += [
                f"{prefix}{key}: unknown key. {nearest(str(key), allowed)}"
                for key in error.instance
                if key not in allowed
            ]
        elif error.validator == "required":
            missing = [key for key in error.validator_value if key not in error.instance]
            problems.append(f"{path or 'top level'}: missing {', '.join(missing)}.")
        else:
            seen = json.dumps(error.instance, default=str, ensure_ascii=False)
            problems.append(f"{path or 'top level'}: is {seen:.80}; {_expectation(error)}.")
    # jsonschema reports one "required" error per missing key; one sentence names them all.
    return list(dict.fromkeys(problems))


def _expectation(error: Any) -> str:
    """What the broken rule of the schema asks for."""
    rule, limit = error.validator, error.validator_value
    if rule == "type":
        return f"expected {' or '.join(limit) if isinstance(limit, list) else limit}"
    if rule == "enum":
        return f"allowed: {', '.join(value if isinstance(value, str) else json.dumps(value) for value in limit)}"
    if rule in _BOUNDS:
        return f"must be {_BOUNDS[rule]} {limit}"
    if rule == "pattern":
        return f"must match {limit}"
    return error.message
