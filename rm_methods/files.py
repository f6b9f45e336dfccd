"""Files that are either whole or absent.

Every artifact is written beside its target under a temporary name, brought to the disk, and moved into place with
``os.replace``: a full disk, a killed process or a power cut leaves the temporary file behind, never half an artifact
under the final name.  The next writer of the same target removes files that dead writers left.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.processes import machine, started

PARTIAL = ".partial"
SEAL = "complete"  # in folders that are written file by file, such as checkpoints
_STALE_AFTER_SECONDS = 24 * 3600.0  # for temporary files of other machines, whose processes this one cannot see
_SPECIAL_FILES = (
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISSOCK, "socket"),
)
# Read once, before other threads start: the umask can only be read by setting it.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextmanager
def written_atomically(target: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success move it there, on any error remove it.

    The caller may create a file or a folder at the temporary path. An existing target is replaced. Files get the
    permissions that the umask allows, whatever library wrote them.

    Raises:
        UserError: the target is a pipe, device or socket, or has no name, as "." and "..".
    """
    target = Path(target)
    _check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = target.with_name(f".{target.name}.{_writer()}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield temporary
        _settle(temporary)
        if temporary.is_dir() and target.is_dir():
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync(target.parent)
    except BaseException:
        _remove(temporary)
        raise


def _check_target(target: Path) -> None:
    """Refuse to replace a device such as /dev/null by a file, or the folder that holds the target."""
    if target.name in ("", ".."):
        raise UserError(f"{target}: an output needs a name. Write a folder's name, not '.' or '..'.")
    if kind := special_kind(target):
        raise UserError(f"{target}: is a {kind}, which the output would replace. Name a file.")


def special_kind(path: str | os.PathLike) -> str | None:
    """ "pipe", "device" or "socket"; None for files, folders, and what does not exist."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # whoever opens it says what is wrong
        return None
    return next((kind for is_kind, kind in _SPECIAL_FILES if is_kind(mode)), None)


def check_regular(*paths: str | os.PathLike) -> None:
    """Refuse to read what is no file: a pipe without a writer waits for ever, and a device may have no end.

    A pipe with a writer can be read once only, but files are read several times, such as for their hash.

    Raises:
        UserError: naming the path.
    """
    for path in paths:
        if kind := special_kind(path):
            raise UserError(f"{path}: is a {kind}, not a file. Write its content to a file, and name that one.")


def check_replaceable(folder: str | os.PathLike, own_file: str) -> None:
    """Refuse to replace a folder that this stage did not write: everything in it would be removed.

    Args:
        own_file: name of a file that the stage writes into its folder.

    Raises:
        UserError: the folder holds files, but not this one.
    """
    path = Path(folder)
    if path.is_dir() and any(path.iterdir()) and not (path / own_file).exists():
        raise UserError(
            f"{folder}: is a folder with other files (it has no {own_file}), which would be removed. Name a new folder."
        )


def check_outputs(
    outputs: Mapping[str, Iterable[str | os.PathLike]], inputs: Mapping[str, Iterable[str | os.PathLike]]
) -> None:
    """Refuse to write a file twice, or to overwrite a file that is read. Links and relative paths are resolved.

    Args:
        outputs, inputs: files by the option that names them.

    Raises:
        UserError: naming both options and the file.
    """
    reads = {os.path.realpath(path): option for option, paths in inputs.items() for path in paths}
    writes: dict[str, str] = {}
    for option, paths in outputs.items():
        for path in paths:
            file = os.path.realpath(path)
            if file in writes:
                raise UserError(
                    f"{option} {path}: {writes[file]} writes the same file. Give each output a file for itself."
                )
            if file in reads:
                raise UserError(
                    f"{option} {path}: this is the file of {reads[file]}, which would be overwritten. "
                    "Name another file."
                )
            writes[file] = f"{option} {path}"


def sync(path: str | os.PathLike) -> None:
    """Flush a file, or the names in a folder, to the disk. Otherwise a power cut may leave a file of zeros."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: str | os.PathLike) -> None:
    """Mark a folder as complete: flush its files to the disk, then write their sizes into the file `complete`."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        sync(path)
    write_json(folder / SEAL, {str(path.relative_to(folder)): path.stat().st_size for path in files})


def damage(folder: str | os.PathLike) -> str | None:
    """The damage of a folder that `seal` should have marked; None for a whole one. Later files do not matter."""
    folder = Path(folder)
    if not (folder / SEAL).exists():
        return "was not written to its end"
    try:
        sizes = read_json(folder / SEAL)
    except UserError:
        return f"has a damaged file '{SEAL}'"
    if not isinstance(sizes, dict):
        return f"has a damaged file '{SEAL}'"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes in {name}, {size} were written"
    return None


@contextmanager
def written_with_checksum(target: str | os.PathLike) -> Iterator[Path]:
    """Like `written_atomically`, for a file that later runs rely on: stores its SHA-256 beside it (see `is_intact`)."""
    target = Path(target)
    with written_atomically(target) as temporary:
        yield temporary
        write_text(_checksum_file(target), file_hash(temporary, length=64) + "\n")


def is_intact(target: str | os.PathLike) -> bool:
    """Whether a file of `written_with_checksum` exists and is unchanged; a damaged one is reported on stderr."""
    target = Path(target)
    checksum = _checksum_file(target)
    if not target.exists():
        return False
    if checksum.exists() and checksum.read_bytes().strip() == file_hash(target, length=64).encode():
        return True
    print(f"{target} is damaged or unfinished; it is made again.", file=sys.stderr, flush=True)
    return False


def remove_with_checksum(target: str | os.PathLike) -> None:
    """Remove a file of `written_with_checksum`; a missing one is no error."""
    target = Path(target)
    target.unlink(missing_ok=True)
    _checksum_file(target).unlink(missing_ok=True)


def _checksum_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _settle(path: Path) -> None:
    """Give a file, or all files of a folder, the permissions that the umask allows, and flush them to the disk."""
    for entry in _with_contents(path):
        if entry.is_symlink():
            continue
        mode = stat.S_IMODE(entry.stat().st_mode)
        allowed = (mode | 0o666) & ~_UMASK
        if entry.is_file() and mode != allowed:
            entry.chmod(allowed)
        sync(entry)


def _with_contents(path: Path) -> list[Path]:
    """A path, and everything below it if it is a folder."""
    return [path, *path.rglob("*")] if path.is_dir() else [path]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _writer() -> str:
    """The name of this process in temporary files: machine, number, start."""
    return f"{_machine_digest()}-{os.getpid()}-{started(os.getpid())}"


def _machine_digest() -> str:
    return hashlib.sha256(machine().encode("utf-8")).hexdigest()[:8]


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of `target` whose writers are gone."""
    prefix = f".{target.name}."
    with os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(PARTIAL)]
    for name in names:
        with suppress(OSError):
            if _is_left_over(target.with_name(name), name.removeprefix(prefix)):
                _remove(target.with_name(name))


def _is_left_over(path: Path, name: str) -> bool:
    """Whether the writer of a temporary file is dead, by the process in its name; on another machine, by its age."""
    machine_of_writer, _, process = name.split(".")[0].partition("-")
    if machine_of_writer == _machine_digest():
        number, _, start = process.partition("-")
        return str(started(number)) != start
    newest = max(entry.lstat().st_mtime for entry in _with_contents(path))
    return time.time() - newest > _STALE_AFTER_SECONDS


def write_text(target: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with written_atomically(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given. NaN and infinity are refused: they are not JSON."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(source: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON; NaN, infinity and numbers beyond float are not JSON.
    """
    check_regular(source)
    try:
        return parse_json(Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{source}: no such file.") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{source}: not valid JSON ({error}).") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or holds NaN, infinity, a number beyond float, or half of a surrogate pair, which no
            file can hold.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not Unicode: {error.object[error.start]!a}") from None
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is not a finite number")
    return value


def read_json_lines(source: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file that is written line by line; none without a file.

    A last line that a kill cut off is left out.

    Raises:
        UserError: a whole line is not JSON.
    """
    source = Path(source)
    if not source.exists():
        return []
    check_regular(source)
    rows = []
    try:
        # Text after the last line break was not written completely, even if it happens to be JSON.
        for number, line in enumerate(source.read_text(encoding="utf-8").split("\n")[:-1], start=1):
            rows.append(parse_json(line))
            if not isinstance(rows[-1], dict):
                raise UserError(f"{source}: line {number} is not a JSON object. Remove the file; it is written anew.")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: a line is not valid JSON ({error}). Remove the file; it is written anew.") from None
    return rows


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces. Equal values give equal texts, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any, length: int = 16) -> str:
    """Hexadecimal SHA-256 (first `length` digits) of a JSON-like value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()[:length]


def file_hash(*sources: str | os.PathLike, length: int = 16) -> str:
    """Hexadecimal SHA-256 (first `length` digits) of the bytes of one or more files, in the order given."""
    check_regular(*sources)
    digest = hashlib.sha256()
    for source in sources:
        with open(source, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()[:length]


def named_file_hash(name: str | None) -> str | None:
    """Hash of a file that a setting names; None where it names none."""
    return file_hash(name) if name else None
