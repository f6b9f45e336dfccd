import math

import pytest

from rm_methods.validation import kind_of, schema_problems

ANYTHING = {}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": {"b": math.nan}}, "a.b: is NaN; expected a finite number"),
        ({"a": [1.0, -math.inf]}, "a.1: is infinite; expected a finite number"),
        ({"a": {5: 1}}, "a.5: the name must be text, not a number"),
        ({"a": {True: 1}}, "a.True: the name must be text, not true or false"),
        ({None: 1}, "None: the name must be text, not null"),
        ({"a": 2**63}, "a: a whole number of more than 64 bits"),
        ({"a": ["x\0"]}, "a.0: the text holds a NUL character"),
        ({"a": "\ud800"}, "a: the text holds half a surrogate pair"),
    ],
)
def test_values_that_no_setting_may_have_are_refused_whatever_the_schema_says(value, says):
    (problem,) = schema_problems(value, ANYTHING)
    assert problem.startswith(says)


def test_values_are_checked_below_a_key_path():
    assert schema_problems(math.nan, {"type": "number", "minimum": 0}, "training.learning_rate") == [
        "training.learning_rate: is NaN; expected a finite number"
    ]


def test_the_end_of_a_pattern_is_the_end_of_the_text():
    schema = {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z]+$"},
        "additionalProperties": {"type": "string", "pattern": "^all$"},
    }
    assert schema_problems({"name": "all"}, schema) == []
    assert len(schema_problems({"name": "all\n"}, schema)) == 1
    assert len(schema_problems({"name\n": "all"}, schema)) == 1


def test_lists_without_repetition_and_long_texts_are_refused_in_words():
    assert schema_problems([0, 0], {"uniqueItems": True}, "seeds") == ["seeds: is [0, 0]; nothing may be listed twice."]
    assert schema_problems("abc", {"maxLength": 2}, "experiment") == [
        'experiment: is "abc"; must have at most 2 characters.'
    ]


@pytest.mark.parametrize(
    ("value", "schema", "says"),
    [
        ("", {"minLength": 1}, "must not be empty"),
        ([], {"minItems": 2}, "must have at least 2 entries"),
        ([1, 2], {"maxItems": 1}, "must have at most 1 entry"),
        ({}, {"minProperties": 1}, "must not be empty"),
        ("x y", {"pattern": "^[a-z_]+$", "patternWords": "small letters"}, "expected small letters, such as x_y"),
        ("X", {"pattern": "^[a-z]+$", "patternWords": "small letters"}, "expected small letters."),
        ("x", {"pattern": "^[0-9]$"}, "must match the regular expression ^[0-9]$"),
        ("x", {"anyOf": [{"enum": ["all"]}, {"type": "array"}]}, "allowed: all or expected a list"),
        ("3", {"type": "integer"}, "expected a whole number, without quotation marks"),
        ("three", {"type": "integer"}, "expected a whole number."),
        (4, {"type": "array"}, "expected a list, such as [4]"),
        (True, {"type": "array"}, "expected a list."),
        (3, {"type": "array", "typeWords": "a list of seeds"}, "expected a list of seeds."),
        ({"a": 1}, {"additionalProperties": False}, "a: unknown key. The top level takes no keys."),
    ],
)
def test_broken_rules_are_told_in_plain_words(value, schema, says):
    (problem,) = schema_problems(value, schema)
    assert says in problem


def test_kinds_of_values_have_plain_names():
    values = (None, True, 1, 1.5, "a", [1], (1,), {})
    assert [kind_of(value) for value in values] == [
        "null", "true or false", "a whole number", "a number", "text", "a list", "a list", "a mapping",
    ]  # fmt: skip
