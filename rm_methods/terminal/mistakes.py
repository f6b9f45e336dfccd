"""Snakemake's errors before the first job in plain words: what is wrong, what is nearest, what to do."""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from rm_methods.errors import nearest

_RULE = re.compile(r"^rule (\w+):\n((?:[ \t]+.*\n|\n)*)", re.MULTILINE)
_HEADING = re.compile(r'^\w+(?: in (?:rule \w+(?: in )?)?(?:file "[^"]*", line \d+)?)?:?\n')
_LOCATION = re.compile(r'^ *File "[^"]*", line \d+, in .*\n?', re.MULTILINE)
_NO_FILE = re.compile(r"FileNotFoundError: \[Errno 2\] .*?: '(.*)'\s*$")
_NO_FILE_TO_READ = re.compile(r"(IsADirectoryError|PermissionError): \[Errno \d+\] (.*): '(.*)'\s*$")
# An exception in a function of our rules: Snakemake's InputFunctionException.
_OF_FUNCTION = re.compile(r"\s*^Error:\n\s*(.*?)^Wildcards:\n", re.MULTILINE | re.DOTALL)
_OF_FILES = re.compile(r"(?:\w+Error): \[Errno \d+\] ([^:]*): '(.*?)'(?: -> '.*')?\s*$")
# Snakemake's marks of results whose job has not ended, below the folder that it was started in: the result's path in
# base64, long ones in several parts (`FilePersistence._record_path`, Snakemake 9.27).
_INCOMPLETE = Path(".snakemake", "incomplete")
# Snakemake's text where a failed job's message says more.
_OF_FAILED_JOBS = "At least one job did not complete successfully."


def explained(exception: str, text: str, folder: Path = Path(".")) -> str | None:
    """The text to print for an error that Snakemake reports; None if the message of a failed job says more.

    Args:
        exception: name of its class.
        text: as Snakemake would print it.
        folder: of the Snakefile.
    """
    if exception in ("CalledProcessError", "SpawnedJobError") or _OF_FAILED_JOBS in text:
        return None
    if exception == "MissingRuleException" and (match := re.search(r"No rule to produce (.*?) \(if you use", text)):
        return unknown_target(match[1], folder)
    if exception == "LockException":
        return (
            "Another Snakemake works in this folder, or one was killed. If none is running: `snakemake --unlock` with "
            "the same --configfile, then your command with --rerun-incomplete."
        )
    if exception == "IncompleteFilesException":
        files = text.partition("Incomplete files:\n")[2].split()
        if not files:
            return "Results are incomplete, because an earlier run was stopped. Add --rerun-incomplete to your command."
        return (
            f"{len(files)} results are incomplete, because an earlier run was stopped (such as {files[0]}). Add "
            "--rerun-incomplete to your command: these are made again, and trainings continue from their checkpoints."
        )
    if text.lstrip().startswith("UnicodeDecodeError") or ("load_configfile" in text and "UnicodeDecodeError" in text):
        return "A file of --configfile is not UTF-8. Save it as UTF-8; `rm-methods check --config FILE` names the file."
    if "_load_configfile" in text or "load_configfile(" in text:
        if match := _NO_FILE.search(text):
            return missing_configuration(match[1], folder)
        if match := _NO_FILE_TO_READ.search(text):
            return f"--configfile {match[3]}: {match[2]}. Name a YAML file that can be read."
    if "Config file is not valid JSON or YAML" in text:
        return "A file of --configfile is not valid YAML (or JSON). `rm-methods check --config FILE` names the line."
    if "Target rules may not contain wildcards" in text:
        return (
            "This rule is a job for each run, so Snakemake cannot know which one you mean. Name a file that it makes, "
            f"or a rule that is one job: {', '.join(target_rules(folder))}."
        )
    if match := _OF_FUNCTION.search(text):
        return _of_code(match[1])
    if text.startswith("Traceback"):
        return _of_code(text)
    return _LOCATION.sub("", _HEADING.sub("", text)).rstrip()


def how_to_continue() -> str:
    """What to do after a stop.

    Snakemake refuses the results of a job whose end it did not see, unless it is told to make them again.  Ctrl-C also
    ends the jobs, and then no such result is left.
    """
    if any(_is_mark_of_a_result(path) for path in _INCOMPLETE.rglob("*") if path.is_file()):
        return "To continue, run the same command with --rerun-incomplete: jobs that ran left results."
    return "Run the same command to continue."


def _is_mark_of_a_result(mark: Path) -> bool:
    """Whether the result of a mark exists."""
    encoded = "".join(part.removeprefix("@") for part in mark.relative_to(_INCOMPLETE).parts)
    try:
        return Path(base64.urlsafe_b64decode(encoded).decode()).exists()
    except (ValueError, OSError):
        return False  # no mark


def _of_code(text: str) -> str:
    """The last line of an error of our code or Snakemake's; one on a file begins with the file."""
    last = (text.strip().splitlines() or ["An error without a message."])[-1].strip()
    if match := _OF_FILES.search(last):
        problem, name = match.groups()
        if problem == "Not a directory" and (file := _file_in_path(Path(name))):
            return f"{file}: a file, but a folder is needed in its place. Move it away, and run the same command again."
        return f"{name}: {problem}."
    return f"{last}\nSnakemake stopped. Add --verbose for where it happened."


def _file_in_path(path: Path) -> Path | None:
    """The part of a path that should be a folder, and is a file."""
    return next((part for part in path.parents if part.is_file()), None)


def unknown_target(target: str, folder: Path) -> str:
    """A sentence for a target that no rule makes."""
    names = target_rules(folder)
    if target.endswith((".yaml", ".yml", ".json")):
        return f"Unknown target '{target}'. A configuration needs --configfile before it."
    if "/" in target:
        return (
            f"No rule makes the file {target} with this configuration. `snakemake -n` tells what it makes; another "
            "experiment needs its --configfile."
        )
    return f"Unknown target '{target}'. {nearest(target, names)} A file below results/ can be named, too."


def missing_configuration(name: str, folder: Path) -> str:
    """A sentence for a file of --configfile that does not exist."""
    if name in target_rules(folder):
        return (
            f"--configfile {name}: no such file. --configfile takes all words that follow it; write the target "
            f"'{name}' before it."
        )
    near = [str(path) for pattern in ("*.yaml", "config/*.yaml") for path in sorted(Path(".").glob(pattern))]
    # Names without suffix: otherwise, any two of a few letters are near.
    by_stem = {Path(path).stem: path for path in near}
    close = difflib.get_close_matches(Path(name).stem, by_stem, n=1, cutoff=0.6)
    hint = f" Did you mean '{by_stem[close[0]]}'?" if close else ""
    return (
        f"--configfile {name}: no such file.{hint} How to write one: config/README.md; for a method of yours: "
        "docs/adding-a-method.md; for pairs of yours, `rm-methods init` writes it."
    )


def target_rules(folder: Path) -> Sequence[str]:
    """Rules of the workflow that can be named as a target: those that are one job."""
    names = []
    for file in [folder / "Snakefile", *sorted((folder / "workflow" / "rules").glob("*.smk"))]:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError:
            continue
        names += [name for name, body in _RULE.findall(text) if "wildcards" not in body]
    return names
