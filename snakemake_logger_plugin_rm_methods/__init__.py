"""Snakemake's logger plugin of this workflow: `logger: rm-methods` in a profile shows rm_methods/terminal.

Snakemake imports every installed plugin at each start, so nothing heavy is imported here.  An error of the display is
swallowed: from then on Snakemake's own text is printed, and the workflow goes on.
"""

from __future__ import annotations

import sys
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase


class LogHandler(LogHandlerBase):
    """Hands Snakemake's records to the terminal of rm-methods."""

    def __post_init__(self) -> None:
        self.terminal: Any = None
        try:
            from rm_methods.terminal.terminal import Terminal

            self.terminal = Terminal(self.common_settings)
        except Exception as error:
            self._give_up(error)

    def emit(self, record) -> None:
        if self.terminal is not None:
            try:
                self.terminal.receive(record, self.format)
                return
            except Exception as error:
                self._give_up(error)
        try:
            if text := self.format(record):
                print(text, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        try:
            if self.terminal is not None:
                self.terminal.close()
        except Exception as error:
            self._give_up(error)
        super().close()

    def _give_up(self, error: Exception) -> None:
        """Let Snakemake's own text follow."""
        terminal, self.terminal = self.terminal, None
        try:
            if terminal is not None:
                terminal.release()
            print(f"rm-methods: the display of the progress failed ({error!r}); the workflow goes on.", file=sys.stderr)
        except Exception:
            return

    # The terminal decides itself what to show, so it also sees what Snakemake would filter out.
    has_filter = True
    has_formatter = False
    writes_to_stream = True
    writes_to_file = False
    needs_rulegraph = False
