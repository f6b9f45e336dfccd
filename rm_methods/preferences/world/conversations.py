"""Unlabeled conversations of the controlled world: a user asks, an assistant answers, and the user reacts.

A language model that has learned to predict the reaction has learned to compare a response with its prompt
(docs/world.md).  In a *comparison* the user gets two responses and reacts to each.  Cues do not depend on quality.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rm_methods.preferences.pair import Message
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.generator import OPTIONS
from rm_methods.preferences.world.gold import assess, gold
from rm_methods.preferences.world.texts import Scenario, other_value, write_prompt, write_response

FLAWED = 0.3  # of the responses
_FLAWED_IN_COMPARISON = 0.5  # of the responses, so that fewer of two are equally good
_NUMBERS_OF_FLAWS = {1: 0.5, 2: 0.3, 3: 0.2}
_FLAWS = {"contradicts": 0.6, "omits": 0.2, "invents": 0.2}
_CUES = (None, "closing", "padding", "formatting", "flattery")
_WITH_CUE = 0.5
_MOST_FILLER = 2  # sentences in a response
_REACTIONS = {"contradicted": words.CONTRADICTED, "omitted": words.OMITTED, "invented": words.INVENTED}


@dataclass(frozen=True)
class Comparison:
    """A prompt and two responses, one of them better by gold.

    Attributes:
        responses: the first and the second.
        reactions: what the user says to each.
        better: index of the better response.
    """

    prompt: list[Message]
    responses: tuple[str, str]
    reactions: tuple[str, str]
    better: int


def conversations(count: int, seed: int) -> Iterator[list[Message]]:
    """Conversations whose last message is the user's reaction; equal arguments give equal texts.

    Args:
        count: how many.
        seed: of the stream, which no pair of the world shares.
    """
    rng = random.Random(f"controlled world/{seed}/conversations")
    settings = {name: schema["default"] for name, schema in OPTIONS.items()}
    for _ in range(count):
        scenario, _ = _draw_scenario(rng, settings)
        prompt, _ = write_prompt(rng, scenario, settings, "mixed", rng.randint(0, settings["filler"]))
        response = _draw_response(rng, scenario, scenario.chosen, settings)
        yield [
            *prompt,
            {"role": "assistant", "content": response},
            {"role": "user", "content": reaction(rng, prompt, response)},
        ]


def comparisons(count: int, seed: int) -> Iterator[Comparison]:
    """Prompts with two responses, one of them better; equal arguments give equal comparisons.

    Args:
        count: how many.
        seed: of the stream, which no conversation shares.
    """
    rng = random.Random(f"controlled world/{seed}/comparisons")
    settings = {name: schema["default"] for name, schema in OPTIONS.items()}
    made = 0
    while made < count:
        scenario, slots = _draw_scenario(rng, settings)
        prompt, _ = write_prompt(rng, scenario, settings, "mixed", rng.randint(0, settings["filler"]))
        first, second = (
            _draw_response(rng, scenario, _draw_claims(rng, scenario.required, slots, _FLAWED_IN_COMPARISON), settings)
            for _ in range(2)
        )
        golds = [gold(prompt, response) for response in (first, second)]
        if golds[0] == golds[1]:
            continue
        made += 1
        reactions = (reaction(rng, prompt, first), reaction(rng, prompt, second))
        yield Comparison(prompt, (first, second), reactions, better=int(golds[1] > golds[0]))


def reaction(rng: random.Random, prompt: list[Message], response: str) -> str:
    """What the user says: one sentence for each flaw, in random order, or that all is well."""
    verdicts = [(slot, verdict) for slot, verdict in assess(prompt, response).items() if verdict != "met"]
    rng.shuffle(verdicts)
    sentences = [_REACTIONS[verdict].format(noun=words.SLOTS[slot].nouns[0]) for slot, verdict in verdicts]
    return " ".join(sentences) or words.SATISFIED


def reaction_openings(tokenizer) -> tuple[int, list[int]]:
    """The first token of a reaction: that all is well, and with a flaw of each kind."""
    satisfied, *flawed = first_tokens(tokenizer, [words.SATISFIED, *_REACTIONS.values()])
    return satisfied, flawed


def first_tokens(tokenizer, texts: Sequence[str]) -> list[int]:
    """The first token of each text."""
    return [ids[0] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _draw_response(rng: random.Random, scenario: Scenario, claims: dict[str, str], settings: dict[str, Any]) -> str:
    """A response with these claims; every second one has a cue."""
    cue = rng.choice(_CUES[1:]) if rng.random() < _WITH_CUE else None
    filler = rng.randint(0, _MOST_FILLER)
    return write_response(rng, claims, scenario, "mixed", cue, filler, settings["length_cue"])[0]


def _draw_scenario(rng: random.Random, settings: dict[str, Any]) -> tuple[Scenario, list[str]]:
    """Requirements, and one response ("chosen"; the other is the same) that mostly meets them all; the slots that the
    user leaves open."""
    domain = rng.choice(sorted(words.DOMAINS))
    slots = list(words.DOMAINS[domain][1])
    rng.shuffle(slots)
    count = rng.randint(settings["min_requirements"], settings["max_requirements"])
    required = {slot: rng.choice(words.SLOTS[slot].values) for slot in slots[:count]}
    claims = _draw_claims(rng, required, slots[count:], FLAWED)
    return Scenario(domain, required, claims, claims), slots[count:]


def _draw_claims(rng: random.Random, required: dict[str, str], unasked: list[str], flawed: float) -> dict[str, str]:
    """What a response says: with the rate `flawed` it has one to three flaws.

    Args:
        unasked: slots that the user leaves open.
    """
    claims = dict(required)
    if rng.random() < flawed:
        free = list(required)
        unasked = list(unasked)
        for _ in range(rng.choices(list(_NUMBERS_OF_FLAWS), list(_NUMBERS_OF_FLAWS.values()))[0]):
            flaw = rng.choices(list(_FLAWS), list(_FLAWS.values()))[0]
            if flaw == "invents" and unasked:
                slot = unasked.pop()
                claims[slot] = rng.choice(words.SLOTS[slot].values)
            elif free:
                slot = free.pop()
                if flaw == "omits":
                    del claims[slot]
                else:
                    claims[slot] = other_value(rng, slot, required[slot])
    return claims
