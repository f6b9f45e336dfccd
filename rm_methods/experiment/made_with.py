"""Records the settings and the code of stored results beside them, and compares them with the configuration.

Snakemake remembers only its jobs in the folder that it was started in.  Results that were moved, copied or made by
another checkout count as finished, whatever their settings and code were.  So every job has an input file with its
settings and code, and ends by copying it beside the results (`made_with.json`).  At every start, the input file is
compared with the copy.  If the two differ, the input file is made newer than the results, so that the job runs again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError, UserError
from rm_methods.files import content_hash, read_json

_LONG_AGO = 946684800  # 2000-01-01: older than every result
_SHOWN = 6  # differences of one result, and results, that a message names
_MISSING = "(missing)"


def asked_file(folder: Path, record: str, asked: Mapping[str, Any], mark: bool) -> str:
    """The file with the settings and code of a job; newer than the job's results if they were made with others.

    The hash of its content is part of its name, so two configurations never share it.

    Args:
        folder: of the experiment.
        record: path of the job's `made_with.json` below it.
        asked: settings and code.
        mark: compare with the results and set the file's time; False only returns its path (in jobs, which must not
            change it).
    """
    name = record.removesuffix(".json").replace("/", "_")
    path = folder / "config" / "asked" / f"{name}.{content_hash(asked)}.json"
    if mark:
        made = read_made(folder / record)
        if made is not None and not any(differences(made, asked)):
            _write_if_changed(path, dict(asked))
            os.utime(path, (_LONG_AGO, _LONG_AGO))
        else:
            # Snakemake ignores a newer file with equal content, so the content changes, too.
            _write_if_changed(path, {**asked, "replaces": made and content_hash(made), "asked_at": time.time_ns()})
    return str(path)


def read_made(path: Path) -> dict[str, Any] | None:
    """Settings and code that a result was made with; None if they are not recorded or cannot be read."""
    try:
        record = read_json(path)
    except UserError:
        return None
    if not isinstance(record, dict) or not {"settings", "code"} <= set(record):
        return None
    return {"settings": record["settings"], "code": record["code"]}


def differences(made: Any, asked: Any, key_path: str = "") -> Iterator[str]:
    """Every difference of two JSON-like values, one phrase each: "training.learning_rate is 0.001, the configuration
    says 0.0005"."""
    if isinstance(made, Mapping) and isinstance(asked, Mapping):
        for key in dict.fromkeys([*made, *asked]):
            inner_path = f"{key_path}.{key}" if key_path else str(key)
            yield from differences(made.get(key, _MISSING), asked.get(key, _MISSING), inner_path)
    elif made != asked or isinstance(made, bool) != isinstance(asked, bool):
        yield f"{key_path} is {_short(made)}, the configuration says {_short(asked)}"


def _short(value: Any) -> str:
    return "absent" if value == _MISSING else f"{json.dumps(value, ensure_ascii=False):.80}"


def refuse_outdated(outdated: Mapping[str, list[str]], checked: int, folder: Path) -> None:
    """Refuse results that differ from those that the configuration asks for.

    Args:
        outdated: result -> its differences.
        checked: number of results that were checked.

    Raises:
        DataError: at least one result is outdated.
    """
    if not outdated:
        return
    lines = [f"  - {result}: {'; '.join(_first(differing, 'differences'))}" for result, differing in outdated.items()]
    shown = "\n".join(_first(lines, "results", indent="  - "))
    raise DataError(
        f"{len(outdated)} of {checked} results in {folder} are not what the configuration asks for:\n{shown}\n"
        "Run snakemake with this configuration (it makes them again; --forcerun <rule> forces it), delete the folders "
        f"above, or give the configuration that they were made with ({folder}/config holds each that was used)."
    )


def _first(entries: list[str], noun: str, indent: str = "") -> list[str]:
    """The first entries, and a last one that counts the rest."""
    more = len(entries) - _SHOWN
    return [*entries[:_SHOWN], f"{indent}and {more} more {noun}"] if more > 0 else entries


def _write_if_changed(path: Path, content: Mapping[str, Any]) -> None:
    """Write whole or not at all; not flushed to the disk, because it can be made again and may be one of thousands."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
