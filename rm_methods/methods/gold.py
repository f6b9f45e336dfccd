"""Computed line: the exact gold reward of the controlled world.  No reward model can be better."""

from __future__ import annotations

from rm_methods.methods.contract import ContentBlindMethod
from rm_methods.methods.world_texts import check_world


class Method(ContentBlindMethod):
    def fit(self, pairs):
        check_world("gold", pairs)
        return {}

    def score(self, prompt, response: str, seed: int) -> float:
        """Gold of the response (`preferences.world.gold`)."""
        from rm_methods.preferences.world.gold import gold

        return gold(prompt, response)
