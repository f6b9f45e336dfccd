"""Best-of-N on stored samples: the expected gold and proxy reward of the response that a reward model picks among n,
for every n at once.

From N stored responses of a prompt, sorted by proxy score from the worst (rank 1) to the best, draw n without
replacement and keep the best.  The draw's best is among the ranks up to i in C(i, n) of C(N, n) draws, so

    E[gold of the best of n] = sum_{i=n}^{N} w_i gold_(i)
    w_i = (C(i, n) - C(i-1, n)) / C(N, n) = C(i-1, n-1) / C(N, n)

an unbiased estimate of Best-of-n under the policy, with less variance than picking from the first n samples (Gao et
al., arXiv:2210.10760, appendix; Nakano et al., arXiv:2112.09332, appendix I).

Ties.  Responses with equal scores on the ranks a..b are picked with the probability (C(b, n) - C(a-1, n)) / C(N, n)
together, whatever their order is, and by symmetry evenly among them when ties are broken at random.  So each gets the
mean weight of its group, which equals giving each the mean gold of its group.  That is the exact expectation over tie
orders, without random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.members import Members
from rm_methods.benchmarks.pool_grading import candidate_gold
from rm_methods.errors import DataError, UserError
from rm_methods.overoptimization.kl import kl_bound, kl_estimate


@dataclass(frozen=True)
class PoolCurves:
    """Best-of-n of one reward model on one pool.  P prompts, K numbers of samples.

    Attributes:
        n: int64 [K], rising.
        item_ids, groups: of the prompts, [P].
        gold, proxy: float64 [P, K], expected gold and proxy reward of the pick.
        proxy_standardized: float64 [P, K], see `standardized`.
        oracle: float64 [P, K], gold if the gold reward picks: the most that any reward model can reach.
        kl_bound: float64 [K]; kl_estimate: float64 [P, K]; nats.
        notes: facts that a reader of the numbers must know.
        counts: prompts, responses, duplicates, empty responses, tied responses.
    """

    n: np.ndarray
    item_ids: tuple[str, ...]
    groups: tuple[str, ...]
    gold: np.ndarray
    proxy: np.ndarray
    proxy_standardized: np.ndarray
    oracle: np.ndarray
    kl_bound: np.ndarray
    kl_estimate: np.ndarray
    notes: tuple[str, ...]
    counts: dict[str, int]


def numbers_of_samples(largest: int) -> np.ndarray:
    """Powers of two up to the size of a pool, and that size itself, int64.

    >>> numbers_of_samples(36).tolist()
    [1, 2, 4, 8, 16, 32, 36]
    """
    powers = 2 ** np.arange(int(largest).bit_length())
    return np.unique([*powers, largest]).astype(np.int64)


def best_of_n_weights(n_stored: int, n: ArrayLike) -> np.ndarray:
    """w_i for ranks 1..N, float64 [N, K]: each column sums to 1.  By log-gamma, so that N = 12,600 does not overflow.

    Raises:
        UserError: an n is below 1 or above N.
    """
    from scipy.special import gammaln

    numbers = np.asarray(n, dtype=np.int64)
    if len(numbers) == 0 or numbers.min() < 1 or numbers.max() > n_stored:
        raise UserError(
            f"Best-of-n needs 1 <= n <= {n_stored} (the stored responses of a prompt), found n = {numbers.tolist()}."
        )
    rank = np.arange(1, n_stored + 1)[:, None]
    possible = rank >= numbers
    below = np.where(possible, rank - numbers, 0)
    # log C(rank - 1, n - 1) - log C(N, n)
    log_draws = gammaln(rank) - gammaln(numbers) - gammaln(below + 1.0)
    log_all_draws = gammaln(n_stored + 1.0) - gammaln(numbers + 1.0) - gammaln(n_stored - numbers + 1.0)
    return np.where(possible, np.exp(log_draws - log_all_draws), 0.0)


def expected_best(scores: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected value of the response that has the highest score among n, ties broken at random (exact).

    Args:
        scores: [N], by which the response is picked; finite.
        values: float64 [N], value of each response, or [N, V] for several kinds of values.
        weights: float64 [N, K] of `best_of_n_weights`.

    Returns:
        float64 [K] or [V, K].
    """
    order = np.argsort(scores)
    ordered = scores[order]
    values = values[order]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    if not starts.all():
        first = np.flatnonzero(starts)
        sizes = np.diff(np.append(first, len(ordered)))
        sums = np.add.reduceat(values, first, axis=0)
        values = np.repeat((sums.T / sizes).T, sizes, axis=0)
    return values.T @ weights


def read_pool_scores(items: Sequence[BenchmarkItem], scores: str | Path) -> list[np.ndarray]:
    """The scores of the responses of a pool from a score table, float32 [responses] for each item.

    Raises:
        DataError: the file is wrong, the score table was made from other items, or a score is NaN or infinite.
    """
    from rm_methods.benchmarks.evaluation import align_scores

    aligned, _ = align_scores(items, scores)
    for item, item_scores in zip(items, aligned, strict=True):
        if not np.isfinite(item_scores).all():
            response = int(np.flatnonzero(~np.isfinite(item_scores))[0])
            raise DataError(
                f"{scores}: the score of item {item.item_id!r}, response {response}, is not finite. Best-of-n cannot "
                "rank it: correct the reward model (too high a learning rate, overflow in bf16) and score again."
            )
    return aligned


def pool_curves(
    items: Sequence[BenchmarkItem], scores: Sequence[np.ndarray], n: Sequence[int] | None = None
) -> PoolCurves:
    """Best-of-n of one reward model on a pool.

    Args:
        items: with the gold values of the responses as label.
        scores: for each item those of its responses, float32.
        n: numbers of samples; by default powers of two up to the smallest pool of a prompt, and that size.

    Raises:
        DataError: no items, a label without gold values, other numbers of scores than responses, or a score that is
            not finite.
        UserError: an n above the smallest number of responses.
    """
    if not items:
        raise DataError("Best-of-n needs a pool with at least one prompt; this one is empty.")
    gold = [candidate_gold(item.label, len(item.responses)) for item in items]
    for item, item_scores in zip(items, scores, strict=True):
        if len(item_scores) != len(item.responses) or not np.isfinite(item_scores).all():
            raise DataError(
                f"item {item.item_id!r}: {len(item.responses)} finite scores are needed, found "
                f"{np.asarray(item_scores)}."
            )
    sizes = [len(item.responses) for item in items]
    smallest = min(sizes)
    numbers = numbers_of_samples(smallest) if n is None else np.array(sorted(set(n)), dtype=np.int64)
    if len(numbers) == 0 or numbers[0] < 1 or numbers[-1] > smallest:
        raise UserError(
            f"n = {numbers.tolist()}: Best-of-n needs 1 <= n <= {smallest}, the smallest number of responses of a "
            "prompt here."
        )
    weights = {size: best_of_n_weights(size, numbers) for size in set(sizes)}
    expected: dict[str, list[np.ndarray]] = {"gold": [], "proxy": [], "oracle": [], "kl": []}
    for item, item_scores, item_gold in zip(items, scores, gold, strict=True):
        weight = weights[len(item_scores)]
        picked = expected_best(item_scores, np.column_stack([item_gold, item_scores]).astype(np.float64), weight)
        expected["gold"].append(picked[0])
        expected["proxy"].append(picked[1])
        expected["oracle"].append(np.sort(item_gold) @ weight)
        log_probabilities = item.meta.get("log_probabilities") if item.meta.get("plain_sampling") else None
        expected["kl"].append(kl_estimate(item_scores, numbers, item.responses, log_probabilities))
    curves = {name: np.array(rows) for name, rows in expected.items()}
    return PoolCurves(
        n=numbers,
        item_ids=tuple(item.item_id for item in items),
        groups=tuple(item.group or item.item_id for item in items),
        gold=curves["gold"],
        proxy=curves["proxy"],
        proxy_standardized=standardized(curves["proxy"], scores),
        oracle=curves["oracle"],
        kl_bound=kl_bound(numbers),
        kl_estimate=curves["kl"],
        notes=_notes(sizes, scores),
        counts=pool_counts(items, scores),
    )


def left_out_gold(items: Sequence[BenchmarkItem], scores: str | Path, members: Members, pool: str) -> np.ndarray | None:
    """Gold of the pick of a combined reward model without each of its M members, float64 [M, P, K].

    Args:
        scores: score table of the combined model.
        members: with their score tables of the pool.

    Returns:
        None if the method does not define its scores without a member, or a member gives none for some response.

    Raises:
        DataError: a score table does not fit the items.
    """
    from rm_methods.benchmarks.evaluation import left_out_scores

    left_out = left_out_scores(items, scores, members, pool)
    if left_out is None or not all(np.isfinite(np.concatenate(scoring)).all() for scoring in left_out):
        return None
    return np.stack([pool_curves(items, scoring).gold for scoring in left_out])


def standardized(curves: np.ndarray, scores: Sequence[np.ndarray]) -> np.ndarray:
    """Curves of the proxy in standard deviations of the proxy within a prompt, less each prompt's mean, float64 [P,
    K]; 0 at n = 1.

    A Bradley-Terry reward has an arbitrary offset for every prompt and an arbitrary scale, so the proxies of two
    reward models can only be compared after both are taken out.  The scale is the root of the mean over prompts of the
    variance within a prompt.
    """
    center = np.array([np.mean(prompt, dtype=np.float64) for prompt in scores])
    scale = np.sqrt(np.mean([np.var(prompt, dtype=np.float64) for prompt in scores]))
    return (curves - center[:, None]) / scale if scale > 0 else np.zeros_like(curves)


def pool_counts(items: Sequence[BenchmarkItem], scores: Sequence[np.ndarray] | None = None) -> dict[str, int]:
    """Counts of a pool; nothing is dropped.  A duplicate repeats an earlier response of its prompt."""
    counts: dict[str, Any] = {
        "prompts": len(items),
        "responses": sum(len(item.responses) for item in items),
        "duplicates": sum(len(item.responses) - len(set(item.responses)) for item in items),
        "empty": sum(not response.strip() for item in items for response in item.responses),
    }
    if scores is not None:
        counts["tied"] = sum(len(prompt) - len(np.unique(prompt)) for prompt in scores)
    return counts


def _notes(sizes: Sequence[int], scores: Sequence[np.ndarray]) -> tuple[str, ...]:
    notes = []
    if min(sizes) < max(sizes):
        notes.append(
            f"Prompts have {min(sizes)} to {max(sizes)} responses; the largest n is the smallest of these numbers, so "
            "that every n has all prompts."
        )
    if all(np.ptp(prompt) == 0 for prompt in scores):
        notes.append(
            "All scores of a prompt are equal, for every prompt: every pick is random and the proxy has no scale."
        )
    return tuple(notes)
