"""Malformed inputs through the verbs: each gives the right answer or one sentence that names the file or key.

Usage:
    pytest tests/fuzz/test_fuzz.py                                        the short run of `make test`
    RM_METHODS_FUZZ=100 RM_METHODS_FUZZ_SEED=7 pytest tests/fuzz/test_fuzz.py
                                                                          100 inputs a subject, none of seed 0's
    pytest "tests/fuzz/test_fuzz.py::test_inputs[prepare/text.jsonl]"     one subject

An input that is answered wrongly is kept in the folder that the failure names (RM_METHODS_FUZZ_KEEP, or a temporary
one), with the command line in `command.txt`.  Its number is the third part of the seed: the same subject, seed and
number give the same input again.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.changes import change_file
from tests.fuzz.subjects import SUBJECTS, Subject, run

pytestmark = pytest.mark.process

INPUTS = int(os.environ.get("RM_METHODS_FUZZ", "8"))
SEED = os.environ.get("RM_METHODS_FUZZ_SEED", "0")


def answer(subject: Subject, number: int, folder: Path) -> str | None:
    """Change the subject's input by the number's change, run the verb, and say what is wrong with its answer."""
    rng = Random(f"{subject.name}/{SEED}/{number}")
    subject.build(folder)
    files = subject.targets(folder)
    file = rng.choice(files)
    change = change_file(rng, file, [other for other in files if other != file])
    arguments = subject.arguments(folder)
    problem = subject.judge(folder, change, run(arguments))
    if problem is None:
        return None
    (folder / "command.txt").write_text(
        "rm-methods " + shlex.join(map(str, arguments)) + f"\n{change.what}\n{problem}\n"
    )
    return f"{subject.name}/{SEED}/{number}: {change.what}\n    {problem}\n    kept in {folder}"


@pytest.mark.parametrize("name", SUBJECTS)
def test_inputs(name, finished, tmp_path):
    subject = SUBJECTS[name](name, finished)
    valid = finished / "valid" / name.replace("/", "_")
    valid.mkdir(parents=True, exist_ok=True)
    subject.build(valid)
    outcome = run(subject.arguments(valid))
    assert outcome.code == 0, outcome.text
    subject.unchanged = subject.result(valid, outcome)
    kept = Path(os.environ.get("RM_METHODS_FUZZ_KEEP", tmp_path)).resolve() / name.replace("/", "_")
    problems = []
    for number in range(INPUTS):
        folder = kept / str(number)
        folder.mkdir(parents=True)
        problem = answer(subject, number, folder)
        if problem is None:
            shutil.rmtree(folder)
        else:
            problems.append(problem)
    if problems:
        pytest.fail(f"{len(problems)} of {INPUTS} inputs are answered wrongly:\n" + "\n".join(problems), pytrace=False)
