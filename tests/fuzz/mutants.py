"""Plants small faults in a copy of the code, one at a time, and says which of them the tests do not notice.

Usage (by hand; from the repository's folder; a fault takes 5 to 30 seconds):
    python -m tests.fuzz.mutants                        all faults
    python -m tests.fuzz.mutants training/ balance.py   faults in files whose names contain one of these words

The exit status is 1 if a fault survives its tests.  To add a fault, add an entry to `faults.yaml`.
`test_mutants.py` checks that the text that a fault replaces occurs exactly once, so that the list cannot go stale.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """One change of the code.

    Attributes:
        file: below rm_methods/.
        old: the text that is replaced; it occurs once in the file.
        new: what it is replaced by.
        tests: the test file below tests/ that must fail.
        words: pytest's -k, for speed; all tests of the file without.
    """

    file: str
    old: str
    new: str
    tests: str
    words: str = ""


FAULTS = [Fault(**fault) for fault in yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text())]


def copy_of_the_code(folder: Path) -> None:
    """Copy the files that git tracks, and those that it would, into `folder`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)


def is_noticed(fault: Fault, code: Path) -> bool:
    """Whether the fault's tests fail in the copy `code` once it is planted; the copy is whole again afterward."""
    file = code / "rm_methods" / fault.file
    whole = file.read_text()
    file.write_text(whole.replace(fault.old, fault.new))
    try:
        words = ["-k", fault.words] if fault.words else []
        command = [sys.executable, "-m", "pytest", "-x", *words, f"tests/{fault.tests}"]
        environment = os.environ | {"PYTHONPATH": str(code)}
        run = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
    finally:
        file.write_text(whole)
    if run.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {run.returncode} for {fault}:\n{run.stdout}{run.stderr}")
    return run.returncode == 1


def main(words: list[str]) -> int:
    """Try the faults in files whose names contain one of the words; all without words.  Returns the exit status."""
    faults = [fault for fault in FAULTS if not words or any(word in fault.file for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_of_the_code(Path(folder))
        for fault in faults:
            noticed = is_noticed(fault, Path(folder))
            survivors += not noticed
            print(f"{'noticed ' if noticed else 'SURVIVES'}  {fault.file}: {fault.new.strip()}", flush=True)
    print(f"{len(faults) - survivors} of {len(faults)} faults are noticed.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
