"""The setting `methods_path`: folders with methods outside the package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rm_methods.config.path_settings import expand_paths
from rm_methods.methods.sources import named_folder_problems, use_folders


def use_method_folders(config: dict[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Let methods be found in the folders that `methods_path` names, and in no others; it becomes a list.

    Args:
        config: as written by the user.
        schema: of the setting.

    Returns:
        What is wrong with the folders, one sentence each.
    """
    written = _listed(config.get("methods_path", []))
    if not isinstance(written, list) or not all(isinstance(folder, str) and folder for folder in written):
        use_folders(())
        return []  # the schema says what is wrong
    problems: list[str] = []
    folders = expand_paths(written, schema, "methods_path", problems)
    problems += named_folder_problems([folder for folder in folders if folder is not None], "methods_path")
    if not problems:
        config["methods_path"] = folders
        use_folders(folders)
    return problems


def with_more_folders(written: Any, folders: Iterable[str | Path]) -> Any:
    """A value of `methods_path` with further folders; one that is neither text nor a list is left to the schema."""
    listed = _listed(written)
    return [*listed, *map(str, folders)] if isinstance(listed, list) else written


def stored_method_folders(config: Any) -> list[str]:
    """The folders of `methods_path` in a stored configuration, which an older release did not have."""
    written = _listed(config.get("methods_path", [])) if isinstance(config, dict) else []
    return [folder for folder in written if isinstance(folder, str)] if isinstance(written, list) else []


def _listed(value: Any) -> Any:
    """A value that may be written as one text or a list, as a list."""
    return [value] if isinstance(value, str) else value
