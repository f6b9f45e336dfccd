"""Content-blind baseline: the shorter response wins.  Shows how much of a gain is brevity."""

from __future__ import annotations

from rm_methods.methods.contract import ContentBlindMethod


class Method(ContentBlindMethod):
    def score(self, prompt, response: str, seed: int) -> float:
        """Minus the length of the response in characters."""
        return -float(len(response))
