from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["grading", "hh_rlhf", "rm_bench"])
def test_the_examples_in_the_docstrings_are_true(name):
    failed, tried = doctest.testmod(importlib.import_module(f"rm_methods.benchmarks.{name}"))
    assert tried > 0
    assert failed == 0
