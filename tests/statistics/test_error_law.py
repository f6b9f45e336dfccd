"""The law of the error: between Student's t and the normal law, and exact at both ends."""

import math

import pytest
from scipy import stats

from rm_methods.statistics.error_law import ErrorLaw, two_sided_tail


def test_only_seeds_are_students_t():
    law = ErrorLaw(seed_variance=4.0, seed_freedom=2, item_variance=0.0, item_freedom=100)
    assert law.quantile(0.95) == pytest.approx(stats.t.ppf(0.975, 2), rel=1e-9)
    assert law.p_value(-3.0) == pytest.approx(2 * stats.t.sf(1.5, 2), rel=1e-9)


def test_only_items_are_nearly_normal():
    law = ErrorLaw(0.0, 2, 4.0, math.inf)
    assert law.quantile(0.95) == pytest.approx(stats.norm.ppf(0.975), rel=1e-9)
    assert law.p_value(4.0) == pytest.approx(2 * stats.norm.sf(2), rel=1e-9)


def test_tails_are_averaged_by_the_parts_of_the_variance():
    """V_seed 1 and V_item 3: a quarter of the tail is that of t(2), three quarters those of t(50)."""
    law = ErrorLaw(1.0, 2, 3.0, 50)
    by_hand = 2 * (0.25 * stats.t.sf(1.7, 2) + 0.75 * stats.t.sf(1.7, 50))
    assert law.p_value(3.4) == pytest.approx(by_hand, rel=1e-9)
    assert float(two_sided_tail(1.7, 0.25, 2, 50)) == pytest.approx(by_hand, rel=1e-9)
    assert stats.t.ppf(0.975, 50) < law.quantile(0.95) < stats.t.ppf(0.975, 2)


@pytest.mark.parametrize("probability", [0.6, 0.95, 0.9999, 1 - 1e-9])
def test_quantile_and_p_value_are_inverse(probability):
    law = ErrorLaw(1.0, 2, 5.0, 200)
    assert law.p_value(law.quantile(probability) * law.standard_error) == pytest.approx(1 - probability, rel=1e-5)


def test_without_spread_nothing_is_said():
    law = ErrorLaw(0.0, 2, 0.0, 9)
    assert not law.defined
    assert math.isnan(law.p_value(0.1))
    assert math.isnan(law.quantile(0.95))
    assert math.isnan(law.standard_error)
