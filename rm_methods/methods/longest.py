"""Content-blind baseline: the longer response wins.  Shows how much of a gain is length."""

from __future__ import annotations

from rm_methods.methods.contract import ContentBlindMethod


class Method(ContentBlindMethod):
    def score(self, prompt, response: str, seed: int) -> float:
        """Length of the response in characters."""
        return float(len(response))
