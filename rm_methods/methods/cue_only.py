"""Computed line: the number of kinds of cue in a response of the controlled world, and nothing else."""

from __future__ import annotations

from rm_methods.methods.contract import ContentBlindMethod
from rm_methods.methods.world_texts import annotators_of


class Method(ContentBlindMethod):
    def fit(self, pairs):
        # Without annotators the length cue cannot be read in one response.
        annotators_of("cue_only", pairs)
        return {}

    def score(self, prompt, response: str, seed: int) -> float:
        """Number of kinds of cue."""
        from rm_methods.preferences.world.annotators import cues

        return float(len(cues(response)))
