"""Imports the code of a user's method, and finds mistakes in it: without running it, and those that show only then.

Imports nothing heavy: the Snakefile resolves the configuration in every job.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rm_methods.errors import UserError, nearest
from rm_methods.files import content_hash
from rm_methods.system.code_hash import local_modules

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
    if problems := list(_import_problems(tree, code)):
        return problems
    for helper in helper_files(code):
        try:
            ast.parse(helper.read_bytes(), filename=str(helper))
        except (SyntaxError, ValueError) as error:
            return [f"{helper}, line {getattr(error, 'lineno', '?')}: not valid Python: {error}"]
    names = set(_names(tree.body))
    if "Method" not in names and "*" not in names:
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        return [f"{code}: {no_class(kind, classes)}"]
    return [
        f"{code}, line {line}: {_unknown_setting(name, settings, code)}"
        for name, line in _settings_read(tree)
        if name not in settings
    ]


def helper_files(code: Path) -> list[Path]:
    """The modules beside a method, or in its package, that it imports, directly or not; sorted."""
    reached: set[Path] = set()
    waiting = [code]
    while waiting:
        for helper in local_modules(waiting.pop()):
            if helper not in reached and helper != code:
                reached.add(helper)
                waiting.append(helper)
    return sorted(reached)


def import_code(code: Path, package: str | None) -> ModuleType:
    """The module of a user's method; it is imported once.

    Args:
        code: the file of the method.
        package: the installed package that it belongs to; None for a file in a folder, whose modules then import each
            other as `from . import helpers`.

    Raises:
        UserError: it cannot be imported; names the line.
    """
    try:
        if package is None:
            package = _folder_as_package(code.parent)
        return importlib.import_module(f"{package}.{code.stem}" if package else code.stem)
    except Exception as error:
        raise UserError(_import_failure(error, code)) from error


def _folder_as_package(folder: Path) -> str:
    """Make a folder importable under a name that no other folder has, and return the name."""
    name = f"methods_of_the_user_{content_hash(str(folder))}"
    if name in sys.modules:
        return name
    init = folder / "__init__.py"
    if init.is_file():
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    else:
        spec = importlib.util.spec_from_loader(name, None, is_package=True)
        assert spec is not None
        spec.submodule_search_locations = [str(folder)]
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if spec.loader is not None:
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return name


def _import_failure(error: Exception, code: Path) -> str:
    """The sentence for an import that failed, with the last line of the user's files that ran."""
    where = str(code)
    for frame in traceback.extract_tb(error.__traceback__):
        if code.parent in Path(frame.filename).parents:
            where = f"{frame.filename}, line {frame.lineno}"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("rm_methods."):
        top = error.name.partition(".")[0]
        if not top.startswith("methods_of_the_user_"):
            return f"{where}: the method cannot be imported. {_missing_module(top, code)}"
    return f"{where}: the method cannot be imported. {type(error).__name__}: {error}"


def _missing_module(name: str, code: Path) -> str:
    """What to do about an import of a module that Python does not find."""
    if (code.parent / f"{name}.py").is_file() or (code.parent / name / "__init__.py").is_file():
        return (
            f"`{name}` is a file beside the method, which Python finds as a relative import only: write `from . import "
            f"{name}` or `from .{name} import ...`."
        )
    return f"It imports the package '{name}', which is not installed in this environment; install it."


def _import_problems(tree: ast.Module, code: Path) -> Iterator[str]:
    """Imports at the top of a file that cannot work; those inside `try`, `if` and functions may never run."""
    for node in tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        elif isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and not _is_beside(code, node.module):
            yield f"{code}, line {node.lineno}: imports `.{node.module}`, but {code.parent} has no such module."
        for top in dict.fromkeys(name.partition(".")[0] for name in names):
            if not _can_be_imported(top):
                yield f"{code}, line {node.lineno}: the method cannot be imported. {_missing_module(top, code)}"


def _is_beside(code: Path, module: str) -> bool:
    path = code.parent.joinpath(*module.split("."))
    return path.is_dir() or any(path.parent.glob(f"{path.name}.*"))


def _can_be_imported(top: str) -> bool:
    """Whether Python finds a package; it is not imported."""
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


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
