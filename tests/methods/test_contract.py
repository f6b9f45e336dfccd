"""Every registered method goes through the contract test of the package; a new one needs no line here."""

from __future__ import annotations

import pytest

from rm_methods.contract_test.properties import PROPERTIES, properties_of
from rm_methods.contract_test.workbench import Workbench
from rm_methods.methods.registry import method_names

pytestmark = pytest.mark.process

CASES = [
    pytest.param(name, entry.name, id=f"{name}-{entry.name}", marks=[pytest.mark.slow] if entry.slow else [])
    for entry in PROPERTIES
    for name in method_names()
    if entry in properties_of(name)
]
CHECKS = {entry.name: entry.check for entry in PROPERTIES}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    """Data and trained runs, shared by all properties of all methods."""
    return Workbench(tmp_path_factory.mktemp("contract"))


@pytest.mark.parametrize(("name", "prop"), CASES)
def test_methods_fulfill_the_contract(name, prop, bench):
    CHECKS[prop](bench, name)
