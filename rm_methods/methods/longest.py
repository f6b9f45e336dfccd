"""Content-blind baseline: the longer response wins.  Shows how much of a gain is length."""

from __future__ import annotations


class Method:
    def __init__(self, settings):
        self.settings = settings

    def score(self, prompt, response: str, seed: int) -> float:
        """Length of the response in characters."""
        return float(len(response))
