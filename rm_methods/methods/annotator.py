"""Computed line: the utility of the annotators who labeled the training pairs of the controlled world.

    u(x, y) = sum over kinds of cue: bias * cue - skill * flaws

A Bradley-Terry model of endless data learns it, because the labels are drawn from sigmoid(u_A - u_B).
"""

from __future__ import annotations

from rm_methods.methods.contract import ContentBlindMethod
from rm_methods.methods.world_texts import annotators_of


class Method(ContentBlindMethod):
    def fit(self, pairs):
        return annotators_of("annotator", pairs)

    def score(self, prompt, response: str, seed: int) -> float:
        """Utility of the response, in log odds."""
        from rm_methods.preferences.world.annotators import utility

        return float(utility(prompt, response, self.fitted["skill"], self.fitted["bias"]))
