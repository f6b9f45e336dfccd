"""Which code a result depends on: the modules that its stage imports.

`code_hash(stage)` follows the import statements from the entry module of the stage, those inside functions included,
and hashes every file that it reaches.  So an edit reruns the stages that can run the edited code, and no others.
Modules that are loaded by name (methods, readers, benchmarks) are given by the caller, who knows the configuration.
A module outside the package (a user's method) is given as the absolute path of its file; the modules beside it, or in
its package, that it imports belong to it.

Imports nothing heavy and runs no code of the package: the Snakefile asks for these hashes in every job.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rm_methods.errors import UserError, nearest
from rm_methods.files import file_hash

PACKAGE = Path(__file__).parents[1]

# The modules that a stage runs first.
STAGES: dict[str, tuple[str, ...]] = {
    "prepare": ("preferences.prepare",),
    "backbone": ("reward_models.backbones",),
    "items": ("benchmarks.evaluation",),
    "contamination": ("benchmarks.contamination",),
    "train": ("training.run",),
    "score": ("scoring.scorer",),
    "evaluate": ("benchmarks.evaluation",),
    "diagnose": ("diagnostics.diagnose",),
    "diagnose_teacher": ("diagnostics.teacher_distance",),
    "diagnose_summary": ("diagnostics.summary",),
    "sft": ("policies.make_policy",),
    "sample": ("overoptimization.draw",),
    "ppo": ("ppo.run",),
    "overoptimization": ("overoptimization.summarize",),
    "compare": ("comparison.compare", "comparison.noise"),
    "html_report": ("html_report.page",),
    "tune": ("comparison.tuning",),
    "track": ("tracking.export",),
}

# Modules that move, name or report results, and cannot change them.  A name includes everything below it.  The values
# that `config` fills in and `experiment` lists are part of the parameters of every job.
PLUMBING = (
    "cli",
    "commands",
    "config.conflicts",
    "config.resolve",
    "errors",
    "experiment",
    "files",
    "listing",
    "methods.sources",
    "methods.user_code",
    "model_card",
    "planning",
    "run_card",
    "system.cluster",
    "system.code_hash",
    "system.progress",
    "system.provenance",
    "system.run_lock",
)

# An import statement at the start of a line or behind blanks; the names may be in parentheses over several lines.
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+rm_methods((?:\.\w+)*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]+)"
    r"|import[ \t]+rm_methods\.([\w.]+))",
    re.MULTILINE,
)


@cache
def code_hash(stage: str, *modules: str) -> str:
    """Hash of the code that a stage runs; Snakemake reruns a job when it changes.

    Args:
        stage: a key of `STAGES`.
        modules: further entry modules, such as `methods.hinge` for a training run of that method: names below
            `rm_methods`, or absolute paths of files.

    Raises:
        UserError: a module does not exist.
    """
    return file_hash(*stage_files(stage, *modules))


def modules_hash(*modules: str) -> str:
    """Like `code_hash`, for a result that only some modules make instead of a whole stage."""
    return file_hash(*_module_files(closure(*modules)))


def stage_files(stage: str, *modules: str) -> list[Path]:
    """The files behind `code_hash`: source of the modules, and the data files that belong to them.

    Files of the package are sorted and come first, so that the order and the hash do not depend on the location of the
    user's files.
    """
    return _module_files(closure(*STAGES[stage], *modules))


def _module_files(names: Iterable[str]) -> list[Path]:
    files = {file for name in names for file in _files(name)}
    return sorted(files, key=lambda file: (PACKAGE not in file.parents, file))


def closure(*entries: str) -> set[str]:
    """The entry modules and all modules that they import, directly or not, without plumbing."""
    reached: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in reached or _is_plumbing(name):
            continue
        reached.add(name)
        if "." in name and not _is_path(name):
            waiting.append(name.rpartition(".")[0])  # importing a module runs the packages above it
        waiting += imported_modules(name)
    return reached


@cache
def imported_modules(name: str) -> tuple[str, ...]:
    """The modules that a module's import statements name: names below `rm_methods`, and for a file outside the package
    also the files beside it or in its package."""
    modules = [str(file) for file in local_modules(_source(name))] if _is_path(name) else []
    for package, names, module in _IMPORT.findall(_source(name).read_text(encoding="utf-8")):
        if module:
            modules.append(module)
            continue
        package = package.removeprefix(".")
        for imported in re.findall(r"(\w+)(?:[ \t]+as[ \t]+\w+)?[ \t\n]*(?:,|\)|$)", names):
            # `from package import module`, or a name that is defined in `package`
            full = f"{package}.{imported}".removeprefix(".")
            modules.append(full if _exists(full) else package)
    return tuple(dict.fromkeys(module for module in modules if module))


def local_modules(file: Path) -> list[Path]:
    """The files of a user that a file outside `rm_methods` imports: relatively, or by the name of their package.

    A file that is not valid Python imports none; whoever runs it reports that.
    """
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError):
        return []
    packages = _packages_above(file)  # importing a module runs them
    top = packages[-1] if packages else None
    candidates = list(packages)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level <= len(file.parents):
            if node.level:
                start = file.parents[node.level - 1]
            elif top is not None and str(node.module).partition(".")[0] == top.name:
                start = top.parent
            else:
                continue
            module = start.joinpath(*node.module.split(".")) if node.module else start
            candidates += [module, *(module / alias.name for alias in node.names)]
        elif isinstance(node, ast.Import) and top is not None:
            names = [alias.name.split(".") for alias in node.names]
            candidates += [top.parent.joinpath(*parts) for parts in names if parts[0] == top.name]
    sources = [Path(f"{path}.py") if Path(f"{path}.py").is_file() else path / "__init__.py" for path in candidates]
    return [source for source in dict.fromkeys(sources) if source.is_file() and PACKAGE not in source.parents]


def _packages_above(file: Path) -> list[Path]:
    """The folders above a file that are packages, the innermost first."""
    packages = []
    for folder in file.parents:
        if not (folder / "__init__.py").is_file():
            break
        packages.append(folder)
    return packages


def _is_path(name: str) -> bool:
    return Path(name).is_absolute()


def _is_plumbing(name: str) -> bool:
    return any(name == plumbing or name.startswith(f"{plumbing}.") for plumbing in PLUMBING)


def _exists(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _source(name: str) -> Path:
    if _is_path(name):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file.")
        return Path(name)
    path = PACKAGE.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        siblings = sorted(sibling.stem for sibling in path.parent.glob("*.py"))
        raise UserError(f"rm_methods.{name}: no such module. {nearest(path.name, siblings)}")
    return file


def _files(name: str) -> list[Path]:
    """A module's source and data files: those with its name (a method's card); for a package, those of no module."""
    return _beside(_source(name), name) if _is_path(name) else _packaged_files(PACKAGE, name)


@cache
def _packaged_files(package: Path, name: str) -> list[Path]:
    """`_files` of a module below `package`, listed once: the stages of an experiment share most modules."""
    return _beside(_source(name), name)


def _beside(source: Path, name: str) -> list[Path]:
    """A module's source, and the data files that belong to it."""
    if source.name == "__init__.py" and _is_path(name):
        data = []
    elif source.name == "__init__.py":
        modules = {file.stem for file in source.parent.glob("*.py")}
        data = [file for file in source.parent.iterdir() if _is_data(file) and file.stem not in modules]
    else:
        data = [file for file in source.parent.glob(f"{source.stem}.*") if _is_data(file)]
    return [source, *data]


def _is_data(file: Path) -> bool:
    return file.suffix not in (".py", ".pyc") and file.is_file()
