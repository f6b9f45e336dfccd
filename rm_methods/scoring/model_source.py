"""The folder of a reward model that the user names: a local folder, or one fetched from the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import file_hash, read_json, write_json

_HUB_CODE = "*.py"
LENGTH_KEY = "rm_methods_max_length"  # in config.json of the models that we train
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def model_folder(source: str, revision: str | None = None, what: str = "Reward model", *, code: bool = False) -> Path:
    """The folder of a model; a hub id is fetched, without pickled weights and code.

    Args:
        source: a folder, or a hub id such as "org/name".
        revision: of the hub; a folder has none.
        what: starts the messages.
        code: whether Python code is fetched, too.

    Raises:
        UserError: a folder with a revision, or a hub id that cannot be fetched.
    """
    if Path(source).exists() or source.startswith(("/", ".", "~")) or source.count("/") != 1:
        if revision:
            raise UserError(
                f"{what} {source!r} is a folder, which has no revision ({revision!r}). Leave the revision out."
            )
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=[*HUB_FILES, *([_HUB_CODE] if code else [])])
        )
    except Exception as error:  # network, cache and hub layers raise errors of many kinds; the user reads their text
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"{what} {source!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}: {first}). Without the network, download it elsewhere and name its folder."
        ) from error


def weights_record(folder: Path) -> dict[str, list[Any]]:
    """What identifies the weights and the code of a folder: for each file its size, time of change, and SHA-256."""
    record = {}
    for file in _weights_and_code(folder):
        state = file.stat()
        record[file.name] = [state.st_size, state.st_mtime_ns, file_hash(file, length=64)]
    return record


def check_weights(folder: Path, recorded: Mapping[str, Sequence[Any]]) -> None:
    """Compare the weights of a folder with an earlier `weights_record`; a file of the same size and time is not read.

    Raises:
        UserError: naming the files that changed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: the reward model was here when the run was made, and is gone. Put it back.")
    changed = [
        name
        for name in sorted({*recorded, *(file.name for file in _weights_and_code(folder))})
        if name not in recorded or not _is_unchanged(folder / name, recorded[name])
    ]
    if changed:
        raise UserError(
            f"{folder}: {', '.join(changed)} changed since the run was made. Put the earlier files back, or remove the "
            "run's folder and run again."
        )


def _weights_and_code(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.py")])


def _is_unchanged(file: Path, recorded: Sequence[Any]) -> bool:
    size, changed_at, digest = recorded
    if not file.is_file() or file.stat().st_size != size:
        return False
    return file.stat().st_mtime_ns == changed_at or file_hash(file, length=64) == digest


def own_length(folder: Path) -> int | None:
    """Longest sequence in tokens that a model was made for, if its configuration says so; an ensemble has none.

    Adapters have that of their base model.
    """
    from rm_methods.scoring.adapters import base_folder, holds_only_adapters

    file = (base_folder(folder) if holds_only_adapters(folder) else folder) / "config.json"
    return read_json(file).get("max_position_embeddings") if file.exists() else None


def record_length(folder: Path, max_length: int) -> None:
    """Write the length that a model is evaluated with into its config.json, if it has one."""
    file = folder / "config.json"
    if file.exists():
        write_json(file, read_json(file) | {LENGTH_KEY: max_length})


def evaluated_length(folder: Path) -> int | None:
    """Longest sequence in tokens that the experiment of a model scores with; None for models from elsewhere.

    It is recorded in config.json, or in the summary.json of the run beside the folder.  An ensemble has that of its
    members.
    """
    folder = Path(folder)
    if (folder / "scorer.json").exists():
        members = read_json(folder / "scorer.json").get("members") or []
        return evaluated_length(folder / members[0]) if members else None
    config = folder / "config.json"
    if config.exists() and (recorded := read_json(config).get(LENGTH_KEY)):
        return int(recorded)
    summary = folder.resolve().parent / "summary.json"
    run = read_json(summary) if config.exists() and summary.exists() else None
    if not isinstance(run, dict) or "run_key" not in run:
        return None
    return (run.get("backbone") or {}).get("max_length")


def default_length(folder: Path, default: int) -> tuple[int, str]:
    """The longest sequence in tokens that a model is scored with if nobody names one, and the reason for a report."""
    if length := evaluated_length(folder):
        return length, "the length of its experiment"
    if length := own_length(folder):
        return length, "the model's limit"
    return default, "the default"
