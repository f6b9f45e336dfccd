"""Runs the contract test of one method, and says the result in lines of text."""

from __future__ import annotations

import contextlib
import io
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rm_methods.errors import UserError, shortened
from rm_methods.methods.registry import load_method_card

_WIDTH = 100
_INDENT = " " * 10
_PRINTED = 10  # lines


def check_method(
    name: str,
    say: Callable[[str], None],
    *,
    method_folders: Sequence[Path] = (),
    settings: Mapping[str, Any] | None = None,
    two_ranks: bool = False,
) -> bool:
    """Check all properties of a method.

    Args:
        say: is given each line as soon as the line is known.
        method_folders: folders of methods outside the package.
        settings: that differ from the card's defaults.
        two_ranks: also check the slow property, with two processes.

    Returns:
        Whether all hold.

    Raises:
        UserError: the method cannot be run at all.
    """
    with tempfile.TemporaryDirectory(prefix="rm-methods-contract-") as folder:
        from rm_methods.contract_test.workbench import Workbench

        bench = Workbench(Path(folder), method_folders, {name: dict(settings or {})})
        # Before torch is imported, because most mistakes show here.
        bench.check_can_run(name)
        code = load_method_card(name).file.with_suffix(".py")
        say(f"Contract test of {name} ({code})")

        from transformers.utils.logging import set_verbosity_error

        from rm_methods.contract_test.properties import properties_of
        from rm_methods.system.cpu import prepare_cpu

        set_verbosity_error()
        prepare_cpu(1)
        bench.method(name)
        properties = properties_of(name)
        width = max(len(entry.name) for entry in properties)
        failed = 0
        for position, entry in enumerate(properties):
            line = f"{entry.name:<{width}}  {entry.text}"
            if entry.slow and not two_ranks:
                say(f"  -       {line} (only with --two-ranks)")
                continue
            printed = io.StringIO()
            problem, note = _result(entry.check, bench, name, code, printed)
            if problem is None:
                say(f"  {'ok' if note is None else '-':<7} {line}{'' if note is None else f' (not checked: {note})'}")
                _say_printed(printed.getvalue(), say)
                continue
            failed += 1
            say(f"  {'FAILED':<7} {line}")
            for text in problem.splitlines():
                say(
                    textwrap.fill(
                        text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_long_words=False
                    )
                )
            _say_printed(printed.getvalue(), say)
            if entry.needed and position + 1 < len(properties):
                say("  The other properties need this one; they were not checked.")
                break
        say(f"{name} fulfills the contract." if not failed else f"{name} does not fulfill the contract.")
        return not failed


def _say_printed(text: str, say: Callable[[str], None]) -> None:
    """The last lines that the method printed; a loss prints in every micro-batch."""
    lines = shortened(text, _WIDTH).splitlines()
    if len(lines) > _PRINTED:
        say(f"{_INDENT}printed: the last {_PRINTED} of {len(lines):,} lines")
    elif lines:
        say(f"{_INDENT}printed:")
    for line in lines[-_PRINTED:]:
        say(f"{_INDENT}| {line}")


def _result(
    check: Callable[..., str | None], bench: Any, name: str, code: Path, printed: TextIO
) -> tuple[str | None, str | None]:
    """(problem, note) of a check; what goes to stdout is written to `printed`, the progress on stderr is left out."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(printed):
            return None, check(bench, name)
    except UserError as error:
        return shortened(str(error)), None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame for frame in frames if code.parent in Path(frame.filename).parents] or frames
        where = f"{lines[-1].filename}, line {lines[-1].lineno}"
        return shortened(f"{where}: {type(error).__name__}: {error}"), None
