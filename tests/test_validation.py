import math

import pytest

from rm_methods.validation import schema_problems

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
