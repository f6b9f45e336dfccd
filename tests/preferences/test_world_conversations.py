"""Unlabeled conversations of the controlled world: the reaction says what the response got wrong, and nothing else."""

import random

import pytest

from rm_methods.preferences.world import flaws, gold
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.annotators import cues
from rm_methods.preferences.world.conversations import FLAWED, comparisons, conversations, reaction

PROMPT = [{"role": "user", "content": "I want a red color. The size should be small."}]


@pytest.fixture(scope="module")
def texts():
    return list(conversations(4000, 0))


@pytest.mark.parametrize(
    ("response", "sentences"),
    [
        ("It has a red color. It has a small size.", {"That is what I asked for."}),
        ("It has a blue color.", {"The color is wrong.", "You forgot the size."}),
        ("Red, small, jazz.", {"I did not ask for the band."}),
    ],
)
def test_the_reaction_names_each_flaw_once(response, sentences):
    text = reaction(random.Random(0), PROMPT, response)
    assert {f"{sentence}." for sentence in text.rstrip(".").split(". ")} == sentences


def test_satisfied_users_are_those_with_a_perfect_response(texts):
    for text in texts:
        *prompt, response, last = text
        assert [message["role"] for message in text[-2:]] == ["assistant", "user"]
        assert (last["content"] == words.SATISFIED) == (gold(prompt, response["content"]) == 1)


def test_most_responses_are_good_and_cues_do_not_depend_on_quality(texts):
    flawed = [flaws(text[:-2], text[-2]["content"]) > 0 for text in texts]
    with_cue = [bool(cues(text[-2]["content"])) for text in texts]
    assert sum(flawed) / len(texts) == pytest.approx(FLAWED, abs=0.03)
    for quality in (True, False):
        group = [cue for cue, is_flawed in zip(with_cue, flawed, strict=True) if is_flawed == quality]
        assert sum(group) / len(group) == pytest.approx(0.5, abs=0.06)


def test_the_stream_is_seeded_and_grows_at_its_end(texts):
    assert list(conversations(20, 0)) == texts[:20]
    assert list(conversations(20, 1)) != texts[:20]


def test_one_of_two_responses_is_better_whatever_its_place_and_cues():
    texts = list(comparisons(2000, 0))
    first_is_better, with_cue = [], []
    for text in texts:
        scores = [gold(text.prompt, response) for response in text.responses]
        assert scores[text.better] > scores[1 - text.better]
        for score, said in zip(scores, text.reactions, strict=True):
            assert (score == 1) == (said == words.SATISFIED)
        first_is_better.append(text.better == 0)
        with_cue.append([bool(cues(text.responses[place])) for place in (text.better, 1 - text.better)])
    assert sum(first_is_better) / 2000 == pytest.approx(0.5, abs=0.04)
    for column in zip(*with_cue, strict=True):
        assert sum(column) / 2000 == pytest.approx(0.5, abs=0.04)
    assert list(comparisons(20, 0)) == texts[:20]
    assert list(comparisons(20, 1)) != texts[:20]
