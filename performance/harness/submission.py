"""Results of other machines: performance/submissions/<machine>_<date>.json.

The required contents are those of torchtitan's benchmarks/README.md: who, hardware, versions, the commands with all
options, and the numbers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from performance.harness.benchmark import FOLDER
from performance.harness.record import check_record, read_records
from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json

SUBMISSIONS = FOLDER / "submissions"
_NAME = re.compile(r"[a-z0-9-]+_\d{4}-\d{2}-\d{2}")
_KEYS = {"who", "notes", "records"}


def write_submission(who: str, slug: str, notes: str, *, results: Path, folder: Path = SUBMISSIONS) -> Path:
    """Gather records in one file.

    Args:
        slug: of the machine; lower-case letters, digits and `-`.
        results: folder with the records.

    Raises:
        UserError: the folder has no records, or a record or name is wrong.
    """
    records = read_records(results)
    if not records:
        raise UserError(f"{results} has no records. Run `python -m performance run all` first.")
    date = max(record["machine"]["date"] for record in records.values())[:10]
    file = folder / f"{slug}_{date}.json"
    submission = {"who": who, "notes": notes, "records": list(records.values())}
    check_submission(submission, file)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, submission)
    return file


def check_submission(submission: Any, file: Path) -> dict[str, Any]:
    """The submission, if it is one.

    Raises:
        UserError: its name or a part is wrong.
    """
    if not _NAME.fullmatch(file.stem):
        raise UserError(f"{file.name}: name it <machine>_<date>.json, in lower-case letters, digits and `-`.")
    if not isinstance(submission, dict) or set(submission) != _KEYS:
        raise UserError(f"{file}: must have the keys {', '.join(sorted(_KEYS))}.")
    if not submission["who"] or not submission["records"]:
        raise UserError(f"{file}: who and records must not be empty.")
    for record in submission["records"]:
        check_record(record, file)
    return submission


def read_submissions(folder: Path = SUBMISSIONS) -> dict[str, dict[str, Any]]:
    """All submissions, by the name of their file."""
    return {file.stem: check_submission(read_json(file), file) for file in sorted(folder.glob("*.json"))}
