"""The runs of an experiment that are diagnosed, and the measures.  Imports nothing heavy, for the Snakefile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_methods.config.resolve import runs
from rm_methods.methods.registry import MethodCard, load_method_card

MEASURES = {"reward_row": "attention of the reward token", "received": "attention received"}
SHOWN_VERSIONS = ("raw", "controlled")
MODES = {"sequence": "start of prompt and response hidden", "response": "start of the response hidden"}
PERCENTS = tuple(range(0, 100, 10))  # of the text, hidden


def obstacle(card: MethodCard) -> str | None:
    """Why the models of a method cannot be diagnosed, or None if they can."""
    if card.kind == "trained":
        return None
    if card.kind == "joint":
        return "joint: no scalar reward, it reads both responses together"
    return f"{card.kind.replace('_', '-')}: no model is trained"


def diagnosed_runs(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(variant, seed) of every run that can be diagnosed and that the configuration asks for."""
    without = left_out(config)
    seeds = config["diagnostics"]["seeds"] or config["seeds"]
    return [(variant, seed) for variant, seed in runs(config) if variant not in without and seed in seeds]


def left_out(config: Mapping[str, Any]) -> dict[str, str]:
    """The other variants, each with the reason."""
    reasons = {variant: obstacle(load_method_card(entry["method"])) for variant, entry in config["methods"].items()}
    for variant in config["methods"]:
        if variant not in (config["diagnostics"]["variants"] or config["methods"]):
            reasons[variant] = reasons[variant] or "not among diagnostics.variants"
    return {variant: reason for variant, reason in reasons.items() if reason}


def teachers(config: Mapping[str, Any], variant: str) -> list[str]:
    """The joint variants that a variant's attention is compared with: its teacher, or all of them if it has none."""
    entry = config["methods"][variant]
    joint = [name for name, other in config["methods"].items() if load_method_card(other["method"]).kind == "joint"]
    required = load_method_card(entry["method"]).required_variants(entry["settings"]).values()
    return [name for name in required if name in joint] or joint


def figure_names(config: Mapping[str, Any]) -> list[str]:
    """File names of the figures, without their suffixes."""
    kinds = [f"attention_{measure}_{version}" for measure in MEASURES for version in SHOWN_VERSIONS]
    return [
        f"{benchmark}_{kind}"
        for benchmark in config["diagnostics"]["benchmarks"]
        for kind in [*kinds, "masking", "masking_subsets"]
    ]
