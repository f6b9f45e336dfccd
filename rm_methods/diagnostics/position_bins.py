"""Positions of a sequence in equal stages.

Position j of L covers [j / L, (j + 1) / L] of the sequence, and stage s of S covers [s / S, (s + 1) / S]. The mass of a
position is divided among the stages by overlap. So even attention gives each stage 1 / S, whatever the length.
"""

from __future__ import annotations

import numpy as np

STAGES = 10
LATE_STAGES = 3  # the last ones, whose mass is the one-number summary


def uniform_mass(measure: str, stages: int = STAGES) -> np.ndarray:
    """The mass of each stage of a long sequence if all tokens attend evenly to what they may see, float64 [stages].

    The last token sees all: 1 / S. Under a causal mask, position x in (0, 1) of the sequence receives the integral of
    1/t from x to 1, which is -log(x), and all positions up to x receive x - x log(x). So the mass falls along the
    sequence, although no token prefers another.

    Args:
        measure: "reward_row" or "received".
    """
    edges = np.linspace(0, 1, stages + 1)
    up_to = edges.copy()
    if measure == "received":
        up_to[1:] -= edges[1:] * np.log(edges[1:])
    return np.diff(up_to)


def stage_mass(mass: np.ndarray, stages: int = STAGES) -> np.ndarray:
    """Mass per stage, normalized to 1.

    Args:
        mass: [L], not negative, one value a position.

    Returns:
        float64 [stages]; NaN if the mass is 0.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(mass, dtype=np.float64)])
    if not cumulative[-1] > 0:
        return np.full(stages, np.nan)
    edges = np.linspace(0, len(mass), stages + 1)
    return np.diff(np.interp(edges, np.arange(len(mass) + 1), cumulative)) / cumulative[-1]
