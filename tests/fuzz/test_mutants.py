"""The list of planted faults fits the code."""

import pytest

from tests.fuzz.mutants import FAULTS, REPOSITORY


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.new.strip()}")
def test_a_fault_replaces_a_text_that_occurs_once(fault):
    assert (REPOSITORY / "rm_methods" / fault.file).read_text().count(fault.old) == 1
    assert (REPOSITORY / "tests" / fault.tests).is_file()
    assert fault.new != fault.old
