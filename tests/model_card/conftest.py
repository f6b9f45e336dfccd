"""The experiment of tests/sharing."""

from tests.sharing.conftest import experiment, trained_experiment  # noqa: F401
