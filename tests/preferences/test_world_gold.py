"""The gold reward: values derived by hand, and that it neither crashes nor can be hacked."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_methods.preferences.world import assess, flaws, gold, requirements, statements
from rm_methods.preferences.world import vocabulary as words

PROMPT = [{"role": "user", "content": "I need a gift for my boss. I want a red color. The size should be small."}]
VALUES = [value for slot in words.SLOTS.values() for value in slot.values]
any_response = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*VALUES, *words.NEGATIONS, "the", ".", "\n", *words.CLOSINGS]), max_size=40).map(
        " ".join
    ),
)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", 0.0),
        ("It has a red color. It has a small size.", 1.0),  # (2 met) / 2
        ("It has a red color.", 0.5),  # (1 met) / 2
        ("It has a blue color. It has a small size.", 0.0),  # (1 met - 1 contradicted) / 2
        ("It has a blue color. The size is large.", -1.0),  # (-2 contradicted) / 2
        ("It has a red color. It has a small size. It has a low price.", 0.75),  # (2 met - 0.5 invented) / 2
        ("A low price, a high price, a fair price.", -0.25),  # one invented slot, however many values
        ("RED! **small**", 1.0),  # case and marks do not matter
        ("It is not red. The size is small.", 0.0),  # 1 met, 1 contradicted: the required value is denied
        ("It is not blue but red. The size is small.", 1.0),  # denying a wrong value is neither claim nor fault
        ("It is not blue. The size is small.", 0.5),  # ... and meets nothing
        ("No. Red and small.", 1.0),  # a full stop ends the reach of a negation
        ("reddish, infrared, smaller", 0.0),  # other words are not values
        ("It isn’t red.", -0.5),
    ],
)
def test_gold_equals_the_value_derived_by_hand(response, expected):
    assert gold(PROMPT, response) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("response", "expected", "verdicts"),
    [
        ("", 1.0, {"size": "omitted", "color": "omitted"}),
        ("It has a red color. It has a small size.", 0.0, {"size": "met", "color": "met"}),
        ("It has a blue color.", 1.5, {"size": "omitted", "color": "contradicted"}),
        (
            "Red, small, a low price, jazz.",
            1.0,
            {"size": "met", "color": "met", "price": "invented", "music": "invented"},
        ),
    ],
)
def test_flaws_are_whole_for_contradictions_and_half_for_omissions_and_inventions(response, expected, verdicts):
    assert flaws(PROMPT, response) == expected
    assert assess(PROMPT, response) == verdicts


def test_prompt_may_be_a_string():
    assert gold(PROMPT[0]["content"], "a red color") == gold(PROMPT, "a red color") == 0.5


def test_without_requirements_only_inventions_count():
    assert gold("Hello there.", "Nice to meet you.") == 0.0
    assert gold("Hello there.", "It is red and small.") == -1.0


def test_last_value_of_the_user_wins_and_the_assistant_does_not_count():
    prompt = [
        *PROMPT,
        {"role": "assistant", "content": "Is a blue color and a low price fine?"},
        {"role": "user", "content": "Actually, make the size large."},
    ]
    assert requirements(prompt) == {"color": "red", "size": "large"}
    assert gold(prompt, "A red color and a large size.") == 1.0
    assert gold(prompt, "A red color and a small size.") == 0.0


def test_naming_all_values_is_worse_than_saying_nothing():
    assert gold(PROMPT, "red blue green small medium large") == -1.0
    assert gold(PROMPT, " ".join(VALUES)) < -1.0


def test_claim_and_denial_of_one_value_contradict():
    assert gold(PROMPT, "The color is red. The color is not red.") == -0.5
    assert statements("Red. Not red.") == ({"color": {"red"}}, {"color": {"red"}})


@settings(max_examples=200, deadline=None)
@given(response=any_response)
def test_any_text_has_a_finite_repeatable_gold_that_ignores_cues_and_repetition(response):
    value = gold(PROMPT, response)
    assert -1 - 0.5 * len(words.SLOTS) <= value <= 1
    assert gold(PROMPT, response) == value
    assert gold(PROMPT, f"{response}\n{response}\n{response}") == value
    for cue in (
        *words.CLOSINGS,
        *words.FLATTERIES,
        words.LIST_HEADER,
        *(text.format(person="boss") for text in words.RESPONSE_FILLER),
    ):
        assert gold(PROMPT, f"{cue}\n{response}\n{cue}") == value


@settings(max_examples=100, deadline=None)
@given(prompt=any_response, response=any_response)
def test_any_prompt_is_accepted(prompt, response):
    assert gold(prompt, response) <= 1


@pytest.mark.parametrize("unit", ["a", "red ", "not ", "'", "a'", "\n", " ", "é́", "😀", "_", "\ud800"])
def test_megabytes_take_linear_time(unit):
    start = time.process_time()
    gold(PROMPT, unit * (2_000_000 // len(unit)))
    assert time.process_time() - start < 5
