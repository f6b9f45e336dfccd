"""Pairs for annotators with a bias: whole differences of flaws, one cue in each pair, independent of quality."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rm_methods.preferences.pair import PreferencePair, make_pair
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.annotators import FLAW_DIFFERENCES, cues, make_annotator
from rm_methods.preferences.world.gold import flaws, gold
from rm_methods.preferences.world.texts import Scenario, other_value, write_prompt, write_response

# The weight of a flaw difference made of n whole flaws (contradictions) and m half ones (omissions, inventions).
_WHOLE = 0.84
_HALF = math.sqrt(1 - _WHOLE)
_SLOTS = len(next(iter(words.DOMAINS.values()))[1])  # of each domain
ANNOTATED = ("train", "validation", "iid_annotated")  # splits that have the annotators' labels
_CUE_ON_BETTER = {"cue_on_better": 1.0, "cue_on_worse": 0.0}


@dataclass(frozen=True)
class _Flaws:
    """Numbers of flaws of one response."""

    contradicted: int
    omitted: int
    invented: int

    @property
    def weight(self) -> float:
        return _WHOLE**self.contradicted * _HALF ** (self.omitted + self.invented)


def sentence_problems(settings: Mapping[str, Any]) -> list[str]:
    """Why a response has no room for what the options ask for: requirements, cues of the pair, shared cues."""
    problems = []
    kinds = settings["cue_kinds"]
    shared = settings["shared_cues"]
    if shared >= len(kinds):
        problems.append(
            f"shared_cues: {shared} is too many; besides the cue of one response, cue_kinds leaves {len(kinds) - 1}. "
            "Lower it, or add kinds."
        )
    budget = settings["sentence_budget"]
    if budget is None:
        return problems
    if shared:
        problems.append("shared_cues: does not go with sentence_budget. Remove one of them.")
    if budget < settings["max_requirements"]:
        problems.append(
            f"sentence_budget: {budget} is smaller than the number of requirements ({settings['max_requirements']}), "
            "so no response could meet them all. Raise it, or lower max_requirements."
        )
    if "length" in kinds and settings["length_cue"] > budget:
        problems.append(
            f"length_cue: {settings['length_cue']} sentences do not fit into a sentence_budget of {budget}. Lower it, "
            "or raise sentence_budget."
        )
    return problems


def level_problems(settings: Mapping[str, Any]) -> list[str]:
    """Levels of the flaw difference that requirements and budget of otherwise possible options leave no room for."""
    budget = settings["sentence_budget"]
    shares = settings["annotator"].get("flaw_differences", FLAW_DIFFERENCES)
    requirements = f"{settings['min_requirements']} to {settings['max_requirements']} requirements"
    more = "Raise max_requirements" if budget is None else "Raise sentence_budget or max_requirements"
    return [
        f"annotator.flaw_differences: with {requirements}"
        + ("" if budget is None else f" and a sentence_budget of {budget}")
        + f" no pair can be {level} {'flaw' if level == 1 else 'flaws'} apart. {more}, or set this share to 0."
        for level, share in enumerate(shares, start=1)
        if share and not _possible_requirements(level, settings)
    ]


def _cue_sentences(kind: str | None, settings: Mapping[str, Any]) -> int:
    return settings["length_cue"] if kind == "length" else int(kind is not None)


def _possible_requirements(level: int, settings: Mapping[str, Any]) -> list[int]:
    """Numbers of requirements that allow this flaw difference, whatever the cue and wherever it is."""
    fewest, most = settings["min_requirements"], settings["max_requirements"]
    sentences = {_cue_sentences(kind, settings) for kind in settings["cue_kinds"]}
    placements = [(count, 0) for count in sentences] + [(0, count) for count in sentences]
    budget = settings["sentence_budget"]
    return [n for n in range(fewest, most + 1) if all(_worse_flaws(level, n, place, budget) for place in placements)]


def _worse_flaws(level: int, requirements: int, sentences: tuple[int, int], budget: int | None) -> list[_Flaws]:
    """All flaws of the worse response that make it `level` flaws worse.

    Args:
        sentences: of the cue in the better response, and in the worse one.
    """
    omitted_by_better = _omitted_for_cue(requirements, sentences[0], budget)
    if omitted_by_better > requirements:
        return []
    halves = 2 * level + omitted_by_better
    ways = []
    for contradicted in range(requirements + 1):
        for omitted in range(requirements - contradicted + 1):
            invented = halves - 2 * contradicted - omitted
            length = requirements - omitted + invented + sentences[1]
            fits = budget is None or length <= budget
            if 0 <= invented <= _SLOTS - requirements and fits:
                ways.append(_Flaws(contradicted, omitted, invented))
    return ways


def _omitted_for_cue(requirements: int, sentences: int, budget: int | None) -> int:
    """Claims that leave their place to a cue of so many sentences."""
    return 0 if budget is None else max(0, requirements + sentences - budget)


class AnnotatedSplit:
    """Draws the pairs of one split.

    Args:
        split: its name.
        settings: all options of the world, checked.
    """

    def __init__(self, split: str, settings: Mapping[str, Any]):
        self.split = split
        self.settings = settings
        self.annotator = make_annotator(settings["annotator"], settings["cue_kinds"])
        # A stream for the labels alone, so that other annotators label the same pairs.
        self.label_stream = random.Random(f"controlled world/{settings['seed']}/{split}/annotators")

    def draw(self, rng: random.Random, index: int, evidence: str, filler: tuple[int, int]) -> PreferencePair:
        """A pair with gold's label.

        Args:
            index: of the pair in the split; in cue_neutral the cue takes turns.
            evidence: "early", "mixed" or "late".
            filler: fewest and most filler sentences in a text.
        """
        settings = self.settings
        shares = self.annotator.flaw_differences
        level = rng.choices(range(1, len(shares) + 1), shares)[0]
        kind = rng.choice(settings["cue_kinds"])
        cue_on_better = rng.random() < _CUE_ON_BETTER.get(self.split, 0.5)
        if self.split == "cue_neutral":
            cue_on_better = index % 2 == 0
        placed = {"chosen": kind if cue_on_better else None, "rejected": None if cue_on_better else kind}
        sentences = (_cue_sentences(placed["chosen"], settings), _cue_sentences(placed["rejected"], settings))
        scenario = self._draw_scenario(rng, level, sentences)
        shared = self._draw_shared_cues(rng, kind)
        prompt, prompt_spans = write_prompt(rng, scenario, dict(settings), evidence, rng.randint(*filler))
        texts = {}
        meta: dict[str, Any] = {}
        for side, cue in placed.items():
            # As in the world without annotators: only the length cue changes the length.
            count = rng.randint(*filler) + (kind in ("closing", "flattery") and cue is None)
            claims = getattr(scenario, side)
            if settings["sentence_budget"] is not None:
                count = min(count, settings["sentence_budget"] - len(claims) - _cue_sentences(cue, settings))
            text, meta[f"evidence_{side}"], meta[f"cue_span_{side}"] = write_response(
                rng,
                claims,
                scenario,
                evidence,
                cue=_written(cue),
                filler=count,
                length_cue=settings["length_cue"],
                shared_cues=[str(_written(other)) for other in shared],
            )
            assert cues(text) == {*shared, cue} - {None}, text
            texts[side] = text
            meta |= {
                f"gold_{side}": gold(prompt, text),
                f"flaws_{side}": flaws(prompt, text),
                f"cue_{side}": cue is not None,
                f"utility_{side}": self.annotator.utility(prompt, text),
            }
        # True by construction; a change of the vocabulary could break it.
        assert meta["flaws_rejected"] - meta["flaws_chosen"] == level, (prompt, texts)
        assert meta["gold_chosen"] > meta["gold_rejected"], (prompt, texts)
        meta |= {
            "domain": scenario.domain,
            "requirements": len(scenario.required),
            "flaws": [scenario.deciding[slot] for slot in sorted(scenario.deciding)],
            "flaw_difference": level,
            "cue": kind,
            "shared_cues": shared,
            "evidence_prompt": prompt_spans,
            "labeled_by": "gold",
        }
        return make_pair(
            prompt,
            texts["chosen"],
            texts["rejected"],
            split=self.split,
            source=words.SOURCE,
            strength=meta["gold_chosen"] - meta["gold_rejected"],
            meta=meta,
        )

    def labeled(self, pair: PreferencePair) -> PreferencePair:
        """The pair as the annotators label it, if they label this split; its strength is that of their preference."""
        if self.split not in ANNOTATED:
            return pair
        difference = pair.meta["utility_chosen"] - pair.meta["utility_rejected"]
        agreed = self.label_stream.random() < self.annotator.probability(difference)
        meta = pair.meta | {"labeled_by": "annotators", "as_gold": agreed}
        meta["annotator"] = {"skill": self.annotator.skill, "bias": dict(self.annotator.bias)}
        if agreed:
            return replace(pair, strength=abs(difference), meta=meta)
        for name in list(meta):
            if name.endswith("_chosen"):
                other = name.removesuffix("chosen") + "rejected"
                meta[name], meta[other] = meta[other], meta[name]
        return make_pair(
            pair.prompt,
            pair.rejected,
            pair.chosen,
            split=pair.split,
            source=pair.source,
            strength=abs(difference),
            meta=meta,
        )

    def _draw_shared_cues(self, rng: random.Random, kind: str) -> list[str]:
        """Kinds of the cues that both responses have, besides the cue of one of them."""
        most = self.settings["shared_cues"]
        if not most:
            return []  # no random number, so that the option leaves other worlds unchanged
        others = [other for other in self.settings["cue_kinds"] if other != kind]
        return sorted(_sample(rng, others, rng.randint(0, most)))

    def _draw_scenario(self, rng: random.Random, level: int, sentences: tuple[int, int]) -> Scenario:
        """Requirements, the flaws of the worse response ("rejected"), and flaws that both have."""
        settings = self.settings
        domain = rng.choice(sorted(words.DOMAINS))
        slots = list(words.DOMAINS[domain][1])
        rng.shuffle(slots)
        count = rng.choice(_possible_requirements(level, settings))
        requested, unasked = slots[:count], slots[count:]
        required = {slot: rng.choice(words.SLOTS[slot].values) for slot in requested}
        ways = _worse_flaws(level, count, sentences, settings["sentence_budget"])
        flaw_counts = rng.choices(ways, [way.weight for way in ways])[0]
        better = dict(required)
        for slot in _sample(rng, requested, _omitted_for_cue(count, sentences[0], settings["sentence_budget"])):
            del better[slot]
        worse = dict(required)
        flawed = _sample(rng, requested, flaw_counts.contradicted + flaw_counts.omitted)
        names = {}
        for slot in flawed[: flaw_counts.contradicted]:
            worse[slot] = other_value(rng, slot, required[slot])
            names[slot] = "contradicts"
        for slot in flawed[flaw_counts.contradicted :]:
            del worse[slot]
            names[slot] = "omits"
        for slot in unasked[: flaw_counts.invented]:
            worse[slot] = rng.choice(words.SLOTS[slot].values)
            names[slot] = "invents"
        for slot in requested:
            if slot in better and slot not in names and rng.random() < settings["shared_flaw_rate"]:
                better[slot] = other_value(rng, slot, required[slot])
                worse[slot] = other_value(rng, slot, required[slot])
        deciding = {slot: names.get(slot, "meets") for slot in slots if _differ(required, better, worse, slot)}
        return Scenario(domain, required, better, worse, deciding)


def _written(kind: str | None) -> str | None:
    """A kind of cue as `write_response` names it."""
    return "padding" if kind == "length" else kind


def _differ(required: Mapping[str, str], better: Mapping[str, str], worse: Mapping[str, str], slot: str) -> bool:
    """Whether the responses are right about a slot in different ways."""

    def verdict(claims: Mapping[str, str]) -> str:
        if slot not in claims:
            return "silent"
        return "right" if claims[slot] == required.get(slot) else "wrong"

    return verdict(better) != verdict(worse)


def _sample(rng: random.Random, slots: Sequence[str], count: int) -> list[str]:
    return rng.sample(list(slots), count)
