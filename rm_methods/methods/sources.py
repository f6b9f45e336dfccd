"""Where methods are: in this package, in installed packages that register theirs, and in folders of the user.

* An installed package registers its methods in its `pyproject.toml`:
  `[project.entry-points."rm_methods.methods"]`, a name of your choice = "the_package.methods".
* The folder `methods` of the working directory is read without being named.
* Other folders are named by `methods_path` of the configuration, or by `--methods`.

Reads no card and imports no code, so that it takes milliseconds: the Snakefile asks in every job.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rm_methods.errors import ConfigError

GROUP = "rm_methods.methods"  # of entry points
OF_THE_USER = Path("methods")  # below the working directory
_TWO_FILES = "A method is a card <name>.yaml and its code <name>.py (docs/adding-a-method.md)"


@dataclass(frozen=True)
class Source:
    """A folder with methods.

    Attributes:
        folder: absolute.
        package: the package that the folder is, to import its code from; None for a folder of the user.
        gives_way: its methods whose names other sources have are left out; elsewhere, that is an error.
    """

    folder: Path
    package: str | None = None
    gives_way: bool = False


_named: tuple[Path, ...] = ()
_of_stored: tuple[Path, ...] = ()


def use_folders(folders: Iterable[str | Path]) -> None:
    """Find methods in these folders from now on, instead of those of earlier calls; `methods_path` names them.

    They hold for the whole process, because a process runs one configuration.
    """
    global _named, _of_stored
    _named = tuple(Path(folder).absolute() for folder in folders)
    _of_stored = ()


def use_folders_of_stored(folders: Iterable[str | Path]) -> None:
    """Find methods in the folders of a stored experiment, too.

    Experiments that are read together may have methods of one name in different folders; the experiment that was read
    last counts.  A folder need not exist.
    """
    global _of_stored
    _of_stored = (*(Path(folder).absolute() for folder in folders), *_of_stored)


def folder_problem(folder: str | Path) -> str | None:
    """Why a folder cannot be a folder of methods, as the end of a sentence; None if it can."""
    path = Path(folder)
    if path.is_file():
        return f"'{folder}' is a file; name the folder that holds it"
    if not path.is_dir():
        return f"no such folder: '{folder}' (looked in {Path.cwd()}). Name the folder that holds the methods"
    if any(path.glob("*.yaml")):
        return None
    code = sorted(file.name for file in path.glob("*.py") if file.name != "__init__.py")
    if code:
        return f"'{folder}' holds {code[0]} but no card. {_TWO_FILES}"
    return f"'{folder}' holds no method. {_TWO_FILES}"


def method_sources(packaged: Path) -> tuple[Source, ...]:
    """All folders of methods: ours, those of installed packages, that of the working directory, and the named ones."""
    working = OF_THE_USER.absolute()
    folders = [Source(folder) for folder in (working, *_named)]
    stored = [Source(folder, gives_way=True) for folder in _of_stored]
    return (Source(packaged, "rm_methods.methods"), *_registered(), *folders, *stored)


@cache
def card_files(sources: tuple[Source, ...]) -> dict[str, tuple[Path, str | None]]:
    """The card of every method, and the package that its code is imported from; by name, sorted.

    Raises:
        ConfigError: two methods have one name.
    """
    cards: dict[str, tuple[Path, str | None]] = {}
    seen: set[Path] = set()
    problems = []
    for source in sources:
        folder = source.folder.resolve()
        if folder in seen:
            continue
        seen.add(folder)
        for path in sorted(source.folder.glob("*.yaml")):
            if path.stem not in cards:
                cards[path.stem] = (path, source.package)
                continue
            if source.gives_way:
                continue
            # Otherwise one of them would win silently, and results of two different things would have one name.
            other = cards[path.stem][0]
            whose = "comes with the package" if other.parent == sources[0].folder else "was already read"
            problems.append(f"{path}: a method of this name {whose} ({other}); rename yours, card and code")
    if problems:
        raise ConfigError(problems, "the methods")
    return dict(sorted(cards.items()))


@cache
def _registered() -> tuple[Source, ...]:
    """The folders that installed packages register.

    Raises:
        ConfigError: an entry point names no folder of methods.
    """
    from importlib.metadata import entry_points

    sources = []
    problems = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        distribution = point.dist.name if point.dist is not None else "?"
        where = f'package \'{distribution}\', entry point {point.name} = "{point.value}" of "{GROUP}"'
        source = _package_source(point.value)
        if isinstance(source, str):
            problems.append(f"{where}: {source}; correct the package, or uninstall it")
        elif source not in sources:
            sources.append(source)
    if problems:
        raise ConfigError(problems, "the installed packages with methods")
    return tuple(sources)


def _package_source(value: str) -> Source | str:
    """The folder of a package, or of the package that a module is in, without importing either; or what is wrong."""
    top, *inner = value.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of the first part only: for others, Python imports the packages above
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return f"no package '{top}' can be imported"
    for location in map(Path, spec.submodule_search_locations or ()):
        folder = location.joinpath(*inner)
        package = value
        if not folder.is_dir() and folder.with_name(f"{folder.name}.py").is_file():
            folder = folder.parent
            package = value.rpartition(".")[0]
        if not folder.is_dir():
            continue
        if not (folder / "__init__.py").is_file():
            return f"{folder} has no __init__.py; a package needs one (it may be empty)"
        return folder_problem(folder) or Source(folder, package)
    return "it names no package; write the package whose folder holds the methods, such as my_package.methods"


def named_folder_problems(folders: Sequence[str | Path], where: str) -> Iterator[str]:
    """A sentence for each of the folders that cannot be used; it begins with the name of the setting."""
    for folder in folders:
        if problem := folder_problem(folder):
            yield f"{where}: {problem}"
