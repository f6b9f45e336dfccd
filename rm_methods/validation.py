"""JSON-schema checks whose messages name the key path, the value seen, what is allowed, and the nearest name for an
unknown key.

Two keywords beside those of JSON schema are words for messages: `patternWords` says what a pattern demands, and
`typeWords` what a value of the wrong type should be.

Values that no setting may have (NaN, infinity, keys that are not text, ...) are refused whatever the schema says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from rm_methods.errors import nearest

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}
KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
# Python type of a value from YAML, JSON or Parquet -> its name in messages.
_KINDS_OF_VALUES = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}
_NOUNS = {"Items": "entry", "Properties": "entry", "Length": "character"}
_LARGEST_INTEGER = 2**63 - 1


@cache
def _validator() -> type[Validator]:
    """Draft 2020-12 with two stricter rules: 64.0 is no integer, and `$` does not match before a last line break."""
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    whole = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )

    def pattern(
        validator: Validator, expression: str, instance: Any, _schema: Mapping[str, Any]
    ) -> Iterator[ValidationError]:
        if validator.is_type(instance, "string") and not re.search(re.sub(r"\$\Z", r"\\Z", expression), instance):
            yield ValidationError(f"{instance!r} does not match {expression}")

    return extend(Draft202012Validator, validators={"pattern": pattern}, type_checker=whole)


def kind_of(value: Any) -> str:
    """What a value is, in the words of messages.

    >>> kind_of(None), kind_of([1]), kind_of("a")
    ('null', 'a list', 'text')
    """
    return _KINDS_OF_VALUES.get(type(value), type(value).__name__)


def unusable_values(value: Any, where: str = "") -> Iterator[str]:
    """A sentence for every value that no setting may have, and for every key that is not text."""
    if isinstance(value, dict):
        for key, inside in value.items():
            path = f"{where}.{key!s}" if where else str(key)
            if not isinstance(key, str):
                yield f"{path}: the name must be text, not {_type_name(key)}; put it in quotation marks"
            elif problem := _unusable_text(key):
                yield f"{path!r}: the name {problem}"
            yield from unusable_values(inside, path)
    elif isinstance(value, list):
        for k, inside in enumerate(value):
            yield from unusable_values(inside, f"{where}.{k}" if where else str(k))
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: is {'NaN' if math.isnan(value) else 'infinite'}; expected a finite number"
    elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        yield f"{where}: a whole number of more than 64 bits; must be at most {_LARGEST_INTEGER}"
    elif isinstance(value, str) and (problem := _unusable_text(value)):
        yield f"{where}: the text {problem}"


def _unusable_text(text: str) -> str | None:
    if "\0" in text:
        return "holds a NUL character; remove it"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "holds half a surrogate pair, which UTF-8 cannot write; remove it"
    return None


def _type_name(key: Any) -> str:
    if key is None:
        return "null"
    return {bool: "true or false", int: "a number", float: "a number"}.get(type(key), type(key).__name__)


def schema_problems(value: Any, schema: Mapping[str, Any], where: str = "") -> list[str]:
    """Every breach of a JSON schema, one sentence each.

    Args:
        where: key path of `value` itself; the paths inside it begin with it.
    """
    problems = list(unusable_values(value, where))
    errors = _validator()(schema).iter_errors(value)
    for error in sorted(errors, key=lambda error: list(map(str, error.absolute_path))):
        keys = list(map(str, error.absolute_path))
        path = ".".join([where, *keys] if where else keys)
        if error.validator == "additionalProperties" and error.validator_value is False:
            schema_of_object: Any = error.schema  # jsonschema's types allow for errors that belong to no schema yet
            allowed = schema_of_object.get("properties", {})
            prefix = f"{path}." if path else ""
            instance: Any = error.instance
            unknown = [key for key in instance if key not in allowed]
            if not allowed:
                problems += [f"{prefix}{key}: unknown key. {path or 'The top level'} takes no keys." for key in unknown]
                continue
            problems += [f"{prefix}{key}: unknown key. {nearest(str(key), allowed)}" for key in unknown]
        elif error.validator == "required":
            required: Any = error.validator_value
            present: Any = error.instance
            missing = [key for key in required if key not in present]
            owner: Any = error.schema
            problems.append(f"{path or 'top level'}: missing {', '.join(missing)}.{_example(missing, owner)}")
        else:
            seen = json.dumps(error.instance, default=str, skipkeys=True, ensure_ascii=False)
            problems.append(f"{path or 'top level'}: is {seen:.80}; {_expectation(error)}.")
    # jsonschema reports one "required" error per missing key; one sentence names them all.
    return list(dict.fromkeys(problems))


def _example(missing: Sequence[str], schema: Mapping[str, Any]) -> str:
    """What to write for the missing keys, if the schema has an example of each."""
    fragments = [schema.get("properties", {}).get(key, {}) for key in missing]
    if not all(fragment.get("examples") for fragment in fragments):
        return ""
    lines = [f"`{key}: {_flow(fragment['examples'][0])}`" for key, fragment in zip(missing, fragments, strict=True)]
    return f" Write, for example, {' and '.join(lines)}."


def _flow(value: Any) -> str:
    """A value of an example as YAML on one line; its texts need no quotation marks."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    return str(value)


def _expectation(error: ValidationError) -> str:
    """The demand of the broken rule of the schema."""
    rule = error.validator
    limit: Any = error.validator_value
    if rule == "type":
        kinds = limit if isinstance(limit, list) else [limit]
        schema: Any = error.schema
        if "typeWords" in schema:
            return f"expected {schema['typeWords']}"
        return f"expected {' or '.join(KINDS[kind] for kind in kinds)}{_type_advice(error.instance, kinds)}"
    if rule == "enum":
        values = [value if isinstance(value, str) else json.dumps(value) for value in limit]
        return f"allowed: {', '.join(values)}"
    if rule in BOUNDS:
        return f"must be {BOUNDS[rule]} {limit}"
    if rule == "pattern":
        return _pattern_words(error)
    if rule in ("minItems", "minProperties", "minLength", "maxItems", "maxProperties", "maxLength"):
        return _size_words(rule, limit)
    if rule == "uniqueItems":
        return "nothing may be listed twice"
    if rule in ("anyOf", "oneOf"):
        choices = [inside for inside in error.context or () if inside.parent is error]
        return " or ".join(dict.fromkeys(_expectation(inside) for inside in choices)) or error.message
    return error.message


def _type_advice(value: Any, kinds: list[str]) -> str:
    """What to write instead of a value of a wrong type, where a common slip explains it."""
    if isinstance(value, str) and {"number", "integer"} & set(kinds) and _reads_as_number(value):
        return ", without quotation marks"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and "array" in kinds:
        return f", such as [{value}]"
    if isinstance(value, float) and value.is_integer() and "integer" in kinds:
        return f", such as {int(value)}"
    return ""


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _pattern_words(error: ValidationError) -> str:
    """The demand of a pattern: the only text that fits, or the words that the schema has beside it."""
    expression: Any = error.validator_value
    if literal := re.fullmatch(r"\^([\w-]+)\$", expression):
        return f"the only text allowed is {literal[1]}"
    schema: Any = error.schema
    words = schema.get("patternWords")
    if words is None:
        return f"must match the regular expression {expression}"
    value: Any = error.instance
    advice = re.sub(r"\A[^A-Za-z0-9]+|[^A-Za-z0-9]+\Z", "", re.sub(r"[^A-Za-z0-9._-]+", "_", value))
    fits = advice and re.search(re.sub(r"\$\Z", r"\\Z", expression), advice)
    return f"expected {words}" + (f", such as {advice}" if fits else "")


def _size_words(rule: str, limit: int) -> str:
    """The demand of a smallest or largest size."""
    if rule.startswith("min") and limit == 1:
        return "must not be empty"
    bound = "at least" if rule.startswith("min") else "at most"
    noun = _NOUNS[rule[3:]]
    plural = noun if limit == 1 else {"entry": "entries", "character": "characters"}[noun]
    return f"must have {bound} {limit} {plural}"
