"""Names that transformers 4 looks for in a saved folder, beside those that transformers 5 writes.

Without them version 4 silently uses a rope_theta of 10,000 for every model, and does not know the tokenizer's class
(tried with 4.51.0).  Version 5 reads both.
"""

from __future__ import annotations

from pathlib import Path

from rm_methods.files import read_json, write_json


def add_older_names(folder: str | Path) -> None:
    """Add them to config.json and tokenizer_config.json of a model folder, if these files exist."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        config = read_json(folder / "config.json")
        rope = config.get("rope_parameters")
        # Backbones with several kinds of layers have one entry for each; version 4 has no common name for that.
        if isinstance(rope, dict) and "rope_theta" in rope and "rope_theta" not in config:
            scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
            older = {"rope_theta": rope["rope_theta"]}
            if scaling.get("rope_type", "default") != "default":
                older["rope_scaling"] = scaling
            write_json(folder / "config.json", config | older)
    if (folder / "tokenizer_config.json").exists():
        tokenizer = read_json(folder / "tokenizer_config.json")
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            # Version 4 would also return token types, which decoders do not take.
            names = {"model_input_names": ["input_ids", "attention_mask"]}
            write_json(
                folder / "tokenizer_config.json", names | tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"}
            )
