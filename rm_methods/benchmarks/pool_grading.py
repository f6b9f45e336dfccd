"""Grading of pools: a prompt has many candidates with gold values, and a scorer picks the best."""

from __future__ import annotations

from typing import Any

import numpy as np

from rm_methods.errors import DataError

GOLD_RULE = "equal scores at the top: the one with the lowest gold counts (strict); within a pair they are wrong"


def candidate_gold(label: Any, n_responses: int) -> np.ndarray:
    """Gold values of the candidates from an item's label: a list of numbers, or an object with that list under "gold".

    Returns:
        float64 [responses].

    Raises:
        DataError: the label is neither, has too many or too few numbers, or one that is not finite.
    """
    values = label.get("gold") if isinstance(label, dict) else label
    refused = f"label {str(label)[:80]!r} is not allowed"
    if not isinstance(values, list) or not values or not all(map(_is_number, values)):
        raise DataError(f"{refused}; expected the gold values of the responses, a list of numbers.")
    if len(values) != n_responses:
        raise DataError(f"{refused}; it holds {len(values)} gold values for {n_responses} responses.")
    gold = np.asarray(values, dtype=np.float64)
    if not np.isfinite(gold).all():
        raise DataError(f"{refused}; gold value {int(np.flatnonzero(~np.isfinite(gold))[0])} is not finite.")
    return gold


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def gold_comparisons(gold: np.ndarray) -> list[tuple[int, int]]:
    """All pairs (better, worse) of candidates whose gold differs."""
    better, worse = np.nonzero(gold[:, None] > gold[None, :])
    return list(zip(better.tolist(), worse.tolist(), strict=True))


def gold_ties(gold: np.ndarray, scores: np.ndarray) -> tuple[int, int]:
    """Number of `gold_comparisons` with equal scores, and of all, without listing them; NaN equals nothing.

    >>> gold_ties(np.array([0.2, 1.0, 1.0]), np.array([3.0, 3.0, 3.0]))
    (2, 2)
    """
    has_score = ~np.isnan(scores)
    equal_scores = _equal_pairs(scores[has_score]) - _equal_pairs(scores[has_score], gold[has_score])
    return equal_scores, len(gold) * (len(gold) - 1) // 2 - _equal_pairs(gold)


def _equal_pairs(*columns: np.ndarray) -> int:
    """Number of pairs of rows that agree in all columns."""
    order = np.lexsort(columns)
    differs = np.zeros(max(len(order) - 1, 0), dtype=bool)
    for column in columns:
        differs |= column[order][1:] != column[order][:-1]
    sizes = np.diff(np.concatenate([[0], np.flatnonzero(differs) + 1, [len(order)]]))
    return int((sizes * (sizes - 1) // 2).sum())


def gold_of_top(gold: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Gold of the candidate with the highest score, (strict, expected); 0 if any score is NaN.

    strict: if several candidates share the highest score, the worst of them counts, so that a tie never helps.
    expected: their mean, as if the tie were broken at random.

    A candidate without a score may be the one that the scorer would have ranked first, so leaving it out could help.
    The official code of RewardBench 2 has the same rule (github.com/allenai/reward-bench @ 05a9005).

    >>> gold_of_top(np.array([0.2, 1.0, 0.6]), np.array([3.0, 1.0, 3.0]))
    (0.2, 0.4)
    """
    if np.isnan(scores).any():
        return 0.0, 0.0
    top = gold[scores == scores.max()]
    return float(top.min()), float(top.mean())


def agreement(gold: np.ndarray, scores: np.ndarray) -> float:
    """Share of the pairs of candidates with different gold that the scores order alike, strictly. NaN is wrong."""
    better = gold[:, None] > gold[None, :]
    above = scores[:, None] > scores[None, :]
    return float(np.divide(np.count_nonzero(better & above), np.count_nonzero(better)))
