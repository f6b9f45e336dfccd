"""The policy's section of a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rm_methods.errors import UserError


@contextmanager
def named_as_policy(config: Mapping[str, Any]) -> Iterator[None]:
    """In errors about the policy's section, replace `backbone.<key>` by the key that the user wrote.

    Backbones are made by one module for reward models and policies, and it names the section of reward models.
    """
    try:
        yield
    except UserError as error:
        if not config["overoptimization"]["policy"]:
            raise
        text = re.sub(r"(?<![\w./])backbone\.(?=[a-z_]+\b)", "overoptimization.policy.", str(error))
        raise UserError(text) from error


def policy_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's backbone section of a resolved configuration; by default that of the reward models."""
    return config["overoptimization"]["policy"] or config["backbone"]
