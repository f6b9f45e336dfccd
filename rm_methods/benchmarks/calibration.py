"""Calibration of rewards on pairs: is sigmoid(margin) the probability that the prediction is right?

Which response of a pair stands first is arbitrary, so confidence is defined without order: the prediction is the
response with the higher reward, its confidence is sigmoid(|margin|), from 0.5 to 1, and it is right if that response is
the chosen one. Equal rewards predict nothing; such a pair counts as half right, with confidence 0.5.

    ECE = sum over bins of n_bin / n * |accuracy of the bin - mean confidence of the bin|

Source: Naeini et al. 2015 (AAAI); Guo et al. 2017 (arXiv:1706.04599), who use 15 bins of equal width. Here bins hold
equal numbers of pairs: the margins of a reward model gather at one end of the range, so bins of equal width would hold
nearly all pairs or nearly none.

The ECE of few pairs is never 0: accuracy differs from confidence by chance in every bin. `ece_if_calibrated` is its
expectation for a calibrated model with these confidences, so only an ECE well above it says something.
"""

from __future__ import annotations

import math

import numpy as np

from rm_methods.run_card import Calibration, CalibrationBin

MOST_BINS = 15
PAIRS_PER_BIN = 20  # at least, but for pairs of equal confidence; fewer pairs have fewer bins


def calibration(margins: np.ndarray) -> Calibration | None:
    """Expected calibration error of sigmoid(margin), and its bins.

    Args:
        margins: reward of the chosen response minus that of the rejected one, float64 [pairs]. NaN (a missing score) is
            left out.

    Returns:
        None without a pair that has both scores.
    """
    margins = margins[np.isfinite(margins)]
    if not len(margins):
        return None
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = np.where(margins == 0, 0.5, margins > 0)
    bins: list[CalibrationBin] = []
    error = 0.0
    expected = 0.0
    number = confidence_bins(confidence)
    for code in np.unique(number):
        members = number == code
        n = int(members.sum())
        mean_confidence = float(confidence[members].mean())
        accuracy = float(right[members].mean())
        bins.append(
            {
                "low": float(confidence[members].min()),
                "high": float(confidence[members].max()),
                "n": n,
                "mean_confidence": mean_confidence,
                "accuracy": accuracy,
            }
        )
        error += n / len(margins) * abs(accuracy - mean_confidence)
        # Mean absolute deviation of a normal variable with the variance of the bin's accuracy.
        variance = float((confidence[members] * (1 - confidence[members])).mean()) / n
        expected += n / len(margins) * math.sqrt(2 / math.pi * variance)
    return {"ece": error, "ece_if_calibrated": expected, "bins": bins}


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin of each pair, int64 ascending with confidence: up to 15 bins of equal numbers of pairs.

    Pairs of equal confidence are in one bin, so the order of the pairs has no influence.
    """
    bins = min(MOST_BINS, max(1, len(confidence) // PAIRS_PER_BIN))
    last_of_bin = np.arange(1, bins) * len(confidence) // bins - 1
    limits = np.sort(confidence)[last_of_bin]
    return np.searchsorted(np.unique(limits), confidence, side="left")
