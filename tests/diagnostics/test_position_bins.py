import numpy as np
import pytest

from rm_methods.diagnostics.position_bins import STAGES, stage_mass, uniform_mass


def test_four_positions_in_ten_stages_by_hand():
    # Position j covers 2.5 stages, so stage 3 (of 10) is half of position 1 and half of position 2, and so on.
    expected = [0.04, 0.04, 0.02 + 0.04, 0.08, 0.08, 0.12, 0.12, 0.06 + 0.08, 0.16, 0.16]
    np.testing.assert_allclose(stage_mass(np.array([0.1, 0.2, 0.3, 0.4])), expected, rtol=0, atol=1e-12)


def test_twelve_positions_in_ten_stages_by_hand():
    # A stage is 1.2 positions.  Only position 1 (the second) has mass: 0.2 of it lies in stage 1, 0.8 in stage 2.
    mass = np.zeros(12)
    mass[1] = 3.0
    np.testing.assert_allclose(stage_mass(mass), [0.2, 0.8] + [0] * 8, atol=1e-12)


def test_a_multiple_of_ten_is_cut_between_positions():
    np.testing.assert_allclose(stage_mass(np.arange(20.0)), np.arange(20.0).reshape(10, 2).sum(1) / 190, atol=1e-12)


@pytest.mark.parametrize("length", [1, 3, 7, 9, 10, 11, 23, 100, 257])
def test_even_mass_gives_a_tenth_to_each_stage_whatever_the_length(length):
    """Also the received mass of a bidirectional uniform map, each of whose columns has the mean 1 / L."""
    np.testing.assert_allclose(stage_mass(np.full(length, 1 / length)), np.full(STAGES, 0.1), atol=1e-12)


def test_stages_sum_to_one_and_no_mass_is_undefined(generator):
    assert stage_mass(generator.random(37)).sum() == pytest.approx(1)
    assert np.isnan(stage_mass(np.zeros(5))).all()
    assert np.isnan(stage_mass(np.zeros(0))).all()


def test_the_uniform_causal_map_decays_as_the_baseline_says():
    """Column j of the causal uniform map of length L receives sum over i >= j of 1 / (i + 1), divided by L."""
    length = 2000
    received = np.cumsum(1 / np.arange(length, 0, -1))[::-1] / length
    np.testing.assert_allclose(stage_mass(received), uniform_mass("received"), atol=2e-3)
    np.testing.assert_allclose(uniform_mass("reward_row"), np.full(STAGES, 0.1), atol=1e-12)
    assert uniform_mass("received")[0] == pytest.approx(0.1 + 0.1 * np.log(10))
