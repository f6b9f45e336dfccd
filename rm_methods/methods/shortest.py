"""Content-blind baseline: the shorter response wins.  Stands in every table, so that a gain by brevity alone is seen."""

from __future__ import annotations


class Method:
    def __init__(self, settings):
        self.settings = settings

    def score(self, prompt, response: str, seed: int) -> float:
        """Minus the length of the response in characters."""
        return -float(len(response))
