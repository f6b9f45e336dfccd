"""How far a set of latents lies from a reference set: two detectors of over-optimization after InfoRM.

Cluster separation index (Miao et al. 2024, arXiv 2402.09345): latents of responses that a policy or Best-of-N chose are clustered; each
cluster counts its size times the distance of its centroid from the nearest latent of the reference (the untouched SFT policy).
Mahalanobis outlier probability (journal version, arXiv 2510.13694): share of latents that are improbable under a Gaussian fitted to the
reference.  Here both are computed in the raw latents; the released code first applies UMAP.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rm_methods.errors import DataError, UserError


@dataclass(frozen=True)
class ClusterSeparation:
    """The index, and what it was computed with.

    Attributes:
        index: sum over clusters of size x distance, without the points that DBSCAN leaves in no cluster.
        index_with_noise: the same with those points as one more cluster, as a loop over all labels counts them.
        clusters: number of clusters.
        noise_points: points in no cluster.
        points: number of latents; `index / points` is comparable between sets of different size.
        eps, min_samples: of DBSCAN.
    """

    index: float
    index_with_noise: float
    clusters: int
    noise_points: int
    points: int
    eps: float
    min_samples: int


def cluster_separation(
    latents: np.ndarray, reference: np.ndarray, eps: float | None = None, min_samples: int = 5
) -> ClusterSeparation:
    """Cluster separation index of `latents` [n, d] against `reference` [m, d].

    Args:
        eps: DBSCAN's neighbourhood, in units of the latent; None takes `neighbourhood` of the reference.
        min_samples: DBSCAN's, points (with itself) in the neighbourhood of a core point.

    Raises:
        DataError: a set is empty, not finite, or of another width.
        UserError: eps or min_samples is not positive, or None for eps with a reference that gives none.
    """
    from sklearn.cluster import DBSCAN

    latents, reference = _checked(latents, reference)
    if min_samples < 1:
        raise UserError(f"min_samples = {min_samples}: must be at least 1.")
    eps = neighbourhood(reference, min_samples) if eps is None else eps
    if not (np.isfinite(eps) and eps > 0):
        raise UserError(
            f"eps = {eps}: must be above 0. If it was computed, most reference latents are equal: give eps."
        )
    labels = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(latents)
    parts = {label: _separation(latents[labels == label], reference) for label in np.unique(labels)}
    noise = parts.pop(-1, 0.0)
    index = float(sum(parts.values()))
    return ClusterSeparation(
        index, index + noise, len(parts), int((labels == -1).sum()), len(latents), float(eps), min_samples
    )


def neighbourhood(reference: np.ndarray, min_samples: int = 5, quantile: float = 0.9) -> float:
    """The radius within which this share of the reference latents would be core points of DBSCAN (our choice; the paper names none)."""
    from sklearn.neighbors import NearestNeighbors

    if len(reference) < min_samples:
        raise UserError(
            f"eps: {len(reference)} reference latents are too few for min_samples = {min_samples}. Give eps, or more of them."
        )
    distances, _ = NearestNeighbors(n_neighbors=min_samples).fit(reference).kneighbors(reference)
    return float(np.quantile(distances[:, -1], quantile))


def mahalanobis_p_values(latents: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """For each of `latents` [n, d], the probability of lying as far out under a Gaussian fitted to `reference` [m, d]; fp64 [n].

    The covariance is shrunk (Ledoit-Wolf), so that it can be inverted also where m is not much larger than d; distances squared are taken
    as chi-square with d degrees of freedom.

    Raises:
        DataError: a set is empty, not finite, or of another width; the reference has fewer than 2 latents, or all are equal.
    """
    from scipy.stats import chi2
    from sklearn.covariance import LedoitWolf

    latents, reference = _checked(latents, reference)
    if len(reference) < 2 or not np.ptp(reference, axis=0).any():
        raise DataError("A Gaussian needs reference latents that differ; give more of them.")
    return chi2.sf(LedoitWolf().fit(reference).mahalanobis(latents), latents.shape[1])


def outlier_probability(latents: np.ndarray, reference: np.ndarray, threshold: float = 0.01) -> float:
    """Mahalanobis outlier probability: share of `latents` whose p-value is below `threshold`.  Near the threshold means nothing unusual."""
    if not 0 < threshold < 1:
        raise UserError(f"threshold = {threshold}: must be between 0 and 1.")
    return float((mahalanobis_p_values(latents, reference) < threshold).mean())


def _separation(members: np.ndarray, reference: np.ndarray) -> float:
    """Size of a cluster times the distance of its centroid from the nearest reference latent."""
    return float(len(members) * np.linalg.norm(reference - members.mean(axis=0), axis=1).min())


def _checked(latents: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = {"latents": np.asarray(latents, dtype=np.float64), "reference": np.asarray(reference, dtype=np.float64)}
    for name, values in found.items():
        if values.ndim != 2 or not values.size:
            raise DataError(
                f"{name}: must be a table of samples x dimensions with at least one of each, got shape {values.shape}."
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0]) + 1
            raise DataError(f"{name}: row {row} has a value that is not finite.")
    if found["latents"].shape[1] != found["reference"].shape[1]:
        widths = [values.shape[1] for values in found.values()]
        raise DataError(
            f"latents have {widths[0]} dimensions, reference {widths[1]}. Both must come from the same model."
        )
    return found["latents"], found["reference"]
