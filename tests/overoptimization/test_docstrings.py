from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "benchmarks.pool_grading",
        "overoptimization.best_of_n",
        "overoptimization.kl",
        "overoptimization.numbers",
        "overoptimization.variant_curves",
    ],
)
def test_the_examples_in_the_docstrings_are_true(name):
    failed, tried = doctest.testmod(importlib.import_module(f"rm_methods.{name}"))
    assert tried > 0
    assert failed == 0
