"""The pairing rule: from the judged responses to one prompt to pairs of a better and a worse one, with an account.

Every pair of responses is accounted for: possible = made + ties + left out, where possible is K (K - 1) / 2 for K
responses.  The result depends on the texts and scores alone, not on the order of the responses.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_methods.errors import DataError
from rm_methods.files import content_hash

ALL = "all"
BEST_AND_WORST = "best_and_worst"
MOST_RESPONSES = 1000  # to one prompt: 499,500 pairs. More is a column that is no prompt, or needs another rule.

# Reasons why a response is in no pair, or two responses make no pair.
EMPTY = "empty response"
UNSCORED = "no score"
CONTRADICTORY = "one response with different scores"
REPEATED = "repeated response"
LONELY = "no other response to its prompt"
TIED = "ties with every other response to its prompt"
RULE = "left out by pairing: best_and_worst"
LIMIT = "left out by pairs_per_prompt"


@dataclass(frozen=True)
class JudgedResponse:
    """One response to a prompt with its score.

    Attributes:
        text: the response.
        score: larger is better, in the units of the source; None if the source has none.
        file, row: where it is from.
    """

    text: str
    score: float | None
    file: str
    row: int


@dataclass(frozen=True)
class PairingRule:
    """How responses to one prompt become pairs.

    Attributes:
        kind: `ALL` (every two responses with different scores) or `BEST_AND_WORST` (one pair a prompt).
        most: at most this many pairs a prompt, a sample fixed by the content; None: all.
        refuse_ties: a tie is an error; otherwise ties are left out and counted.
    """

    kind: str = ALL
    most: int | None = None
    refuse_ties: bool = False


@dataclass
class PairingCounts:
    """Pairs of responses over all prompts.

    Attributes:
        prompts: different prompts; the caller counts them.
        responses: to these prompts.
        possible: K (K - 1) / 2 for every K responses that are compared.
        made: pairs made.
        ties: two different responses with one score.
        left_out: pairs not made for other reasons, by reason.
    """

    prompts: int = 0
    responses: int = 0
    possible: int = 0
    made: int = 0
    ties: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """The counts as a JSON-like value."""
        return {
            "prompts": self.prompts,
            "responses": self.responses,
            "possible": self.possible,
            "made": self.made,
            "ties": self.ties,
            "left_out": dict(self.left_out),
        }


@dataclass(frozen=True)
class Pairing:
    """The pairs of one prompt.

    Attributes:
        pairs: (better, worse), in an order that the texts decide.
        unpaired: the responses that are in no pair, each with the reason.
    """

    pairs: list[tuple[JudgedResponse, JudgedResponse]]
    unpaired: list[tuple[JudgedResponse, str]]


def pair_responses(responses: Sequence[JudgedResponse], rule: PairingRule, counts: PairingCounts) -> Pairing:
    """Pair the responses to one prompt, and add to the counts.

    Raises:
        DataError: a tie, if the rule refuses ties; or more than `MOST_RESPONSES` responses to pair.
    """
    counts.responses += len(responses)
    counts.possible += _pairs_among(len(responses))
    unpaired: list[tuple[JudgedResponse, str]] = []
    rest = list(responses)
    for reason, select in _SELECTIONS:
        kept = select(rest)
        kept_ids = {id(response) for response in kept}
        unpaired += [(response, reason) for response in rest if id(response) not in kept_ids]
        _leave_out(counts, reason, _pairs_among(len(rest)) - _pairs_among(len(kept)))
        rest = kept
    if len(rest) > MOST_RESPONSES and rule.kind == ALL:
        first = rest[0]
        raise DataError(
            f"{first.file}, row {first.row}: its prompt has {len(rest):,} different responses, which make up to "
            f"{_pairs_among(len(rest)):,} pairs; at most {MOST_RESPONSES:,} responses are paired. Check that the "
            f"column of the prompt is right, or set data.options.pairing: {BEST_AND_WORST}."
        )
    by_score = sorted(rest, key=lambda response: (-_score(response), content_hash(response.text)))
    ties = _count_ties(by_score)
    if ties and rule.refuse_ties:
        raise _tie_error(by_score)
    counts.ties += ties
    untied = _pairs_among(len(by_score)) - ties
    pairs = _selected(by_score, untied, rule, counts)
    counts.made += len(pairs)
    return Pairing(pairs, unpaired + _without_partner(by_score, pairs, rule))


def _usable(responses: list[JudgedResponse]) -> list[JudgedResponse]:
    return [response for response in responses if response.text.strip()]


def _scored(responses: list[JudgedResponse]) -> list[JudgedResponse]:
    return [response for response in responses if response.score is not None]


def _consistent(responses: list[JudgedResponse]) -> list[JudgedResponse]:
    scores = defaultdict(set)
    for response in responses:
        scores[response.text].add(response.score)
    return [response for response in responses if len(scores[response.text]) == 1]


def _different(responses: list[JudgedResponse]) -> list[JudgedResponse]:
    first: dict[str, JudgedResponse] = {}
    for response in responses:
        first.setdefault(response.text, response)
    return list(first.values())


_SELECTIONS = ((EMPTY, _usable), (UNSCORED, _scored), (CONTRADICTORY, _consistent), (REPEATED, _different))


def _selected(
    by_score: list[JudgedResponse], untied: int, rule: PairingRule, counts: PairingCounts
) -> list[tuple[JudgedResponse, JudgedResponse]]:
    """The pairs that the rule makes, best response first; those that it leaves out are counted.

    Args:
        untied: number of pairs with different scores.
    """
    if not untied:
        return []
    if rule.kind == BEST_AND_WORST:
        _leave_out(counts, RULE, untied - 1)
        return [(by_score[0], by_score[-1])]
    pairs = [
        (better, worse)
        for position, better in enumerate(by_score)
        for worse in by_score[position + 1 :]
        if better.score != worse.score
    ]
    if rule.most is None or len(pairs) <= rule.most:
        return pairs
    _leave_out(counts, LIMIT, len(pairs) - rule.most)
    text_hash = {response.text: content_hash(response.text) for response in by_score}
    pairs.sort(key=lambda pair: content_hash([text_hash[pair[0].text], text_hash[pair[1].text]]))
    return pairs[: rule.most]


def _without_partner(
    responses: list[JudgedResponse], pairs: list[tuple[JudgedResponse, JudgedResponse]], rule: PairingRule
) -> list[tuple[JudgedResponse, str]]:
    """The different responses that are in no pair, with the reason."""
    paired = {response.text for pair in pairs for response in pair}
    alone = [response for response in responses if response.text not in paired]
    if len(responses) < 2:
        return [(response, LONELY) for response in alone]
    if not pairs:
        return [(response, TIED) for response in alone]
    return [(response, RULE if rule.kind == BEST_AND_WORST else LIMIT) for response in alone]


def _count_ties(responses: list[JudgedResponse]) -> int:
    return sum(_pairs_among(size) for size in Counter(response.score for response in responses).values())


def _tie_error(by_score: list[JudgedResponse]) -> DataError:
    tied = next(pair for pair in itertools.pairwise(by_score) if pair[0].score == pair[1].score)
    first, second = sorted(tied, key=lambda response: (response.file, response.row))
    where = f"{first.file}, row {first.row}"
    other = "" if second.row == first.row else f" and row {second.row}"
    return DataError(
        f"{where}{other}: two responses to one prompt tie, and data.options.ties is 'error'. They begin "
        f"{first.text[:40]!r} and {second.text[:40]!r}. Remove one, or set data.options.ties: drop to leave out and "
        "count ties."
    )


def _leave_out(counts: PairingCounts, reason: str, number: int) -> None:
    if number:
        counts.left_out[reason] += number


def _score(response: JudgedResponse) -> float:
    assert response.score is not None
    return response.score


def _pairs_among(number: int) -> int:
    return number * (number - 1) // 2


def pairing_lines(counts: dict[str, Any]) -> list[str]:
    """The counts (`PairingCounts.to_json`) as lines for a terminal."""
    lines = [
        f"  {counts['possible']:>9,} pairs possible among {counts['responses']:,} responses to "
        f"{counts['prompts']:,} prompts",
        f"  {counts['ties']:>9,} of them are ties: they make no pair",
    ]
    lines += [
        f"  {number:>9,} of them make no pair: {reason}"
        for reason, number in sorted(counts["left_out"].items(), key=lambda item: -item[1])
    ]
    return lines
