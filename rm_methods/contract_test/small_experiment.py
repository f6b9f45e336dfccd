"""A small learnable preference data set, and the configuration of an experiment with it that trains in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.config.resolve import resolve
from rm_methods.preferences.pair import PreferencePair, make_pair

_COLORS = ["red", "green", "blue", "black", "white"]


def made_up_pairs(count: int, seed: int = 0, split: str = "train") -> list[PreferencePair]:
    """Pairs in which the chosen response names the color that the prompt asks for; the rejected one, another."""
    generator = np.random.default_rng(seed)
    pairs = []
    for k in range(count):
        right, wrong = generator.choice(_COLORS, size=2, replace=False)
        filler = " and so on" * int(generator.integers(0, 6))
        prompt = [{"role": "user", "content": f"Request {seed}-{k}: paint it {right}, please{filler}."}]
        extra = " I hope that this is fine." * int(generator.integers(0, 3))
        chosen, rejected = f"It is now {right}.{extra}", f"It is now {wrong}."
        pairs.append(
            make_pair(prompt, chosen, rejected, split=split, source="made up", strength=float(generator.integers(1, 4)))
        )
    return pairs


def small_config(folder: Path, **sections: Any) -> dict[str, Any]:
    """A small resolved configuration whose data set is a file in `folder`.

    Args:
        sections: changes; those of `methods` replace the section.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pairs.jsonl"
    if not file.exists():
        file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    config: dict[str, Any] = {
        "experiment": "test",
        "results": str(folder / "results"),
        "seeds": [0],
        "data": {"dataset": str(file)},
        "backbone": {
            "max_length": 256,
            "tiny": {
                "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4, "key_value_heads": 2,
                "vocabulary_size": 400,
            },
        },
        "training": {
            "epochs": 1, "pairs_per_step": 8, "learning_rate": 3e-3, "tokens_per_microbatch": 400, "precision": "fp32",
            "log_every_steps": 1, "checkpoint_every_steps": None,
        },
        "methods": {"bradley_terry": {}},
    }  # fmt: skip
    for name, section in sections.items():
        config[name] = config[name] | section if isinstance(config.get(name), dict) and name != "methods" else section
    return resolve(config)
