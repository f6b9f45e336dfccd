"""The variants of an experiment on its two axes: levels of label noise, and the grid that a method is tuned on.

Each point of an axis is a separate variant, so later stages need no knowledge of axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_methods.errors import ConfigError
from rm_methods.methods.registry import load_method_card

SAMPLES = "samples"  # the pool of Best-of-N that is drawn from the policy
# Variant -> {"method", "settings", "learning_rate", "lora", "label_noise", "tuned_from"}
Entries = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class NoiseLevel:
    """One level of label noise.

    Attributes:
        rate, kind: as in the configuration's `noise_levels`.
        variants: name of a variant on this level -> its name without noise.
    """

    rate: float
    kind: str
    variants: Mapping[str, str]

    @property
    def heading(self) -> str:
        """For readers, for instance "20% flips" or "25% flips to longer"."""
        return f"{100 * self.rate:g}% flips" + (" to longer" if self.kind == "length" and self.rate else "")

    @property
    def folder(self) -> str:
        """Name of the level's folder of tables."""
        return f"{self.kind}_{100 * self.rate:g}".replace(".", "p")


def noise_levels(config: Mapping[str, Any]) -> list[NoiseLevel]:
    """The levels of a resolved configuration, each with its variants; content-blind ones belong to all."""
    levels = []
    for level in config["noise_levels"]:
        variants = {}
        for name, entry in config["methods"].items():
            if entry["label_noise"] is None:
                variants[name] = name
            elif entry["label_noise"] == level:
                variants[name] = name.removesuffix(noise_suffix(level))
        levels.append(NoiseLevel(level["rate"], level["kind"], variants))
    return levels


def noise_suffix(level: Mapping[str, Any]) -> str:
    """The suffix of a variant's name on a level of noise: "" for 0, `_noise20` for 20% flips, `_length_noise20` if the
    flips prefer length."""
    if not level["rate"]:
        return ""
    kind = "" if level["kind"] == "symmetric" else f"_{level['kind']}"
    return f"{kind}_noise{100 * level['rate']:g}".replace(".", "p")


def across_noise(entries: Entries, levels: Sequence[Mapping[str, Any]]) -> Entries:
    """Every variant that learns from pairs, once for each level; it requires variants of the same level.

    Raises:
        ConfigError: a variant already has the name that another one gets on a level.
    """
    crossed: Entries = {}
    for level in levels:
        suffix = noise_suffix(level)
        for variant, entry in entries.items():
            card = load_method_card(entry["method"])
            if card.without_model or card.kind == "external":
                _add(crossed, variant, entry, "noise_levels")
                continue
            required = {key: other + suffix for key, other in card.required_variants(entry["settings"]).items()}
            changes = {"settings": entry["settings"] | required, "label_noise": dict(level)}
            _add(crossed, variant + suffix, entry | changes, "noise_levels")
    return crossed


def tuning_grid(entries: Entries, learning_rates: Sequence[float], knobs: bool, common_rate: float) -> Entries:
    """Every trained variant with each learning rate, and with each value of its knob at the variant's learning rate.

    This is a star, not a full grid: the same number of learning rates for all, and one line through the knob.  Joint
    models stay unchanged, and combined methods have nothing to tune.

    Args:
        learning_rates: to try beside a variant's learning rate, which is not tried twice.
        knobs: whether to try the values of the main setting.
        common_rate: learning rate of variants that set none.

    Raises:
        ConfigError: a variant already has the name of a point of the grid.
    """
    grid: Entries = {}
    for variant, entry in entries.items():
        card = load_method_card(entry["method"])
        if not card.has_weights:
            continue
        _add(grid, variant, entry, "tuning")
        if card.kind == "joint":
            continue
        for rate in learning_rates:
            if rate != (entry["learning_rate"] or common_rate):
                changed = entry | {"learning_rate": rate, "tuned_from": variant}
                _add(grid, _point(variant, f"lr{rate:g}"), changed, "tuning")
        if not knobs or card.knob is None:
            continue
        setting = card.knob["setting"]
        for value in card.knob["values"]:
            if value != entry["settings"][setting]:
                changed = entry | {"settings": entry["settings"] | {setting: value}, "tuned_from": variant}
                _add(grid, _point(variant, f"{setting}_{value}"), changed, "tuning")
    return grid


def names_without_noise(config: Mapping[str, Any]) -> dict[str, str]:
    """Name of every variant without its level of noise, and one variant that has it."""
    levels = noise_levels(config)
    if not levels:
        return {name: name for name in config["methods"]}
    return {base: name for level in reversed(levels) for name, base in level.variants.items()}


def optimized_variants(config: Mapping[str, Any]) -> list[str]:
    """The variants that Best-of-N and PPO optimize against."""
    named = config["overoptimization"]["variants"]
    cards = {name: load_method_card(entry["method"]) for name, entry in config["methods"].items()}
    return named or [name for name, card in cards.items() if card.scalar_reward and not card.without_model]


def _point(variant: str, value: str) -> str:
    return f"{variant}_{value}".replace(".", "p").replace("+", "")


def _add(variants: Entries, name: str, entry: dict[str, Any], axis: str) -> None:
    if variants.setdefault(name, entry) != entry:
        raise ConfigError([f"methods.{name}: {axis} gives this name to another variant; choose another name"])
