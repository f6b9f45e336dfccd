"""The DeepSpeed configurations that are shipped, zero0.json to zero3.json; "auto" values are filled in from the training settings."""

from __future__ import annotations

from pathlib import Path

from rm_methods.errors import UserError, nearest

FOLDER = Path(__file__).parent


def configuration_file(name: str | None) -> str | None:
    """The JSON file of `training.deepspeed`: a shipped name or a path; None for none.

    Raises:
        UserError: neither a shipped configuration nor a file.
    """
    if not name:
        return None
    shipped = FOLDER / f"{name}.json"
    path = shipped if shipped.exists() else Path(name)
    if not path.is_file():
        raise UserError(
            f"'{name}' is neither a shipped configuration nor a JSON file. {nearest(name, [p.stem for p in FOLDER.glob('*.json')])}"
        )
    return str(path)
