"""Positions of a sequence in equal stages.

Position j of L covers the stretch [j / L, (j + 1) / L] of the sequence, stage s of S the stretch [s / S, (s + 1) / S]; a position's mass
is shared out by overlap.  So even attention gives each stage 1 / S whatever the length, also where L is no multiple of S or below it.
"""

from __future__ import annotations

import numpy as np

STAGES = 10
LATE_STAGES = 3  # the last ones, whose mass is the one-number summary


def uniform_mass(measure: str, stages: int = STAGES) -> np.ndarray:
    """What each stage of a long sequence has if every token attends evenly to all that it may see, float64 [stages].

    The last token sees all: 1 / S.  Under a causal mask position x in (0, 1) of the sequence receives the integral of 1/t from x to 1,
    which is -log(x), and up to x there are x - x log(x): the map decays forward though no token prefers another.

    Args:
        measure: "reward_row" or "received".
    """
    edges = np.linspace(0, 1, stages + 1)
    up_to = edges.copy()
    if measure == "received":
        up_to[1:] -= edges[1:] * np.log(edges[1:])
    return np.diff(up_to)


def stage_mass(mass: np.ndarray, stages: int = STAGES) -> np.ndarray:
    """Mass per stage, normalised to 1.

    Args:
        mass: [L], not negative, one value a position.

    Returns:
        float64 [stages]; NaN if there is no mass.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(mass, dtype=np.float64)])
    if not cumulative[-1] > 0:
        return np.full(stages, np.nan)
    edges = np.linspace(0, len(mass), stages + 1)
    return np.diff(np.interp(edges, np.arange(len(mass) + 1), cumulative)) / cumulative[-1]
