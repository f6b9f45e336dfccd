"""KL divergence of Best-of-n from the policy it samples from: the usual bound, and an estimate that accounts for
repeated responses.

Best-of-n draws n responses y and keeps one with the highest score.  Let F(s) be the policy's probability of a score of
at most s and F-(s) of one below s.  Best-of-n gives the score s with probability F(s)^n - F-(s)^n, and among
responses of one score it keeps the policy's proportions.  So the KL divergence is a sum over scores alone (natural
logarithm, nats):

    KL = sum over s of (F^n - F-^n) log[ (F^n - F-^n) / (F - F-) ]                                              (1)

Where no single score has a noticeable probability the sum becomes an integral over u = F in [0, 1] of
n u^(n-1) log(n u^(n-1)), which is log n - (n - 1)/n.  The literature prints that formula as the KL divergence.
Merging scores can only lower it, so it is an upper bound (Beirami et al., "Theoretical Guarantees on the Best-of-n
Alignment Policy", arXiv:2401.01879, theorem 3.1).  It is loose where the policy often repeats itself: a policy of two
equally likely responses has a KL divergence of at most log 2 for every n.

The estimate takes the scores of N stored samples.  The interval of F that a score takes up is split in an *atom*,
summed as in (1), and a *continuum*, integrated; so it is never above the bound.  With one atom of probability e at the
top it is exactly the estimator of Beirami et al. (section 4):

    (1-e)^n (log n + (n-1) log(1-e) - (n-1)/n) + (1 - (1-e)^n) log[ (1 - (1-e)^n) / e ]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

# A text this unlikely cannot be told from continuum; far below, its interval of F would vanish in rounding.
SMALLEST_ATOM = 1e-9


def kl_bound(n: ArrayLike) -> np.ndarray:
    """log n - (n - 1)/n in nats, float64, the shape of `n`.

    >>> [round(float(kl_bound(n)), 3) for n in (1, 2, 16, 1024)]
    [0.0, 0.193, 1.835, 5.932]
    """
    numbers = np.asarray(n, dtype=np.float64)
    return np.log(numbers) - (numbers - 1) / numbers


def kl_estimate(
    scores: np.ndarray,
    n: ArrayLike,
    responses: Sequence[str] | None = None,
    log_probabilities: np.ndarray | None = None,
) -> np.ndarray:
    """Estimated KL divergence of Best-of-n for one prompt from N stored samples.

    A score that several samples have is an atom of probability (number of them) / N.  A score of a single sample does
    not show its probability and counts as continuum: without repetitions the estimate is the bound.  If the
    log-probabilities of the samples are known, a score of only one text is an atom with that text's probability (but
    never more than its share of the samples).

    Args:
        scores: proxy rewards of the samples, [N], finite.
        n: numbers of samples, [K].
        responses: the samples' texts, [N].
        log_probabilities: of each text under the distribution that the samples were drawn from, [N], nats; used only
            with `responses`.

    Returns:
        float64 [K], nats, never above `kl_bound(n)`.
    """
    numbers = np.atleast_1d(np.asarray(n, dtype=np.float64))
    total = len(scores)
    order = np.argsort(scores, kind="stable")
    ordered = np.asarray(scores)[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    last = np.concatenate([first[1:], [total]])
    share = (last - first) / total
    atom = np.where(last - first > 1, share, 0.0)
    if responses is not None and log_probabilities is not None:
        of_text = np.minimum(share, np.exp(np.asarray(log_probabilities, dtype=np.float64)[order[first]]))
        single = last - first == 1
        atom[single] = of_text[single]
        for k in np.flatnonzero(~single):
            if len({responses[i] for i in order[first[k] : last[k]]}) == 1:
                atom[k] = of_text[k]
    atoms = atom > SMALLEST_ATOM
    upper = last[atoms] / total
    lower = upper - atom[atoms]
    lower[lower < 1e-12] = 0.0  # rounding of the subtraction, where the atom begins at 0
    corrections = _atom_terms(lower, upper, numbers) - _continuum_terms(lower, upper, numbers)
    return np.clip(kl_bound(numbers) + corrections.sum(axis=0), 0.0, kl_bound(numbers))


def _atom_terms(lower: np.ndarray, upper: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Summands of (1) for outcomes that take up the intervals [lower, upper] of F, [atoms, K]; in logarithms, because
    F^n underflows."""
    lower, upper, n = lower[:, None], upper[:, None], n[None, :].astype(np.float64)
    with np.errstate(divide="ignore"):
        below = np.where(lower > 0, n * np.log(np.maximum(lower, 1e-300) / upper), -np.inf)
        log_mass = n * np.log(upper) + np.log(-np.expm1(below))
    return np.exp(log_mass) * (log_mass - np.log(upper - lower))


def _continuum_terms(lower: np.ndarray, upper: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Integral of n u^(n-1) log(n u^(n-1)) over u from lower to upper, [atoms, K]."""

    def below(u: np.ndarray) -> np.ndarray:
        log_u = np.log(np.maximum(u[:, None], 1e-300))
        return np.exp(n * log_u) * (np.log(n) + (n - 1) * log_u - (n - 1) / n)

    return below(upper) - below(lower)
