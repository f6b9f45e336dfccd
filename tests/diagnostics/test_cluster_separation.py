import math

import numpy as np
import pytest

from rm_methods.diagnostics.cluster_separation import (
    cluster_separation,
    mahalanobis_p_values,
    neighbourhood,
    outlier_probability,
)
from rm_methods.errors import DataError, UserError

# Five points: a cross of arm 0.1 about the origin.
CROSS = np.array([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])


def blobs(*centres, count=40, spread=0.05, seed=0):
    generator = np.random.default_rng(seed)
    return np.concatenate([centre + spread * generator.standard_normal((count, len(centre))) for centre in centres])


def test_equal_points_have_no_separation():
    found = cluster_separation(CROSS, CROSS, eps=0.5, min_samples=3)
    assert (found.index, found.index_with_noise, found.clusters, found.noise_points, found.points) == (0, 0, 1, 0, 5)


def test_a_shifted_cluster_adds_its_size_times_its_distance():
    # The centroid (10, 0) is 9.9 from the nearest reference point (0.1, 0); five points.
    found = cluster_separation(np.concatenate([CROSS, CROSS + np.array([10, 0])]), CROSS, eps=0.5, min_samples=3)
    assert found.index == pytest.approx(5 * 9.9)
    assert (found.clusters, found.noise_points) == (2, 0)


@pytest.mark.parametrize("distance", [20.0, 200.0])
def test_separation_grows_by_n_times_the_shift(distance):
    reference = blobs((0, 0, 0), (3, 0, 0))
    moved = blobs((0, 0, 0), (3, 0, 0), seed=1)
    before = cluster_separation(moved, reference, eps=0.5)
    moved[40:] += [0, distance, 0]
    after = cluster_separation(moved, reference, eps=0.5)
    assert (before.clusters, after.clusters) == (2, 2)
    assert before.index < 5
    assert after.index - before.index == pytest.approx(40 * distance, rel=0.02)


def test_points_in_no_cluster_are_counted_apart():
    # Two lone points at (0, 3) and (0, 5): their centroid (0, 4) is 3.9 from the nearest reference point.
    found = cluster_separation(np.concatenate([CROSS, [[0, 3], [0, 5]]]), CROSS, eps=0.5, min_samples=3)
    assert found.index == 0
    assert found.index_with_noise == pytest.approx(2 * 3.9)
    assert (found.clusters, found.noise_points) == (1, 2)


def test_all_points_may_be_in_no_cluster():
    found = cluster_separation(10 * CROSS + np.array([50, 0]), CROSS, eps=0.01, min_samples=2)
    assert (found.index, found.clusters, found.noise_points) == (0, 0, 5)
    assert found.index_with_noise == pytest.approx(5 * 49.9)


def test_neighbourhood_is_the_distance_to_the_nearest_others():
    # With itself, the second nearest of each of 0, 1, 3, 7 is 1, 1, 2 and 4 away; the median lies between 1 and 2.
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert neighbourhood(line, min_samples=2, quantile=0.5) == 1.5
    assert cluster_separation(line, line, min_samples=2).eps == pytest.approx(np.quantile([1, 1, 2, 4], 0.9))


def test_result_does_not_depend_on_the_order_or_the_scale():
    reference, latents = blobs((0, 0)), blobs((0, 0), (4, 4), seed=2)
    found = cluster_separation(latents, reference)
    shuffled = cluster_separation(latents[::-1], reference[::-1])
    assert shuffled.index == pytest.approx(found.index)
    tenfold = cluster_separation(10 * latents, 10 * reference)
    assert (tenfold.index, tenfold.eps) == (pytest.approx(10 * found.index), pytest.approx(10 * found.eps))


def test_p_values_by_hand():
    # Mean 0, covariance a^2 / 2 times the identity, which shrinking leaves alone: (x, 0) is at squared distance 2 x^2 / a^2, and chi-square
    # with 2 degrees of freedom is exponential, so its p-value is exp(-x^2 / a^2).
    reference = 3 * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    found = mahalanobis_p_values(np.array([[0.0, 0], [3, 0], [0, -6]]), reference)
    assert found == pytest.approx([1, math.exp(-1), math.exp(-4)])
    # 0.37 and 0.018: one of three lies below 0.1, two below 0.5.
    assert outlier_probability(np.array([[0.0, 0], [3, 0], [0, -6]]), reference, 0.1) == pytest.approx(1 / 3)
    assert outlier_probability(np.array([[0.0, 0], [3, 0], [0, -6]]), reference, 0.5) == pytest.approx(2 / 3)


def test_outlier_probability_is_the_threshold_for_the_reference_itself_and_1_far_away():
    generator = np.random.default_rng(0)
    stretch = np.array([1.0, 5, 0.2, 2])
    reference, same = (stretch * generator.standard_normal((4000, 4)) for _ in range(2))
    assert outlier_probability(same, reference, 0.05) == pytest.approx(0.05, abs=0.012)
    assert outlier_probability(same + 10 * stretch, reference, 0.05) == 1


def test_fewer_samples_than_dimensions_can_be_used():
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((20, 64))
    values = mahalanobis_p_values(np.concatenate([reference, reference + 50]), reference)
    assert np.isfinite(values).all()
    assert values[:20].min() > values[20:].max()


@pytest.mark.parametrize("function", [cluster_separation, mahalanobis_p_values])
@pytest.mark.parametrize(
    ("latents", "reference", "message"),
    [
        (np.zeros((0, 2)), CROSS, r"latents: must be a table.*got shape \(0, 2\)"),
        (CROSS, np.zeros(5), r"reference: must be a table.*got shape \(5,\)"),
        (CROSS[:, :1], CROSS, "latents have 1 dimensions, reference 2"),
        (CROSS, np.where(CROSS == 0.1, np.nan, CROSS), "reference: row 2 has a value that is not finite"),
    ],
)
def test_unusable_sets_are_refused(function, latents, reference, message):
    with pytest.raises(DataError, match=message):
        function(latents, reference)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="eps = 0: must be above 0"):
        cluster_separation(CROSS, CROSS, eps=0)
    with pytest.raises(UserError, match=r"eps = 0.0.*most reference latents are equal"):
        cluster_separation(CROSS, np.zeros((9, 2)))
    with pytest.raises(UserError, match="5 reference latents are too few for min_samples = 6"):
        cluster_separation(CROSS, CROSS, min_samples=6)
    with pytest.raises(UserError, match="min_samples = 0"):
        cluster_separation(CROSS, CROSS, min_samples=0)
    with pytest.raises(UserError, match="threshold = 1"):
        outlier_probability(CROSS, CROSS, 1)
    with pytest.raises(DataError, match="reference latents that differ"):
        mahalanobis_p_values(CROSS, np.zeros((9, 2)))
