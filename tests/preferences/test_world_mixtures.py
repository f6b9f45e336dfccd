"""Responses of all mixes of claims and cues within a budget of sentences."""

import random
from collections import Counter

import pytest

from rm_methods.preferences.world import generate, gold, statements
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.annotators import cues
from rm_methods.preferences.world.mixtures import mixed_response

BUDGET = 4


@pytest.fixture(scope="module")
def mixes():
    options = {"annotator": {}, "sentence_budget": BUDGET, "min_requirements": 4, "max_requirements": 4}
    pairs = generate(train_pairs=400, validation_pairs=0, test_pairs=0, **options)
    return [
        (pair.prompt, mixed_response(random.Random(f"{pair.group}/{k}"), pair.prompt, BUDGET))
        for pair in pairs
        for k in range(4)
    ]


def length(text):
    return text.count(".") + text.count("!") + text.count(words.LIST_HEADER)


def test_no_mix_is_longer_than_the_budget(mixes):
    assert {length(text) for _, text in mixes} == {BUDGET - 1, BUDGET}


def test_every_number_of_cues_occurs_and_each_takes_the_place_of_a_claim(mixes):
    numbers = Counter(len(cues(text)) for _, text in mixes)
    assert {0, 1, 2, 3} <= set(numbers)
    for prompt, text in mixes:
        assert len(statements(text)[0]) <= BUDGET - len(cues(text))
        if cues(text):
            assert gold(prompt, text) < 1


def test_perfect_and_empty_mixes_occur(mixes):
    rewards = [gold(prompt, text) for prompt, text in mixes]
    assert max(rewards) == 1.0
    assert min(rewards) < 0
    assert any(not statements(text)[0] for _, text in mixes)


def test_equal_generators_give_equal_responses_and_any_prompt_is_accepted():
    prompt = [{"role": "user", "content": "Hello there."}]
    assert mixed_response(random.Random(1), prompt, 3) == mixed_response(random.Random(1), prompt, 3)
