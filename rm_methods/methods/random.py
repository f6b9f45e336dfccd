"""Content-blind baseline: a random score, fixed by seed and text.  Shows each benchmark's chance level."""

from __future__ import annotations

import hashlib
import json

from rm_methods.methods.contract import ContentBlindMethod


class Method(ContentBlindMethod):
    def score(self, prompt, response: str, seed: int) -> float:
        """A number in [0, 1) from a hash of seed, prompt and response: the same text scores the same in any order."""
        text = json.dumps([seed, list(prompt), response], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:6], "big") / 2**48
