"""The finished experiments that fuzzers damage, and the counts of a fuzz run."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.study import make_finished, make_policies


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """Folder with config.yaml, pairs.jsonl, mlflow.db and results/fuzz: three variants, evaluated on held-out pairs."""
    folder = tmp_path_factory.mktemp("finished")
    make_finished(folder)
    # What was imported stays; every training would search it for garbage again.
    gc.collect()
    gc.freeze()
    return folder


@pytest.fixture(scope="session")
def policies(tmp_path_factory) -> Path:
    """Folder with config.yaml, world_model/ and results/policies: a policy, its samples, their scores, a PPO run."""
    folder = tmp_path_factory.mktemp("policies")
    make_policies(folder)
    return folder


def pytest_terminal_summary(terminalreporter) -> None:
    """The numbers of inputs and of their answers, over all subjects."""
    answers: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name.startswith("fuzz: ") and report.when == "call":
                    answers[name.removeprefix("fuzz: ")] += value
    if answers:
        counts = ", ".join(f"{count} {name}" for name, count in answers.most_common())
        terminalreporter.write_line(f"{answers.total()} malformed inputs: {counts}")
