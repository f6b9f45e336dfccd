"""The pairing rule: pairs derived by hand, every possible pair accounted for, and no dependence on the order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_methods.errors import DataError
from rm_methods.preferences import pairing
from rm_methods.preferences.pairing import JudgedResponse, PairingCounts, PairingRule, pair_responses


def responses(*judged):
    return [JudgedResponse(text, score, "f", row) for row, (text, score) in enumerate(judged, start=1)]


def paired(judged, **rule):
    counts = PairingCounts()
    result = pair_responses(responses(*judged), PairingRule(**rule), counts)
    return {(better.text, worse.text) for better, worse in result.pairs}, counts, result


def test_every_two_responses_with_different_scores_are_a_pair():
    pairs, counts, _ = paired([("a", 1.0), ("b", 3.0), ("c", 2.0), ("d", 3.0)])
    assert pairs == {("b", "a"), ("b", "c"), ("d", "a"), ("d", "c"), ("c", "a")}
    assert (counts.possible, counts.made, counts.ties, dict(counts.left_out)) == (6, 5, 1, {})


def test_best_and_worst_are_one_pair():
    pairs, counts, result = paired([("a", 1.0), ("b", 3.0), ("c", 2.0), ("d", 2.0)], kind=pairing.BEST_AND_WORST)
    assert pairs == {("b", "a")}
    assert (counts.possible, counts.ties, dict(counts.left_out)) == (6, 1, {pairing.RULE: 4})
    assert {(response.text, reason) for response, reason in result.unpaired} == {
        ("c", pairing.RULE),
        ("d", pairing.RULE),
    }


def test_at_most_so_many_pairs_a_prompt():
    judged = [(letter, float(score)) for score, letter in enumerate("abcde")]
    every, _, _ = paired(judged)
    some, counts, _ = paired(judged, most=3)
    assert len(every) == 10
    assert len(some) == 3
    assert some < every
    assert dict(counts.left_out) == {pairing.LIMIT: 7}
    fewer, _, _ = paired(judged, most=2)
    assert fewer < some
    # A sample, not the best responses first: over prompts with other texts, the pairs are not of one response.
    chosen = set()
    for number in range(10):
        ((better, _),), _, _ = paired([(f"{letter}{number}", score) for letter, score in judged], most=1)
        chosen.add(better[0])
    assert len(chosen) >= 3


def test_a_response_that_occurs_twice():
    # Three copies of "a" with one score are one response: a-a three times, and two of three pairs of "a" with "b".
    pairs, counts, _ = paired([("a", 1.0), ("b", 2.0), ("a", 1.0), ("a", 1.0)])
    assert pairs == {("b", "a")}
    assert dict(counts.left_out) == {pairing.REPEATED: 5}
    # With different scores it is unclear which one holds, so "a" is in no pair: a-a, a-b, a-c, a-b, a-c.
    pairs, counts, result = paired([("a", 1.0), ("b", 2.0), ("a", 3.0), ("c", 0.0)])
    assert pairs == {("b", "c")}
    assert dict(counts.left_out) == {pairing.CONTRADICTORY: 5}
    assert [(response.row, reason) for response, reason in result.unpaired] == [
        (1, pairing.CONTRADICTORY),
        (3, pairing.CONTRADICTORY),
    ]


def test_responses_without_text_or_score_are_left_out_with_the_reason():
    pairs, counts, _ = paired([("a", 1.0), (" ", 5.0), ("b", None), ("c", 2.0)])
    assert pairs == {("c", "a")}
    assert dict(counts.left_out) == {pairing.EMPTY: 3, pairing.UNSCORED: 2}


@pytest.mark.parametrize(
    ("judged", "reason"),
    [([("a", 1.0)], pairing.LONELY), ([("a", 1.0), ("b", 1.0), ("c", 1.0)], pairing.TIED)],
)
def test_no_pair_can_be_made(judged, reason):
    pairs, counts, result = paired(judged)
    assert not pairs
    assert {reason for _, reason in result.unpaired} == {reason}
    assert len(result.unpaired) == len(judged)
    assert counts.ties == len(judged) * (len(judged) - 1) / 2


def test_ties_are_an_error_on_request():
    with pytest.raises(DataError, match=r"f, row 2 and row 3: two responses .* tie.*ties is 'error'.*ties: drop"):
        paired([("a", 1.0), ("b", 2.0), ("c", 2.0)], refuse_ties=True)
    pairs, _, _ = paired([("a", 1.0), ("b", 2.0), ("b", 2.0)], refuse_ties=True)  # a repetition is no tie
    assert pairs == {("b", "a")}


def test_a_prompt_with_too_many_responses_is_refused():
    judged = [(str(number), float(number)) for number in range(pairing.MOST_RESPONSES + 1)]
    with pytest.raises(DataError, match=r"1,001 different responses, .* 500,500 pairs.*pairing: best_and_worst"):
        paired(judged)
    pairs, _, _ = paired(judged, kind=pairing.BEST_AND_WORST)
    assert pairs == {("1000", "0")}


SCORES = st.one_of(st.none(), st.integers(0, 3).map(float), st.floats(-1, 1))
JUDGED = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", "e", "f", " ", ""]), SCORES), max_size=9)
RULES = st.builds(
    PairingRule,
    kind=st.sampled_from([pairing.ALL, pairing.BEST_AND_WORST]),
    most=st.one_of(st.none(), st.integers(1, 5)),
)


@given(st.lists(JUDGED, max_size=4), RULES)
def test_every_possible_pair_is_made_a_tie_or_left_out_with_a_reason(prompts, rule):
    counts = PairingCounts()
    made = 0
    for judged in prompts:
        result = pair_responses(responses(*judged), rule, counts)
        made += len(result.pairs)
        in_pairs = {id(response) for pair in result.pairs for response in pair}
        assert len(in_pairs) + len(result.unpaired) == len(judged)
        assert not in_pairs & {id(response) for response, _ in result.unpaired}
        for better, worse in result.pairs:
            assert better.score > worse.score
            assert better.text != worse.text
    assert counts.possible == sum(len(judged) * (len(judged) - 1) // 2 for judged in prompts)
    assert counts.made == made
    assert counts.possible == counts.made + counts.ties + sum(counts.left_out.values())


@given(JUDGED, RULES, st.randoms())
def test_the_order_of_the_responses_changes_nothing(judged, rule, shuffler: random.Random):
    shuffled = list(judged)
    shuffler.shuffle(shuffled)
    first, second = PairingCounts(), PairingCounts()
    one = pair_responses(responses(*judged), rule, first)
    other = pair_responses(responses(*shuffled), rule, second)
    assert [(better.text, worse.text) for better, worse in one.pairs] == [
        (better.text, worse.text) for better, worse in other.pairs
    ]
    assert first == second
