"""Annotators with a bias: they see the flaws of a response, and like some surface cues (docs/world.md).

    P(A over B) = sigmoid(skill * (flaws_B - flaws_A) + sum over kinds of cue: bias * (cue_A - cue_B))

`flaws` weighs what the gold reward counts (`gold.flaws`), `cue` is 1 if the response has a cue of the kind.  The
utility of a response, -skill * flaws + bias * cue, is what a Bradley-Terry model of endless data learns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_methods.preferences.pair import Message
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.gold import flaws

SKILL = 3.0
BIAS = 4.5
FLAW_DIFFERENCES = (0.5, 0.35, 0.15)
# A level of the flaw difference is left to chance if the cue on the worse response makes the label nearly a coin flip:
# a probability between 0.38 and 0.62.
NEARLY_INDIFFERENT = 0.5

_NOT_NEGATIVE = {"type": "number", "minimum": 0.0, "maximum": 1000.0}
OPTION: dict[str, Any] = {
    "type": ["object", "null"],
    "additionalProperties": False,
    "properties": {
        "skill": _NOT_NEGATIVE,
        "bias": {
            "anyOf": [
                _NOT_NEGATIVE,
                {
                    "type": "object",
                    "additionalProperties": _NOT_NEGATIVE,
                },
            ]
        },
        "flaw_differences": {
            "type": "array",
            "items": {"type": "number", "minimum": 0.0, "maximum": 1.0},
            "minItems": 1,
            "maxItems": 4,
        },
    },
    "default": None,
    "description": "Annotators with a bias give the labels of train and validation; null has exact labels and the cue "
    "as often as `cue_agreement` says.",
}


@dataclass(frozen=True)
class Annotator:
    """Who labels train and validation.

    Attributes:
        skill: log odds of preferring a response with one flaw fewer.
        bias: kind of cue -> log odds of preferring a response that has it.
        flaw_differences: shares of pairs whose responses are 1, 2, ... flaws apart; they add up to 1.
    """

    skill: float
    bias: Mapping[str, float]
    flaw_differences: Sequence[float]

    def utility(self, prompt: Sequence[Message] | str, response: str) -> float:
        """What the annotators think of a response, from its text alone."""
        return utility(prompt, response, self.skill, self.bias)

    def probability(self, utility_difference: float) -> float:
        """The probability that a response of higher utility by this is preferred; float in [0, 1]."""
        return 1 / (1 + math.exp(-utility_difference)) if utility_difference > -700 else 0.0

    def warnings(self) -> list[str]:
        """Levels of the flaw difference that annotators decide by chance, because a cue is worth just as much."""
        by_bias: dict[float, list[str]] = {}
        for kind, bias in self.bias.items():
            by_bias.setdefault(bias, []).append(kind)
        return [
            f"annotator: bias / skill ({bias:g} / {self.skill:g} = {bias / self.skill:.2f}) is close to the flaw "
            f"difference {level}. Where a response has a cue ({', '.join(kinds)}) and {level} more "
            f"{'flaw' if level == 1 else 'flaws'}, annotators choose by chance, and each seed decides these pairs its "
            "own way. Use a ratio between two levels, such as 1.5."
            for bias, kinds in by_bias.items()
            if bias and self.skill
            for level, share in enumerate(self.flaw_differences, start=1)
            if share and abs(bias - self.skill * level) < NEARLY_INDIFFERENT
        ]


def annotator_problems(option: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with the option `annotator`, beyond its schema."""
    problems = []
    bias = option.get("bias", BIAS)
    skill = option.get("skill", SKILL)
    kinds = settings["cue_kinds"]
    if isinstance(bias, Mapping):
        for kind in bias:
            if kind not in kinds:
                problems.append(
                    f"annotator.bias: '{kind}' is no cue of these pairs; cue_kinds has {', '.join(kinds)}. Add it "
                    "there, or remove it here."
                )
        if missing := [kind for kind in kinds if kind not in bias]:
            problems.append(
                f"annotator.bias: has no value for {', '.join(missing)}, which cue_kinds has; 0 is for cues that the "
                "annotators do not notice."
            )
    strongest = max(bias.values(), default=0) if isinstance(bias, Mapping) else bias
    if not skill and not strongest:
        problems.append(
            "annotator: skill and bias are 0, so every label would be a coin flip. Raise one of them; for random "
            "labels use data.label_noise."
        )
    shares = option.get("flaw_differences", FLAW_DIFFERENCES)
    if abs(sum(shares) - 1) > 1e-6:
        problems.append(
            f"annotator.flaw_differences: the shares {list(shares)} of pairs 1, 2, ... flaws apart add up to "
            f"{sum(shares):g}, not to 1."
        )
    return problems


def make_annotator(option: Mapping[str, Any], cue_kinds: Sequence[str]) -> Annotator:
    """The annotators of a checked option."""
    bias = option.get("bias", BIAS)
    return Annotator(
        skill=option.get("skill", SKILL),
        bias=dict(bias) if isinstance(bias, Mapping) else dict.fromkeys(cue_kinds, bias),
        flaw_differences=tuple(option.get("flaw_differences", FLAW_DIFFERENCES)),
    )


def utility(prompt: Sequence[Message] | str, response: str, skill: float, bias: Mapping[str, float]) -> float:
    """What annotators of this skill and bias (kind of cue -> log odds) think of a response, from its text alone."""
    liked = sum(bias[kind] for kind in cues(response) if kind in bias)
    return liked - skill * flaws(prompt, response)


def cues(response: str) -> set[str]:
    """The kinds of cue in a response of a world with annotators, or in any other string; each counts once."""
    marks = {
        "closing": words.CLOSINGS,
        "length": words.PADDING,
        "formatting": (words.LIST_HEADER,),
        "flattery": words.FLATTERIES,
    }
    return {kind for kind, texts in marks.items() if any(text in response for text in texts)}
