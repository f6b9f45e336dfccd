"""Published sizes of models, for planning runs and measuring their speed without the weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError, nearest

# From the configurations that were published with SmolLM2-135M, Llama 3.2 1B, Llama 3.1 8B and 70B, and ModernBERT.
_LLAMA = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
SHAPES: dict[str, dict[str, Any]] = {
    "135M": _LLAMA
    | {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
    },
    "1B": _LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8B": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "ModernBERT-base": {
        "model_type": "modernbert",
        "vocab_size": 50_368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
    },
    "ModernBERT-large": {
        "model_type": "modernbert",
        "vocab_size": 50_368,
        "hidden_size": 1024,
        "intermediate_size": 2624,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
}


def published_configuration(name: str):
    """The transformers configuration of a published shape.

    Raises:
        UserError: the shape is unknown.
    """
    from transformers import AutoConfig

    if name not in SHAPES:
        raise UserError(f"Unknown shape '{name}'. {nearest(name, SHAPES)}")
    return AutoConfig.for_model(**SHAPES[name])


def shape_in_name(source: str) -> str | None:
    """The shape whose name is a word of a model's name, or None: "8B" of "meta-llama/Llama-3.1-8B-Instruct"."""
    words = source.rsplit("/", 1)[-1].lower()
    return next(
        (
            name
            for name in sorted(SHAPES, key=len, reverse=True)
            if re.search(rf"(?<![\w.]){name.lower()}(?!\w)", words)
        ),
        None,
    )


def configuration_of(source: str, prepared: Path | None = None):
    """The transformers configuration of a model: from its prepared folder, its source folder, or the published shape
    in its name.

    Nothing is downloaded.

    Raises:
        UserError: the size of the model is unknown; says how to name it.
    """
    from rm_methods.reward_models.backbones import source_folder
    from rm_methods.reward_models.loading import pretrained_config

    for folder in (prepared, None if source == "tiny" else Path(source_folder(source))):
        if folder is not None and (folder / "config.json").is_file():
            return pretrained_config(folder)
    name = shape_in_name(source)
    if name is None:
        raise UserError(
            f"The size of '{source}' is not known before it is downloaded. Name a similar one with --shape "
            f"({', '.join(SHAPES)}), or run the rule prepare_backbone first."
        )
    return published_configuration(name)
