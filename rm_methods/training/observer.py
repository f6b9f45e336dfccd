"""What a training tells the outside while it runs, such as a tracking server.

The training must not depend on its observer: no method may raise or wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Observer(Protocol):
    """Is told the lines of `metrics.jsonl`, on rank 0."""

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The training begins.

        Args:
            rows: lines that an earlier part of a resumed run wrote.
        """

    def row(self, row: Mapping[str, Any]) -> None:
        """A new line."""

    def end(self, *, is_finished: bool) -> str | None:
        """The training ended, or failed.

        Returns:
            The name under which the observer stored it, for the run's summary; None if it stored nothing.
        """
