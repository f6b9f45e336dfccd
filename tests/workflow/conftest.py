from __future__ import annotations

import os

import pytest

from tests.workflow.checkouts import WARM
from tests.workflow.warm import warm_command


@pytest.fixture(scope="session", autouse=True)
def warm():
    """Jobs of the workflow start without waiting for the imports of torch and transformers."""
    with warm_command() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, WARM, str(folder))
        yield
