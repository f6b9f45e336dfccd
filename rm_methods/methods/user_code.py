"""Finds mistakes in the code of a user's method without running it, and those that show only when it runs.

Imports nothing heavy: the Snakefile resolves the configuration in every job.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError, nearest

GUIDE = "see docs/adding-a-method.md"
# Kind of a card -> base class in rm_methods.methods.contract, and what a method of this kind must define.
BASES = {
    "trained": ("TrainedMethod", "loss"),
    "joint": ("TrainedMethod", "loss"),
    "combined": ("CombinedMethod", "combine"),
    "external": ("ExternalMethod", "describe"),
    "content_blind": ("ContentBlindMethod", "score"),
    "computed": ("ContentBlindMethod", "score"),
}


class Settings(dict):
    """Settings of a method, which explain a name that its card does not have.

    Args:
        values: resolved settings, all keys of the card.
        code: the file of the method.
    """

    def __init__(self, values: Mapping[str, Any], code: Path):
        super().__init__(values)
        self.code = code

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.code}: {_unknown_setting(name, self, self.code)}")


def code_problems(code: Path, kind: str, settings: Mapping[str, Any]) -> list[str]:
    """Mistakes in a file with a method, one sentence each, with the line.

    Args:
        code: the file; it is parsed, not run.
        kind: of the card.
        settings: of the card, by name.
    """
    try:
        tree = ast.parse(code.read_bytes(), filename=str(code))
    except SyntaxError as error:
        return [f"{code}, line {error.lineno}: not valid Python: {error.msg}"]
    except ValueError as error:
        return [f"{code}: not valid Python: {error}"]
    names = set(_names(tree.body))
    if "Method" not in names and "*" not in names:
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        return [f"{code}: {no_class(kind, classes)}"]
    return [
        f"{code}, line {line}: {_unknown_setting(name, settings, code)}"
        for name, line in _settings_read(tree)
        if name not in settings
    ]


def no_class(kind: str, classes: list[str]) -> str:
    """The sentence for a file that has no class `Method`."""
    base = BASES[kind][0]
    others = f"It defines {', '.join(classes)}; rename the one that is the method" if classes else "Write one"
    return f"defines no class Method. {others}: `class Method({base}):`, {GUIDE}."


def class_problem(method: Any, kind: str) -> str | None:
    """What is wrong with the `Method` of a user's module; None if nothing is."""
    from rm_methods.methods import contract

    name, needed = BASES[kind]
    base = getattr(contract, name)
    if not isinstance(method, type) or not issubclass(method, base):
        return (
            f"Method is no subclass of {name}, which a card with `kind: {kind}` asks for. Write `from "
            f"rm_methods.methods.contract import {name}` and `class Method({name}):`, {GUIDE}."
        )
    if getattr(method, needed) is getattr(base, needed):
        return f"Method defines no `{needed}`, which a card with `kind: {kind}` asks for, {GUIDE}."
    return None


def _unknown_setting(name: str, settings: Mapping[str, Any], code: Path) -> str:
    card = code.with_suffix(".yaml").name
    known = nearest(name, settings) if settings else "The card has no settings."
    return f"reads the setting '{name}', which {card} does not have; add it under `settings:` there. {known}"


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """Names that statements of a module bind; "*" for a star import."""
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _names(node.body)
            yield from _names(getattr(node, "orelse", []))
            for handler in getattr(node, "handlers", []):
                yield from _names(handler.body)
        else:
            for inside in ast.walk(node):
                if isinstance(inside, ast.Name) and isinstance(inside.ctx, ast.Store):
                    yield inside.id


def _settings_read(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names that the code reads as `self.settings["name"]`, with their lines."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.ctx, ast.Load)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "settings"
            and isinstance(node.value.value, ast.Name)
            and node.value.value.id == "self"
            and isinstance(node.slice, ast.Constant)
            and isinstance(node.slice.value, str)
        ):
            yield node.slice.value, node.lineno
