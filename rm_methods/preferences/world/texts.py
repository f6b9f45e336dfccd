"""The texts of the controlled world: a scenario becomes a prompt and responses, with the spans that decide."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_methods.preferences.pair import Message
from rm_methods.preferences.world import vocabulary as words


@dataclass(frozen=True)
class Part:
    """One sentence of a text: what it says, the slot it is about, and whether it decides the pair or is a cue."""

    text: str
    slot: str = ""
    deciding: bool = False
    cue: bool = False


@dataclass
class Scenario:
    """The content of one pair before it becomes text: slot -> value for the prompt and for each response."""

    domain: str
    required: dict[str, str]
    chosen: dict[str, str]
    rejected: dict[str, str]
    deciding: dict[str, str] = field(default_factory=dict)  # slot -> flaw of the rejected response


def other_value(rng: random.Random, slot: str, value: str) -> str:
    return rng.choice([other for other in words.SLOTS[slot].values if other != value])


def write_prompt(
    rng: random.Random, scenario: Scenario, settings: dict[str, Any], evidence: str, filler: int
) -> tuple[list[Message], list[list[int]]]:
    """The conversation, and the deciding requirements as [message index, start, end] in characters."""
    sentences = []
    for slot, value in scenario.required.items():
        sentences.append(Part(sentence_about(rng, words.REQUIREMENTS, slot, value), slot, slot in scenario.deciding))
    sentences += [Part(text) for text in filler_sentences(rng, words.PROMPT_FILLER, filler)]
    sentences = _order(rng, sentences, evidence)
    opener = rng.choice(words.OPENERS).format(
        thing=rng.choice(words.DOMAINS[scenario.domain][0]), person=rng.choice(words.PERSONS)
    )
    if rng.random() >= settings["multi_turn_rate"]:
        turns = [[Part(opener), *sentences]]
    else:
        cut = rng.randint(1, len(sentences) - 1) if len(sentences) > 1 else 1
        first = sentences[:cut]
        last = sentences[cut:]
        changeable = [index for index, part in enumerate(first) if part.slot]
        if changeable and evidence != "early" and rng.random() < settings["correction_rate"]:
            first, last = _change_mind(rng, scenario, first, last, rng.choice(changeable))
        turns = [[Part(opener), *first], [Part(rng.choice(words.FOLLOW_UPS))], last or [Part("That is all.")]]
    prompt = []
    spans = []
    for index, turn in enumerate(turns):
        text, deciding, _ = join_parts(turn, " ")
        prompt.append({"role": ("user", "assistant")[index % 2], "content": text})
        spans += [[index, start, end] for start, end in deciding]
    return prompt, spans


def _change_mind(
    rng: random.Random, scenario: Scenario, first: list[Part], last: list[Part], index: int
) -> tuple[list[Part], list[Part]]:
    """Let the first turn name another value for one requirement, and the last turn correct it."""
    old = first[index]
    value = scenario.required[old.slot]
    stale = Part(sentence_about(rng, words.REQUIREMENTS, old.slot, other_value(rng, old.slot, value)), old.slot)
    correction = Part(sentence_about(rng, words.CORRECTIONS, old.slot, value), old.slot, old.deciding)
    return [*first[:index], stale, *first[index + 1 :]], [*last, correction]


def write_response(
    rng: random.Random,
    claims: dict[str, str],
    scenario: Scenario,
    evidence: str,
    cue: str | None,
    filler: int,
    length_cue: int,
    shared_cues: Collection[str] = (),
) -> tuple[str, list[list[int]], list[list[int]]]:
    """The response with its cues, the spans of its deciding evidence, and the spans of the cues.

    Args:
        cue: its kind, "padding" for the length cue of biased annotators, or None.
        shared_cues: kinds of cues that the other response has, too.
    """
    kinds = {cue, *shared_cues}
    extra = length_cue if "length" in kinds else 0
    padding = [
        Part(text, cue=index >= filler)
        for index, text in enumerate(filler_sentences(rng, words.RESPONSE_FILLER, filler + extra))
    ]
    parts = [
        Part(sentence_about(rng, words.CLAIMS, slot, value), slot, slot in scenario.deciding)
        for slot, value in claims.items()
    ]
    if "padding" in kinds:
        parts += [Part(text, cue=True) for text in filler_sentences(rng, words.PADDING, length_cue)]
    parts = _order(rng, parts + padding, evidence)
    if "closing" in kinds:
        parts.append(Part(rng.choice(words.CLOSINGS), cue=True))
    if "flattery" in kinds:
        parts.insert(0, Part(rng.choice(words.FLATTERIES), cue=True))
    if "formatting" in kinds:
        return as_list(parts)
    return join_parts(parts, " ")


def as_list(parts: list[Part]) -> tuple[str, list[list[int]], list[list[int]]]:
    """The sentences as a list under a bold header; the header and the bullets are the cue."""
    text, evidence, cues = join_parts([Part(words.LIST_HEADER, cue=True), *parts], "\n" + words.LIST_BULLET)
    position = 0
    for line in text.split("\n"):
        if position:
            cues.append([position, position + len(words.LIST_BULLET)])
        position += len(line) + 1
    return text, evidence, cues


def sentence_about(rng: random.Random, templates: Sequence[str], slot: str, value: str) -> str:
    return rng.choice(templates).format(value=value, noun=rng.choice(words.SLOTS[slot].nouns))


def filler_sentences(rng: random.Random, sentences: Sequence[str], count: int) -> list[str]:
    """`count` filler sentences; none twice before all were used."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(sentences, len(sentences))
    return [text.format(person=rng.choice(words.PERSONS)) for text in drawn[:count]]


def _order(rng: random.Random, parts: list[Part], evidence: str) -> list[Part]:
    """Shuffle; then, unless `evidence` is "mixed", move what decides the pair to the beginning or to the end."""
    shuffled = rng.sample(parts, len(parts))
    if evidence == "mixed":
        return shuffled
    return sorted(shuffled, key=lambda part: part.deciding == (evidence == "late"))


def join_parts(parts: Sequence[Part], separator: str) -> tuple[str, list[list[int]], list[list[int]]]:
    """The text, and the [start, end] character spans of its deciding and of its cue parts."""
    evidence = []
    cues = []
    position = 0
    for part in parts:
        span = [position, position + len(part.text)]
        if part.deciding:
            evidence.append(span)
        if part.cue:
            cues.append(span)
        position = span[1] + len(separator)
    return separator.join(part.text for part in parts), evidence, cues
