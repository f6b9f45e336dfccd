"""The folder of a reward model that the user names: a local folder, or one fetched from the hub."""

from __future__ import annotations

from pathlib import Path

from rm_methods.errors import UserError
from rm_methods.files import read_json

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def model_folder(source: str, revision: str | None = None, what: str = "Reward model") -> Path:
    """The folder of a model; a hub id is fetched, without pickled weights and code.

    Args:
        source: a folder, or a hub id such as "org/name".
        revision: of the hub; a folder has none.
        what: starts the messages.

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
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # network, cache and hub layers raise errors of many kinds; the user reads their text
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"{what} {source!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}: {first}). Without the network, download it elsewhere and name its folder."
        ) from error


def own_length(folder: Path) -> int | None:
    """Longest sequence in tokens that a model was made for, if its configuration says so; an ensemble has none."""
    file = folder / "config.json"
    return read_json(file).get("max_position_embeddings") if file.exists() else None
