"""Loads models, tokenizers and configurations, and refuses what it cannot load whole."""

from __future__ import annotations

AUTO = "auto"


def attention_option(attention: str) -> str | None:
    """What transformers takes as `attn_implementation`.

    Args:
        attention: "auto" (sdpa where the architecture has it, otherwise eager), or a name that transformers knows.
    """
    return None if attention == AUTO else attention
