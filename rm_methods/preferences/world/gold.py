"""The gold reward of the controlled world: exact, computed from the text alone, defined for every string.

    gold = (met - contradicted - 0.5 * invented) / max(1, requirements)

* A *requirement* is a slot that a user message gives a value; the last value given counts, so users can change their
  mind.
* A slot is *met* when the response claims the required value and no other value of the slot, and denies it nowhere.
* It is *contradicted* when the response claims another value (alone, or beside the right one: naming all values never
  pays) or denies the required one.  A required slot of which the response says nothing counts zero.
* *Invented* is a slot that the response gives values although nobody asked.  Each such slot counts once.

Claims form a set, so repetition, length, order, closing phrases and formatting change nothing.  A perfect response has
gold 1, an empty one 0, and guessing among three values loses one third of a requirement on average.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from rm_methods.preferences.pair import Message
from rm_methods.preferences.world.vocabulary import NEGATIONS, SLOT_OF_VALUE

INVENTION_COST = 0.5
FLAW_WEIGHTS = {"contradicted": 1.0, "omitted": 0.5, "invented": 0.5}
NEGATION_REACH = 3  # words: "not red", "not a red", "not really so red"

# Words (an apostrophe may join two halves) and marks; a negation does not reach beyond a mark or "but".
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[.!?;:,\n]")
_BREAKS = frozenset([*".!?;:,\n", "but"])


def gold(prompt: Sequence[Message] | str, response: str) -> float:
    """Gold reward of a response: a float in (-infinity, 1], 1 for a response that meets every requirement and invents
    nothing.

    Args:
        prompt: the conversation, or one user message as a string.
        response: any string: empty, unknown words, any Unicode, any length.  Takes linear time.
    """
    verdicts = list(assess(prompt, response).values())
    met, contradicted, invented = (verdicts.count(kind) for kind in ("met", "contradicted", "invented"))
    return (met - contradicted - INVENTION_COST * invented) / max(1, len(verdicts) - invented)


def flaws(prompt: Sequence[Message] | str, response: str) -> float:
    """The flaws of a response as annotators weigh them: 1 for each contradicted requirement, 1/2 for each omitted one
    and for each invention; arguments as in `gold`."""
    return sum(FLAW_WEIGHTS.get(verdict, 0.0) for verdict in assess(prompt, response).values())


def assess(prompt: Sequence[Message] | str, response: str) -> dict[str, str]:
    """The verdict on each slot: "met", "contradicted" or "omitted" for requirements, then "invented" for others."""
    required = requirements(prompt)
    claimed, denied = statements(response)
    verdicts: dict[str, str] = {}
    for slot, value in required.items():
        values = claimed.get(slot, set())
        if values - {value} or value in denied.get(slot, ()):
            verdicts[slot] = "contradicted"
        else:
            verdicts[slot] = "met" if values else "omitted"
    return verdicts | {slot: "invented" for slot in claimed if slot not in required}


def requirements(prompt: Sequence[Message] | str) -> dict[str, str]:
    """The requirements of the user: slot -> value.  Only user messages count; the last value named for a slot wins."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    required: dict[str, str] = {}
    for message in messages:
        if message["role"] == "user":
            required.update((slot, value) for slot, value, is_denied in _mentions(message["content"]) if not is_denied)
    return required


def statements(response: str) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The claims of a response: (claimed, denied), each slot -> set of values."""
    claimed: dict[str, set[str]] = {}
    denied: dict[str, set[str]] = {}
    for slot, value, is_denied in _mentions(response):
        (denied if is_denied else claimed).setdefault(slot, set()).add(value)
    return claimed, denied


# A pair's texts are read for its gold, its flaws and its utility, and a prompt again for every response.
@lru_cache(maxsize=1024)
def _mentions(text: str) -> tuple[tuple[str, str, bool], ...]:
    """Every mention of a value in the text, in order: (slot, value, whether it is denied)."""
    mentions = []
    reach = 0
    for match in _TOKEN.finditer(text.lower()):
        word = match.group().replace("’", "'")
        if word in _BREAKS:
            reach = 0
        elif word in NEGATIONS:
            reach = NEGATION_REACH
        else:
            if word in SLOT_OF_VALUE:
                mentions.append((SLOT_OF_VALUE[word], word, reach > 0))
            reach = max(0, reach - 1)
    return tuple(mentions)
