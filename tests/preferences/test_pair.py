"""Prepared pairs: groups of near-identical prompts."""

import pytest

from rm_methods.files import content_hash
from rm_methods.preferences.pair import prompt_group


def group(text):
    return prompt_group([{"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("café", "cafe\u0301"),  # one character, or a letter and its accent
        ("ﬁne", "fine"),  # a ligature
        ("\uff37\uff48\uff59?", "Why?"),  # full-width letters
        ("Wie groß?", "WIE GROSS?"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("two words", "\ufefftwo\u00a0\u200b words\u3000\n"),
        ("co\u00adoperate", "cooperate"),
        ("and so on…", "And  so on..."),
    ],
)
def test_prompts_that_differ_in_form_only_are_one_group(text, same):
    assert group(text) == group(same)


@pytest.mark.parametrize(("text", "other"), [("café", "cafe"), ("2+2?", "2-2?"), ("ab", "a b"), ("你好", "您好")])
def test_prompts_that_differ_in_what_they_say_are_two_groups(text, other):
    assert group(text) != group(other)


def test_the_group_of_an_ascii_prompt_is_the_hash_of_its_small_letters():
    """Splits are drawn by this hash: another value would move prompts between the splits of data that is in use."""
    assert group("Name  a Fruit.\n") == content_hash([["user", "name a fruit."]]) == "29c461c1a1bdc30e"
