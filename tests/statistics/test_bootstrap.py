import numpy as np
import pytest

from rm_methods.statistics.bootstrap import interval, length_bins, means, resampled_counts, standardized_means


def test_the_first_row_is_the_sample_and_the_rest_is_seeded():
    counts = resampled_counts(7, replicates=5, seed=1)
    assert counts.shape == (6, 7)
    assert (counts[0] == 1).all()
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(counts, resampled_counts(7, replicates=5, seed=1))
    assert not np.array_equal(counts, resampled_counts(7, replicates=5, seed=2))


def test_replicates_are_the_means_of_resampled_clusters(generator):
    values, cluster = generator.random((9, 2)), np.array([0, 0, 1, 1, 1, 2, 3, 3, 3])
    counts = resampled_counts(4, replicates=20)
    found = means(values, cluster, counts)
    for count, replicate in zip(counts, found, strict=True):
        rows = np.concatenate([np.repeat(np.flatnonzero(cluster == c), int(count[c])) for c in range(4)])
        np.testing.assert_allclose(replicate, values[rows].mean(axis=0))


def test_a_cluster_is_drawn_as_a_whole():
    """Two rows a cluster with opposite values: every replicate has the mean 0, so the interval has no width."""
    values = np.tile([[1.0], [-1.0]], (20, 1))
    low, high = interval(means(values, np.repeat(np.arange(20), 2), resampled_counts(20)))
    assert (low[0], high[0]) == (0, 0)
    low, high = interval(means(values, np.arange(40), resampled_counts(40)))
    assert low[0] < -0.2 < 0.2 < high[0]


def test_the_interval_has_the_width_of_the_normal_theory(generator):
    values = generator.normal(size=(400, 1))
    low, high = interval(means(values, np.arange(400), resampled_counts(400)))
    assert (high - low)[0] == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert low[0] < values.mean() < high[0]


def test_length_control_removes_a_difference_that_is_only_length():
    """Mass depends on length alone; misclassified sequences are longer more often.  Raw differs, controlled does
    not."""
    length = np.array([10] * 60 + [50] * 60)
    group = np.array([0] * 50 + [1] * 10 + [0] * 10 + [1] * 50)
    values = np.where(length == 50, 0.6, 0.3)[:, None]
    counts = resampled_counts(120, replicates=50)
    raw = standardized_means(values, group, np.arange(120), np.zeros(120, dtype=int), counts)[0, :, 0]
    np.testing.assert_allclose(raw, [(50 * 0.3 + 10 * 0.6) / 60, (10 * 0.3 + 50 * 0.6) / 60])
    bins = length_bins(length)
    assert sorted(set(bins)) == [0, 1]
    controlled = standardized_means(values, group, np.arange(120), bins, counts)
    np.testing.assert_allclose(controlled[:, 1, 0] - controlled[:, 0, 0], 0, atol=1e-12)


def test_standardized_means_by_hand():
    # Stratum 0: rows 1, 3 against 5; stratum 1: 2 against 4, 6, 8.  Weights 2*1/3 and 1*3/4.
    values, group = np.array([1.0, 3, 5, 2, 4, 6, 8])[:, None], np.array([0, 0, 1, 0, 1, 1, 1])
    stratum = np.array([0, 0, 0, 1, 1, 1, 1])
    weight = np.array([2 / 3, 3 / 4]) / (2 / 3 + 3 / 4)
    found = standardized_means(values, group, np.arange(7), stratum, resampled_counts(7, replicates=1))[0, :, 0]
    np.testing.assert_allclose(found, [weight @ [2, 2], weight @ [5, 6]])


def test_a_stratum_that_one_group_lacks_has_no_share():
    values, group, stratum = np.array([1.0, 2, 9])[:, None], np.array([0, 1, 0]), np.array([0, 0, 1])
    found = standardized_means(values, group, np.arange(3), stratum, resampled_counts(3, replicates=1))[0, :, 0]
    np.testing.assert_allclose(found, [1, 2])
    apart = standardized_means(values, np.array([0, 0, 1]), np.arange(3), stratum, resampled_counts(3, replicates=1))[
        0, :, 0
    ]
    assert np.isnan(apart).all()


def test_a_group_without_rows_leaves_the_other_its_plain_mean():
    values, stratum = np.array([1.0, 2, 9])[:, None], np.array([0, 0, 1])
    found = standardized_means(
        values, np.zeros(3, dtype=int), np.arange(3), stratum, resampled_counts(3, replicates=1)
    )[0, :, 0]
    assert found[0] == pytest.approx(4)
    assert np.isnan(found[1])


def test_length_bins_hold_about_equal_numbers(generator):
    bins = length_bins(generator.integers(10, 500, size=1000))
    assert (np.abs(np.bincount(bins) - 200) <= 10).all()
    assert set(length_bins(np.full(8, 33))) == {0}
