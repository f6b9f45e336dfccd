"""Recognizes a full or read-only disk in the errors of Python, torch and libraries written in Rust, and says what to
do."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# Messages of the C library and of torch (while it writes a zip file) on a full disk.
_FULL_TEXTS = ("No space left", "Disk quota exceeded", "PytorchStreamWriter failed", "unexpected pos")
_OF_RUST = re.compile(r"\(os error ([0-9]+)\)")  # safetensors and tokenizers raise no OSError


def disk_problem(error: BaseException, folders: Iterable[Path]) -> str | None:
    """A sentence for an error that a full or read-only disk caused; None for every other error.

    Args:
        folders: that the failed command writes to.
    """
    folders = [Path(folder) for folder in folders]
    chain = list(_causes(error))
    for cause in chain:
        if _number(cause) in _FULL or any(text in str(cause) for text in _FULL_TEXTS):
            shown = ", ".join(f"{folder} ({_free(folder):.0f} MiB are free now)" for folder in folders) or _named(chain)
            return (
                f"the disk is full or over its quota while writing to {shown}. Make room, or name a folder on another "
                "disk in `results:`. Nothing half-written is kept; the same command continues from the last complete "
                "checkpoint, if any."
            )
    number = _number(error)
    if number in _READ_ONLY:
        name = getattr(error, "filename", None) or ", ".join(map(str, folders)) or _named(chain)
        return f"{name}: {os.strerror(number)}. {_advice(number, getattr(error, 'filename', None), folders)}"
    return None


def _advice(number: int, path: str | None, folders: list[Path]) -> str:
    """What to do about a file or folder that cannot be read or written."""
    written = "Nothing half-written was kept; choose a folder that can be written."
    if number == errno.EROFS:
        return written
    if path is None:
        return "Check the rights of the files to read and of the folder to write. Nothing half-written was kept."
    if not os.path.exists(path) or any(_belong_together(Path(path), folder) for folder in folders):
        return written
    if not os.access(path, os.R_OK):
        return f"You may not read it. `ls -ld {shlex.quote(str(path))}` shows who may."
    return f"You may read it, but not change it. `ls -ld {shlex.quote(str(path))}` shows who may."


def _belong_together(path: Path, output: Path) -> bool:
    """Whether a path is an output, inside of it, around it, or a temporary file beside it."""
    path, output = path.absolute(), output.absolute()
    return path in (output, *output.parents) or output in path.parents or path.name.startswith(f".{output.name}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and the errors that it was raised from or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _named(chain: Iterable[BaseException]) -> str:
    return next((str(name) for cause in chain if (name := getattr(cause, "filename", None))), "a file")


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    of_rust = _OF_RUST.search(str(error))
    return int(of_rust[1]) if of_rust else None


def _free(folder: Path) -> float:
    exists = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(exists).free / 2**20
