"""Names processes, and tells whether they still run: for locks, and for files that killed processes leave behind."""

from __future__ import annotations

import os
import socket
import uuid
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """Host, boot and process namespace: a process number has a meaning only within these."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.uuid4().hex}"


def started(process: int | str | None) -> int | None:
    """Start of a process in clock ticks after boot; None if the process is gone.

    Number and start together name one process: the system reuses the numbers of dead ones.
    """
    try:
        # Fields 3 and 22 of proc(5), counted after the name, which may contain blanks.
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
