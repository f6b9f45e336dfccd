"""The generator of the controlled world: options -> preference pairs, byte-identical in every process."""

from __future__ import annotations

import random
from typing import Any

from rm_methods.errors import ConfigError
from rm_methods.preferences.pair import PreferencePair, make_pair
from rm_methods.preferences.world import annotators
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.annotated import AnnotatedSplit, level_problems, sentence_problems
from rm_methods.preferences.world.gold import gold
from rm_methods.preferences.world.texts import Scenario, other_value, write_prompt, write_response
from rm_methods.validation import schema_problems

TEST_SPLITS = ("iid", "cue_neutral", "cue_reversed", "long_context", "early_evidence", "late_evidence")
# With annotators, cues are independent of quality, so that cue_reversed would be no other split.
ANNOTATED_TEST_SPLITS = (
    "iid",
    "iid_annotated",
    "cue_neutral",
    "cue_on_better",
    "cue_on_worse",
    "long_context",
    "early_evidence",
    "late_evidence",
)
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
    "annotator": annotators.OPTION,
    "sentence_budget": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 100,
        "default": None,
        "description": "Most sentences of a response, so that each sentence of a cue takes the place of a claim; needs "
        "`annotator`.",
    },
    "shared_cues": _whole(
        0,
        0,
        3,
        "Most cues, of other kinds than the pair's own, that both responses have (evenly 0 to this), so that the value "
        "of several cues can be learned; needs `annotator`.",
    ),
}


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Fill in defaults and check.

    Raises:
        ConfigError: naming every unknown, ill-typed or out-of-range option.
    """
    problems = schema_problems(options, {"type": "object", "properties": OPTIONS, "additionalProperties": False})
    problems = problems or conflicts(options)
    if problems:
        raise ConfigError(problems, "the options of the controlled world")
    return {name: schema["default"] for name, schema in OPTIONS.items()} | options


def conflicts(options: dict[str, Any]) -> list[str]:
    """What is wrong with options that are each allowed, one sentence each."""
    settings = {name: schema["default"] for name, schema in OPTIONS.items()} | options
    lowest, highest = settings["min_requirements"], settings["max_requirements"]
    problems = []
    if lowest > highest:
        problems.append(
            f"min_requirements: {lowest} is above max_requirements ({highest}). Lower it, or raise max_requirements."
        )
    if settings["annotator"] is None:
        return problems + [
            f"{name}: needs the option `annotator`; add `annotator: {{}}`, or remove it."
            for name in ("sentence_budget", "shared_cues")
            if settings[name]
        ]
    problems += annotators.annotator_problems(settings["annotator"], settings)
    if settings["cue_agreement"] != OPTIONS["cue_agreement"]["default"]:
        problems.append(
            f"cue_agreement: {settings['cue_agreement']} is not used, because `annotator` has cues that do not depend "
            "on quality. Remove one of them."
        )
    problems += sentence_problems(settings)
    return problems or level_problems(settings)


def test_splits_of(options: dict[str, Any]) -> tuple[str, ...]:
    """The test splits of a world with these options."""
    return TEST_SPLITS if options.get("annotator") is None else ANNOTATED_TEST_SPLITS


def splits_of(options: dict[str, Any]) -> tuple[str, ...]:
    """All splits of a world with these options."""
    return ("train", "validation", *test_splits_of(options))


def option_warnings(options: dict[str, Any]) -> list[str]:
    """What deserves a second look in valid options, one sentence each."""
    settings = resolve(options)
    option = settings["annotator"]
    return [] if option is None else annotators.make_annotator(option, settings["cue_kinds"]).warnings()


def generate(**options: Any) -> list[PreferencePair]:
    """All pairs of the world, split by split in the order of `splits_of`; same options give byte-identical pairs.

    Args:
        options: any of `OPTIONS`.

    Raises:
        ConfigError: for options that are unknown or out of range, or that leave too few different prompts.
    """
    settings = resolve(options)
    sizes = {"train": settings["train_pairs"], "validation": settings["validation_pairs"]}
    groups: set[str] = set()
    pairs: dict[str, list[PreferencePair]] = {}
    splits = splits_of(settings)
    # Test splits first: the later split draws a repeated prompt anew, so the test data do not depend on the train size.
    for split in reversed(splits):
        pairs[split] = _generate_split(split, sizes.get(split, settings["test_pairs"]), settings, groups)
    return [pair for split in splits for pair in pairs[split]]


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
    annotated = AnnotatedSplit(split, settings) if settings["annotator"] is not None else None
    pairs: list[PreferencePair] = []
    repeats = 0
    while len(pairs) < size:
        if annotated:
            pair = annotated.draw(rng, len(pairs), evidence, (fewest, most))
        else:
            pair = _draw_pair(rng, split, settings, evidence, agreement.get(split, 0.5), (fewest, most))
        if pair.group not in groups:
            groups.add(pair.group)
            pairs.append(annotated.labeled(pair) if annotated else pair)
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
    prompt, prompt_spans = write_prompt(rng, scenario, settings, evidence, rng.randint(*filler))
    kind = rng.choice(settings["cue_kinds"])
    cue_on_chosen = rng.random() < agreement
    texts = {}
    for side in ("chosen", "rejected"):
        cue = kind if cue_on_chosen == (side == "chosen") else None
        # Where one response has a phrase, the other has one more filler sentence: only the length cue changes the
        # length.
        count = rng.randint(*filler) + (kind in ("closing", "flattery") and cue is None)
        texts[side] = write_response(
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
        source=words.SOURCE,
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
            scenario.rejected[slot] = other_value(rng, slot, required[slot])
            if flaw == "omits":
                del scenario.rejected[slot]
        scenario.deciding[slot] = flaw
        if not unasked:
            break
    for slot in free:
        if rng.random() < settings["shared_flaw_rate"]:
            scenario.chosen[slot] = other_value(rng, slot, required[slot])
            scenario.rejected[slot] = other_value(rng, slot, required[slot])
    return scenario
