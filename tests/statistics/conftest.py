"""Fixtures of the tests of intervals and bootstrap."""

import numpy as np
import pytest


@pytest.fixture
def generator():
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)
