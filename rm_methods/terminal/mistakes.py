"""Snakemake's errors before the first job in plain words: what is wrong, what is nearest, what to do."""

from __future__ import annotations

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
# Snakemake's text where a failed job's message says more.
_OF_FAILED_JOBS = ("At least one job did not complete successfully.",)


def explained(exception: str, text: str, folder: Path = Path(".")) -> str | None:
    """The text to print for an error that Snakemake reports; None if the message of a failed job says more.

    Args:
        exception: name of its class.
        text: as Snakemake would print it.
        folder: of the Snakefile.
    """
    if exception in ("CalledProcessError", "SpawnedJobError") or any(part in text for part in _OF_FAILED_JOBS):
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
        return (
            f"{len(files)} results are incomplete, because an earlier run was stopped (such as {files[0]}). Add "
            "--rerun-incomplete to your command: these are made again, and trainings continue from their checkpoints."
            if files
            else "Results are incomplete, because an earlier run was stopped. Add --rerun-incomplete to your command."
        )
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
    if text.startswith("Traceback"):
        return f"{text.strip().splitlines()[-1]}\nSnakemake stopped. Add --verbose for where it happened."
    return _LOCATION.sub("", _HEADING.sub("", text)).rstrip()


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
