"""Checks submissions of results: `docs/results/<theme>_<hardware>_<date>_<who>.md` (docs/reports.md).

Usage: python .ci/check_results.py [FILE ...]; without files, all submissions in docs/results.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"(?P<theme>[a-z0-9-]+)_(?P<hardware>[a-z0-9-]+)_(?P<date>\d{4}-\d{2}-\d{2})_(?P<who>[a-z0-9-]+)\.md")
BUDGETS = ("quickstart", "smol", "paper", "own")
ROWS = ("budget", "configuration", "hardware", "time", "bundle", "who")


def problems(path: Path) -> list[str]:
    """What is missing of a submission or wrong with it, one sentence each."""
    listed = _name_problems(path.name)
    text = path.read_text(encoding="utf-8")
    if not re.match(r"# \S.*\n", text):
        listed.append("the first line is not a heading that says what was found")
    facts = dict(re.findall(r"^\| *([a-z]+) *\| *(.*?) *\|$", text, flags=re.MULTILINE))
    listed += [f"the row `{row}` is missing or empty" for row in ROWS if not facts.get(row)]
    if facts.get("budget") and facts["budget"] not in BUDGETS:
        listed.append(f"budget is {facts['budget']!r}; allowed are {', '.join(BUDGETS)}")
    if facts.get("configuration") and not re.search(r"\b[0-9a-f]{7,40}\b", facts["configuration"]):
        listed.append("the row `configuration` names no commit")
    if "±" not in text:
        listed.append("no table with intervals (±); copy comparison/table.md")
    if "snakemake" not in text:
        listed.append("no command that runs it again")
    return listed + _bundle_problems(path, facts.get("bundle", ""))


def _name_problems(name: str) -> list[str]:
    match = NAME.fullmatch(name)
    if match is None:
        return ["the name is not <theme>_<hardware>_<date>_<who>.md, in lower-case letters, digits and `-`"]
    try:
        datetime.date.fromisoformat(match["date"])
    except ValueError:
        return [f"{match['date']} is not a date"]
    return []


def _bundle_problems(path: Path, bundle: str) -> list[str]:
    """Problems of the bundle, if its file is beside the submission or at the path that it names."""
    if not bundle:
        return []
    digest = re.search(r"sha256 ([0-9a-f]{64})", bundle)
    if digest is None:
        return ["the row `bundle` has no sha256 of 64 hexadecimal digits"]
    address = bundle.split(",")[0].strip()
    local = path.parent / address
    if "://" in address or not local.is_file():
        return []
    if hashlib.sha256(local.read_bytes()).hexdigest() != digest[1]:
        return [f"{address} has another sha256"]
    from rm_methods.bundle.verify import verify
    from rm_methods.errors import UserError

    try:
        differences = verify(local).differences
    except UserError as error:
        return [str(error)]
    return [f"{address}: {difference}" for difference in differences]


def submissions() -> list[Path]:
    """The submissions in docs/results: files whose names have a date."""
    return [path for path in sorted((ROOT / "docs" / "results").glob("*.md")) if re.search(r"\d{4}-\d{2}", path.name)]


def main(arguments: list[str]) -> int:
    """Print the problems of each submission; 1 if one has any."""
    status = 0
    for path in [Path(argument) for argument in arguments] or submissions():
        if not path.is_file():
            print(f"{path}: no such file")
            status = 1
            continue
        for problem in problems(path):
            print(f"{path}: {problem}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
