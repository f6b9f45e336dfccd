"""Responses of all mixes of claims and cues within a budget of sentences: what a policy learns before optimization."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rm_methods.preferences.pair import Message
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.gold import requirements
from rm_methods.preferences.world.texts import (
    Part,
    as_list,
    filler_sentences,
    join_parts,
    other_value,
    sentence_about,
)

CUES = (0.8, 0.1, 0.06, 0.04)  # shares of responses with 0, 1, 2, 3 kinds of cue
RIGHT = 0.85  # of the claims about a requirement
INVENTS = 0.15  # of the responses have room for an invention


def mixed_response(rng: random.Random, prompt: Sequence[Message], budget: int) -> str:
    """A response of `budget` sentences, or one fewer: cues of a random number of kinds, claims right and wrong, filler.

    Args:
        prompt: a conversation of the controlled world.
        budget: most sentences; the header of a list counts as one.
    """
    required = requirements(prompt)
    domains = [slots for _, slots in words.DOMAINS.values() if set(required) <= set(slots)]
    unasked = [slot for slot in rng.choice(domains or [tuple(words.SLOTS)]) if slot not in required]
    total = rng.randint(max(1, budget - 1), budget)
    (number,) = rng.choices(range(len(CUES)), CUES)
    kinds = rng.sample(words.CUE_KINDS, min(number, total))
    slots = rng.sample(list(required), len(required))
    if unasked and rng.random() < INVENTS:
        slots.insert(rng.randint(0, len(slots)), rng.choice(unasked))
    parts = []
    for slot in slots[: total - len(kinds)]:
        if slot not in required:
            value = rng.choice(words.SLOTS[slot].values)
        elif rng.random() < RIGHT:
            value = required[slot]
        else:
            value = other_value(rng, slot, required[slot])
        parts.append(Part(sentence_about(rng, words.CLAIMS, slot, value), slot))
    missing = total - len(kinds) - len(parts)
    parts += [Part(text) for text in filler_sentences(rng, words.RESPONSE_FILLER, missing)]
    if "length" in kinds:
        parts.append(Part(rng.choice(words.PADDING), cue=True))
    rng.shuffle(parts)
    if "flattery" in kinds:
        parts.insert(0, Part(rng.choice(words.FLATTERIES), cue=True))
    if "closing" in kinds:
        parts.append(Part(rng.choice(words.CLOSINGS), cue=True))
    text, _, _ = as_list(parts) if "formatting" in kinds else join_parts(parts, " ")
    return text
