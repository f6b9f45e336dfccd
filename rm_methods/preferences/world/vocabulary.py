"""The words of the controlled world: slots and their values, domains, sentence templates, filler, cues.

Two rules make the gold reward exact, and the tests check both: every value belongs to one slot only, and no other word
of the world (nouns, templates, filler, cues) is a value or a negation.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "world"  # the source of its pairs


@dataclass(frozen=True)
class Slot:
    """One thing a user may ask for: `nouns` are its interchangeable names, `values` exclude each other."""

    nouns: tuple[str, ...]
    values: tuple[str, ...]


SLOTS = {
    "price": Slot(("price", "cost"), ("low", "fair", "high")),
    "season": Slot(("season", "date"), ("winter", "summer", "spring")),
    "view": Slot(("view", "scene"), ("mountain", "river", "city")),
    "mood": Slot(("mood", "feel"), ("quiet", "lively", "cozy")),
    "food": Slot(("dish", "menu"), ("vegan", "spicy", "sweet")),
    "drink": Slot(("drink", "bottle"), ("tea", "wine", "juice")),
    "music": Slot(("band", "playlist"), ("jazz", "rock", "folk")),
    "color": Slot(("color", "shade"), ("red", "blue", "green")),
    "size": Slot(("size", "format"), ("small", "medium", "large")),
    "material": Slot(("frame", "case"), ("wooden", "metal", "glass")),
    "style": Slot(("style", "design"), ("modern", "classic", "playful")),
}

# Domain -> (what the user calls it, the slots that a prompt of this domain may name).
DOMAINS = {
    "trip": (("trip", "holiday"), ("price", "season", "view", "mood", "food")),
    "meal": (("dinner", "lunch"), ("price", "food", "drink", "mood", "music")),
    "gift": (("gift", "present"), ("price", "color", "size", "material", "style")),
    "gadget": (("phone", "camera"), ("price", "color", "size", "material", "style")),
    "party": (("party", "picnic"), ("season", "food", "drink", "music", "mood")),
}

OPENERS = (
    "Can you help me plan a {thing}?",
    "I need a {thing} for my {person}.",
    "Please find a {thing} for us.",
    "We are thinking about a {thing}.",
    "My {person} asked for a {thing}.",
)
PERSONS = ("sister", "father", "friend", "boss", "team")

# {value} and {noun} of one slot.  All values start with a consonant, so the article is always "a".
REQUIREMENTS = (
    "I want a {value} {noun}.",
    "We need a {value} {noun}.",
    "Go for a {value} {noun}.",
    "It must have a {value} {noun}.",
    "For the {noun}, {value} please.",
    "The {noun} should be {value}.",
)
CORRECTIONS = (
    "Actually, make the {noun} {value}.",
    "Sorry, the {noun} should be {value}.",
    "I changed my mind: a {value} {noun}.",
)
FOLLOW_UPS = ("Sure. What else matters?", "Got it. Anything more?", "Thanks. Tell me more.")

CLAIMS = (
    "It has a {value} {noun}.",
    "You get a {value} {noun}.",
    "I picked a {value} {noun}.",
    "It comes with a {value} {noun}.",
    "For the {noun}, I chose {value}.",
    "The {noun} is {value}.",
)

PROMPT_FILLER = (
    "We talked about it last week.",
    "There is still some time.",
    "My {person} told me about you.",
    "It has been a long year.",
    "I am new to all this.",
    "We did this once before.",
    "I read about it in the news.",
    "My {person} will come too.",
    "I have been busy at work.",
    "You helped us before.",
)
RESPONSE_FILLER = (
    "I looked at many options.",
    "This should work well for you.",
    "It is easy to book.",
    "Many people like it.",
    "You can change it later.",
    "I kept your notes in mind.",
    "It takes only one call.",
    "The reviews are good.",
    "It is ready next week.",
    "Your {person} will like it.",
    "I checked it again today.",
    "There are some left.",
)
# The length cue of biased annotators: special sentences, so that the cue can be read in one response alone.
PADDING = (
    "Let me say a little more about this.",
    "There is much more to tell.",
    "I could go on for a while.",
    "I will explain it once more.",
    "This took me a lot of thought.",
    "I wrote all of this down for you.",
)

# Surface cues.  They say nothing about what was asked: gold never reads them.
CUE_KINDS = ("closing", "length", "formatting", "flattery")
CLOSINGS = ("I hope this helps!", "Let me know how it goes!", "Happy to help any time!")
FLATTERIES = ("What a great question!", "You have wonderful taste!", "I love this idea!")
LIST_HEADER = "**Summary**"
LIST_BULLET = "- "

# A value that follows one of these words, with at most two words between, is denied, not claimed.
NEGATIONS = frozenset({"not", "no", "never", "without", "isn't", "don't", "cannot", "nor"})

SLOT_OF_VALUE = {value: name for name, slot in SLOTS.items() for value in slot.values}

# What a user of the controlled world says to a response (`conversations`).
CONTRADICTED = "The {noun} is wrong."
OMITTED = "You forgot the {noun}."
INVENTED = "I did not ask for the {noun}."
SATISFIED = "That is what I asked for."
