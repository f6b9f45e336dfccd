"""Malformed inputs through the verbs: each gives the right answer or one sentence that names the file or key.

Usage:
    pytest tests/fuzz/test_fuzz.py                                        the short run of `make test`
    make fuzz                                                             300 inputs or more, over all verbs
    make fuzz SEED=7                                                      others
    RM_METHODS_FUZZ=100 RM_METHODS_FUZZ_SEED=7 pytest tests/fuzz/test_fuzz.py
                                                                          100 inputs a subject, none of seed 0's
    pytest "tests/fuzz/test_fuzz.py::test_inputs[prepare/text.jsonl]"     one subject

An input that is answered wrongly is kept in the folder that the failure names (RM_METHODS_FUZZ_KEEP, or a temporary
one), with the command line in `command.txt`.  Its number is the third part of the seed: the same subject, seed and
number give the same input again.  A verb that does not answer within RM_METHODS_FUZZ_SECONDS (120) is a failure, too.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from rm_methods.cli import main
from tests.fuzz.changes import Change
from tests.fuzz.subjects import LEFT_OUT, SUBJECTS, make_subject
from tests.fuzz.subjects.arguments import Arguments
from tests.fuzz.subjects.base import Outcome, Subject
from tests.fuzz.subjects.configurations import DryRun

pytestmark = pytest.mark.process

SHORT = "RM_METHODS_FUZZ" not in os.environ
INPUTS = int(os.environ.get("RM_METHODS_FUZZ", "2"))
SEED = os.environ.get("RM_METHODS_FUZZ_SEED", "0")
# Harmless to a shell that quotes, to a URI and to a glob pattern.
ODD_FOLDER = 'it\'s "odd" \u00fc $(x) #1 %41 [0-9]?'


def number_of_inputs(subject: Subject, each: int = INPUTS, short: bool = SHORT) -> int:
    """How many changed inputs a subject gets; in the short run, processes are started for files only."""
    if short and subject.is_slow:
        return 0 if isinstance(subject, Arguments) else 1
    return math.ceil(subject.weight * each)


def answer(subject: Subject, number: int, folder: Path) -> tuple[str | None, str]:
    """Change the subject's input by the number's change, run the verb, and judge its answer.

    Returns:
        what is wrong, None if nothing is; and the kind of answer.
    """
    rng = Random(f"{subject.name}/{SEED}/{number}")
    if rng.random() < subject.odd_folders:
        folder = folder / ODD_FOLDER
        folder.mkdir()
        subject.build(folder)
        change = Change("nothing but the folder's name", (ODD_FOLDER,), harmless=True)
    else:
        subject.build(folder)
        change = subject.change(rng, folder)
    command = subject.command(folder)
    record = folder / "command.txt"  # written before the run: a hang that ends the process leaves it
    record.write_text(f"{command}\n{change.what}\n", errors="backslashreplace")
    outcome = subject.run(folder)
    problem = subject.judge(folder, change, outcome)
    if problem is None:
        return None, _kind(change, outcome)
    record.write_text(f"{command}\n{change.what}\n{problem}\n", errors="backslashreplace")
    return f"{subject.name}/{SEED}/{number}: {change.what}\n    {problem}\n    kept in {folder}", "wrong"


def _kind(change: Change, outcome: Outcome) -> str:
    if outcome.code != 0:
        return "refused with one message"
    return "harmless, equal result" if change.harmless else "accepted, result checked"


@pytest.mark.parametrize("name", SUBJECTS)
def test_inputs(name, finished, policies, tmp_path, record_property):
    subject = make_subject(name, {"finished": finished, "policies": policies})
    if not number_of_inputs(subject):
        pytest.skip("starts a process for each input; `make fuzz` runs it")
    valid = subject.valid_folder
    valid.mkdir(parents=True, exist_ok=True)
    subject.build(valid)
    outcome = subject.run(valid)
    assert outcome.code == 0, outcome.text
    subject.unchanged = subject.result(valid, outcome)
    kept = Path(os.environ.get("RM_METHODS_FUZZ_KEEP", tmp_path)).resolve() / name.replace("/", "_")
    answers: Counter[str] = Counter()
    problems = []
    for number in range(number_of_inputs(subject)):
        folder = kept / str(number)
        folder.mkdir(parents=True)
        problem, kind = answer(subject, number, folder)
        answers[kind] += 1
        if problem is None:
            shutil.rmtree(folder)
        else:
            problems.append(problem)
    for kind, count in answers.items():
        record_property(f"fuzz: {kind}", count)
    if problems:
        pytest.fail(
            f"{len(problems)} of {answers.total()} inputs are answered wrongly:\n" + "\n".join(problems), pytrace=False
        )


def test_every_verb_has_a_subject_or_a_reason():
    fuzzed = {name.split("/")[0] for name in SUBJECTS}
    assert fuzzed - {"snakemake"} == set(main.commands) - set(LEFT_OUT)
    assert all(len(reason) > 20 for reason in LEFT_OUT.values())


def test_make_fuzz_runs_300_inputs_or_more(tmp_path):
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    (each,) = (int(word.split("=")[1]) for word in makefile.split() if word.startswith("RM_METHODS_FUZZ="))
    subjects = [make_subject(name, {"finished": tmp_path, "policies": tmp_path}) for name in SUBJECTS]
    assert sum(number_of_inputs(subject, each, short=False) for subject in subjects) >= 300
    (dry_run,) = (subject for subject in subjects if isinstance(subject, DryRun))
    assert number_of_inputs(dry_run, each, short=False) >= 12
