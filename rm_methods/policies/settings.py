"""Settings dataclasses from what a configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rm_methods.errors import ConfigError, nearest


def policy_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's section of a resolved configuration: a backbone section, or else that of the reward models."""
    return config["overoptimization"]["policy"] or config["backbone"]


def settings_from(kind: type, settings: Mapping[str, Any] | Any, source: str):
    """A settings dataclass from a mapping; raises ConfigError for unknown keys, naming the nearest."""
    if isinstance(settings, kind):
        return settings
    known = [field.name for field in fields(kind)]
    if unknown := [f"{key}: unknown key. {nearest(key, known)}" for key in settings if key not in known]:
        raise ConfigError(unknown, source)
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
