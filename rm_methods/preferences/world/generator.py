"""The generator of the controlled world: options -> preference pairs, byte-identical in every process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_methods.errors import ConfigError
from rm_methods.preferences.pair import Message, PreferencePair, make_pair
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.gold import gold
from rm_methods.validation import schema_problems

SOURCE = "world"
TEST_SPLITS = ("iid", "cue_neutral", "cue_reversed", "long_context", "early_evidence", "late_evidence")
SPLITS = ("train", "validation", *TEST_SPLITS)
# "omits" and "invents" are equally frequent, so that the number of claims tells nothing.
FLAWS = {"contradicts": 0.84, "omits": 0.08, "invents": 0.08}
MOST_REPEATS = 500  # after so many repeated prompts in a row, nearly all prompts of the world are used up


def _whole(default: int, least: int, most: int, description: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most, "default": default, "description": description}


def _rate(default: float, description: str) -> dict[str, Any]:
    return {"type": "number", "minimum": 0.0, "maximum": 1.0, "default": default, "description": description}


OPTIONS: dict[str, dict[str, Any]] = {
    "seed": _whole(0, 0, 2**32, "Seed of the world; every split draws from its own stream."),
    "train_pairs": _whole(4000, 1, 1_000_000, "Pairs in the train split."),
    "validation_pairs": _whole(300, 0, 100_000, "Pairs in the validation split."),
    "test_pairs": _whole(600, 0, 100_000, "Pairs in each of the six test splits."),
    "cue_agreement": _rate(
        0.85, "Rate at which the better response has the cue (train, validation, iid); cue_reversed: 1 minus it."
    ),
    "cue_kinds": {
        "type": "array",
        "items": {"enum": list(words.CUE_KINDS)},
        "minItems": 1,
        "uniqueItems": True,
        "default": list(words.CUE_KINDS),
        "description": "Surface cues in use; each pair has one of them, drawn evenly.",
    },
    "length_cue": _whole(2, 1, 50, "Filler sentences that the length cue adds."),
    "min_requirements": _whole(2, 1, 4, "Fewest requirements in a prompt."),
    "max_requirements": _whole(3, 1, 4, "Most requirements in a prompt."),
    "max_deciding": _whole(
        3, 1, 4, "Most flaws that only the rejected response has (never more than requirements); fewer is harder."
    ),
    "shared_flaw_rate": _rate(
        0.05, "Rate at which a requirement that does not decide is contradicted in both responses."
    ),
    "multi_turn_rate": _rate(0.05, "Share of prompts that take two user turns."),
    "correction_rate": _rate(
        0.3, "Share of two-turn prompts in which the user takes back a requirement (never in early_evidence)."
    ),
    "evidence": {
        "type": "string",
        "enum": ["early", "mixed", "late"],
        "default": "mixed",
        "description": "Position of the deciding evidence in prompt and responses; early_evidence and late_evidence "
        "set it themselves.",
    },
    "filler": _whole(1, 0, 100, "Most filler sentences in a prompt or response (evenly 0 to this)."),
    "long_multiplier": _whole(
        5,
        1,
        1000,
        "long_context: fewest filler sentences in a text, in units of max(1, filler); the most is twice that.",
    ),
}


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


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Fill in defaults and check.

    Raises:
        ConfigError: naming every unknown, ill-typed or out-of-range option.
    """
    problems = schema_problems(options, {"type": "object", "properties": OPTIONS, "additionalProperties": False})
    settings = {name: schema["default"] for name, schema in OPTIONS.items()} | options
    if not problems and settings["min_requirements"] > settings["max_requirements"]:
        lowest, highest = settings["min_requirements"], settings["max_requirements"]
        problems.append(
            f"min_requirements: {lowest} is above max_requirements ({highest}). Lower it, or raise max_requirements."
        )
    if problems:
        raise ConfigError(problems, "the options of the controlled world")
    return settings


def generate(**options: Any) -> list[PreferencePair]:
    """All pairs of the world, split by split in the order of `SPLITS`; same options give byte-identical pairs.

    Args:
        options: any of `OPTIONS`.

    Raises:
        ConfigError: for options that are unknown or out of range, or that leave too few different prompts.
    """
    settings = resolve(options)
    sizes = {"train": settings["train_pairs"], "validation": settings["validation_pairs"]}
    groups: set[str] = set()
    pairs: dict[str, list[PreferencePair]] = {}
    # Test splits first: the later split draws a repeated prompt anew, so the test data do not depend on the train size.
    for split in reversed(SPLITS):
        pairs[split] = _generate_split(split, sizes.get(split, settings["test_pairs"]), settings, groups)
    return [pair for split in SPLITS for pair in pairs[split]]


def _generate_split(split: str, size: int, settings: dict[str, Any], groups: set[str]) -> list[PreferencePair]:
    """Draw `size` pairs whose prompts are in no other pair; adds their groups to `groups`."""
    rng = random.Random(f"controlled world/{settings['seed']}/{split}")
    evidence = {"early_evidence": "early", "late_evidence": "late"}.get(split, settings["evidence"])
    agreement = {
        "train": settings["cue_agreement"],
        "validation": settings["cue_agreement"],
        "iid": settings["cue_agreement"],
    }
    agreement["cue_reversed"] = 1.0 - settings["cue_agreement"]
    fewest = 0
    most = settings["filler"]
    if split == "long_context":
        fewest = settings["long_multiplier"] * max(1, settings["filler"])
        most = 2 * fewest
    pairs: list[PreferencePair] = []
    repeats = 0
    while len(pairs) < size:
        pair = _draw_pair(rng, split, settings, evidence, agreement.get(split, 0.5), (fewest, most))
        if pair.group not in groups:
            groups.add(pair.group)
            pairs.append(pair)
            repeats = 0
            continue
        repeats += 1
        if repeats == MOST_REPEATS:
            problem = (
                f"{split}: only {len(pairs)} of {size} pairs have a prompt that no other pair has. "
                "Ask for fewer pairs, or raise filler or max_requirements."
            )
            raise ConfigError([problem], "the options of the controlled world")
    return pairs


def _draw_pair(
    rng: random.Random, split: str, settings: dict[str, Any], evidence: str, agreement: float, filler: tuple[int, int]
) -> PreferencePair:
    scenario = _draw_scenario(rng, settings)
    prompt, prompt_spans = _write_prompt(rng, scenario, settings, evidence, rng.randint(*filler))
    kind = rng.choice(settings["cue_kinds"])
    cue_on_chosen = rng.random() < agreement
    texts = {}
    for side in ("chosen", "rejected"):
        cue = kind if cue_on_chosen == (side == "chosen") else None
        # Where one response has a phrase, the other has one more filler sentence: only the length cue changes the
        # length.
        count = rng.randint(*filler) + (kind in ("closing", "flattery") and cue is None)
        texts[side] = _write_response(
            rng, getattr(scenario, side), scenario, evidence, cue, count, settings["length_cue"]
        )
    gold_chosen = gold(prompt, texts["chosen"][0])
    gold_rejected = gold(prompt, texts["rejected"][0])
    # True by construction; a change of the vocabulary could break it.
    assert gold_chosen > gold_rejected, (prompt, texts)
    return make_pair(
        prompt,
        texts["chosen"][0],
        texts["rejected"][0],
        split=split,
        source=SOURCE,
        strength=gold_chosen - gold_rejected,
        meta={
            "gold_chosen": gold_chosen,
            "gold_rejected": gold_rejected,
            "domain": scenario.domain,
            "requirements": len(scenario.required),
            "flaws": [scenario.deciding[slot] for slot in sorted(scenario.deciding)],
            "cue": kind,
            "cue_chosen": cue_on_chosen,
            "cue_rejected": not cue_on_chosen,
            "evidence_prompt": prompt_spans,
            "evidence_chosen": texts["chosen"][1],
            "evidence_rejected": texts["rejected"][1],
            "cue_span_chosen": texts["chosen"][2],
            "cue_span_rejected": texts["rejected"][2],
        },
    )


def _draw_scenario(rng: random.Random, settings: dict[str, Any]) -> Scenario:
    """Draw requirements, then the flaws that only the rejected response has, then flaws that both have."""
    domain = rng.choice(sorted(words.DOMAINS))
    slots = list(words.DOMAINS[domain][1])
    rng.shuffle(slots)
    count = rng.randint(settings["min_requirements"], settings["max_requirements"])
    requested = slots[:count]
    unasked = slots[count:]
    required = {slot: rng.choice(words.SLOTS[slot].values) for slot in requested}
    scenario = Scenario(domain, required, dict(required), dict(required))
    free = list(requested)
    most = min(settings["max_deciding"], count)
    for _ in range(max(rng.randint(1, most), rng.randint(1, most))):
        flaw = rng.choices(list(FLAWS), list(FLAWS.values()))[0]
        if flaw == "invents":
            slot = unasked.pop()
            scenario.rejected[slot] = rng.choice(words.SLOTS[slot].values)
        else:
            slot = free.pop()
            scenario.rejected[slot] = _other_value(rng, slot, required[slot])
            if flaw == "omits":
                del scenario.rejected[slot]
        scenario.deciding[slot] = flaw
        if not unasked:
            break
    for slot in free:
        if rng.random() < settings["shared_flaw_rate"]:
            scenario.chosen[slot] = _other_value(rng, slot, required[slot])
            scenario.rejected[slot] = _other_value(rng, slot, required[slot])
    return scenario


def _other_value(rng: random.Random, slot: str, value: str) -> str:
    return rng.choice([other for other in words.SLOTS[slot].values if other != value])


def _write_prompt(
    rng: random.Random, scenario: Scenario, settings: dict[str, Any], evidence: str, filler: int
) -> tuple[list[Message], list[list[int]]]:
    """The conversation, and the deciding requirements as [message index, start, end] in characters."""
    sentences = []
    for slot, value in scenario.required.items():
        sentences.append(Part(_sentence(rng, words.REQUIREMENTS, slot, value), slot, slot in scenario.deciding))
    sentences += [Part(text) for text in _filler(rng, words.PROMPT_FILLER, filler)]
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
        text, deciding, _ = _join(turn, " ")
        prompt.append({"role": ("user", "assistant")[index % 2], "content": text})
        spans += [[index, start, end] for start, end in deciding]
    return prompt, spans


def _change_mind(
    rng: random.Random, scenario: Scenario, first: list[Part], last: list[Part], index: int
) -> tuple[list[Part], list[Part]]:
    """Let the first turn name another value for one requirement, and the last turn correct it."""
    old = first[index]
    value = scenario.required[old.slot]
    stale = Part(_sentence(rng, words.REQUIREMENTS, old.slot, _other_value(rng, old.slot, value)), old.slot)
    correction = Part(_sentence(rng, words.CORRECTIONS, old.slot, value), old.slot, old.deciding)
    return [*first[:index], stale, *first[index + 1 :]], [*last, correction]


def _write_response(
    rng: random.Random,
    claims: dict[str, str],
    scenario: Scenario,
    evidence: str,
    cue: str | None,
    filler: int,
    length_cue: int,
) -> tuple[str, list[list[int]], list[list[int]]]:
    """The response with its cue (None: it has none), the spans of its deciding evidence, and the spans of the cue."""
    extra = length_cue if cue == "length" else 0
    padding = [
        Part(text, cue=index >= filler)
        for index, text in enumerate(_filler(rng, words.RESPONSE_FILLER, filler + extra))
    ]
    parts = [
        Part(_sentence(rng, words.CLAIMS, slot, value), slot, slot in scenario.deciding)
        for slot, value in claims.items()
    ]
    parts = _order(rng, parts + padding, evidence)
    if cue == "closing":
        parts.append(Part(rng.choice(words.CLOSINGS), cue=True))
    elif cue == "flattery":
        parts.insert(0, Part(rng.choice(words.FLATTERIES), cue=True))
    elif cue == "formatting":
        return _as_list(parts)
    return _join(parts, " ")


def _as_list(parts: list[Part]) -> tuple[str, list[list[int]], list[list[int]]]:
    """The sentences as a list under a bold header; the header and the bullets are the cue."""
    text, evidence, cues = _join([Part(words.LIST_HEADER, cue=True), *parts], "\n" + words.LIST_BULLET)
    position = 0
    for line in text.split("\n"):
        if position:
            cues.append([position, position + len(words.LIST_BULLET)])
        position += len(line) + 1
    return text, evidence, cues


def _sentence(rng: random.Random, templates: Sequence[str], slot: str, value: str) -> str:
    return rng.choice(templates).format(value=value, noun=rng.choice(words.SLOTS[slot].nouns))


def _filler(rng: random.Random, sentences: Sequence[str], count: int) -> list[str]:
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


def _join(parts: Sequence[Part], separator: str) -> tuple[str, list[list[int]], list[list[int]]]:
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
