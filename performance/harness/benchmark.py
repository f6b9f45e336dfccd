"""What a benchmark declares, and how the declarations are discovered.

A benchmark is one file performance/<name>.py with one declaration, `BENCHMARK = Benchmark(...)`.  The file is imported
only to list and to run benchmarks, so it imports torch and other heavy packages inside functions.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rm_methods.errors import UserError, nearest

FOLDER = Path(__file__).parents[1]
_DECLARED = re.compile(r"^BENCHMARK = Benchmark\($", re.MULTILINE)


@dataclass(frozen=True)
class Side:
    """One of the programs that are compared.

    Args:
        name: for the command line and the record.
        title: for tables.
        packages: modules that it imports beyond ours; a side without them is skipped.
        external: it times other people's code, which is the same on every commit of ours.
        ranks: processes that share the cores (`torch.distributed.run`); rank 0 reports.
    """

    name: str
    title: str
    packages: tuple[str, ...] = ()
    external: bool = False
    ranks: int = 1


@dataclass(frozen=True)
class Case:
    """One input on which all sides are measured.

    Args:
        data: folders of RM_METHODS_DATA that it reads (performance/harness/inputs.py).
    """

    name: str
    title: str
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """A setting with its default, whose type `--option key=value` must have."""

    default: bool | int | float | str
    meaning: str


@dataclass(frozen=True)
class Work:
    """What one process has to do.

    Args:
        side: None while inputs are prepared and results are compared.
        folder: of this case; `prepare` fills it, and all processes of the case read it.
        shared: of all cases of the benchmark.
    """

    case: str
    side: str | None
    options: Mapping[str, Any]
    folder: Path
    shared: Path


@dataclass(frozen=True)
class Measurement:
    """What one process measured.

    Args:
        seconds: wall time of the part that the benchmark is about.
        cpu_seconds: user and system time of the same part, over all its threads and processes.
        peak_memory_bytes: until then, from `stopwatch.peak_memory_bytes`.
        amount: how many units were processed (`Benchmark.unit`).
        result: numbers that another commit must reproduce (`--base`).
        details: anything else, for the record and for `Benchmark.table`.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    amount: float | None = None
    result: tuple[float, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Proof:
    """That all sides give the same result: nothing is timed if `difference` exceeds `tolerance`."""

    statement: str
    difference: float
    tolerance: float


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Args:
        name: of its file.
        title: heading on docs/speed.md.
        question: that the numbers answer.
        sides: measured in this order in every round.
        baseline: side that the others are divided by; None if nothing is compared.
        tests: pytest ids of the tests that define right results.  They run first and must pass.
        prove: compares the results of all sides on a case.
        measure: does the work of one side in a fresh process.
        prepare: writes the inputs of a case to `work.folder`, once; not timed.
        packages: modules that all sides import beyond our dependencies.
        missing: why it cannot run here, and what to do; None if it can.
        side_missing: the same for one side by name, which is then skipped.
        unit: what `Measurement.amount` counts, in the plural.
        detail_columns: headings of further columns, by key of `Measurement.details`; the values are numbers.
        compares: "speed" shows baseline / side (3 is three times as fast), "time" shows side / baseline.
        table: Markdown of a record, instead of the usual table.
    """

    name: str
    title: str
    question: str
    sides: tuple[Side, ...]
    tests: tuple[str, ...]
    prove: Callable[[Work], Proof]
    measure: Callable[[Work], Measurement]
    baseline: str | None = None
    cases: tuple[Case, ...] = (Case("all", ""),)
    options: Mapping[str, Option] = field(default_factory=dict)
    prepare: Callable[[Work], None] | None = None
    packages: tuple[str, ...] = ()
    missing: Callable[[Mapping[str, Any]], str | None] | None = None
    side_missing: Callable[[Mapping[str, Any], str], str | None] | None = None
    rounds: int = 3
    unit: str = ""
    detail_columns: Mapping[str, str] = field(default_factory=dict)
    compares: Literal["speed", "time"] = "speed"
    table: Callable[[Mapping[str, Any]], str] | None = None

    def __post_init__(self) -> None:
        names = [side.name for side in self.sides]
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"{self.name}: baseline is {self.baseline!r}, but the sides are {', '.join(names)}.")
        if not self.tests:
            raise ValueError(f"{self.name}: tests is empty; name the tests that define right results.")

    def settings(self, given: Mapping[str, str]) -> dict[str, Any]:
        """All options, as given or by default.

        Args:
            given: values as text, from the command line.

        Raises:
            UserError: the benchmark has no such option, or the value has another type.
        """
        values: dict[str, Any] = {key: option.default for key, option in self.options.items()}
        for key, text in given.items():
            if key not in values:
                raise UserError(f"--option {key}: {self.name} has no such option. {nearest(key, self.options)}")
            values[key] = _converted(key, text, self.options[key].default)
        return values


def _converted(key: str, text: str, default: bool | int | float | str) -> bool | int | float | str:
    kind = type(default)
    if kind is bool:
        if text not in ("true", "false"):
            raise UserError(f"--option {key}={text}: must be true or false.")
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"--option {key}={text}: must be of type {kind.__name__}, like {default}.") from None


def benchmark_files(folder: Path = FOLDER) -> dict[str, Path]:
    """The files with a declaration, by name."""
    files = sorted(folder.glob("*.py"))
    return {file.stem: file for file in files if _DECLARED.search(file.read_text(encoding="utf-8"))}


def load_module(file: Path) -> ModuleType:
    """A file of a benchmark as a module."""
    name = f"performance.{file.stem}" if file.parent == FOLDER else file.stem
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def load_benchmark(name: str, folder: Path = FOLDER) -> Benchmark:
    """The benchmark of a name.

    Raises:
        UserError: no file declares it, or under another name.
    """
    files = benchmark_files(folder)
    if name not in files:
        raise UserError(f"No benchmark is called '{name}'. {nearest(name, files)}")
    benchmark: Benchmark = load_module(files[name]).BENCHMARK
    if benchmark.name != name:
        raise UserError(f"{files[name]}: its benchmark is called '{benchmark.name}'; name it like the file.")
    return benchmark


def measurement_from(values: Mapping[str, Any]) -> Measurement:
    """A measurement as its process wrote it."""
    return Measurement(**{**values, "result": tuple(values["result"])})


def as_json(value: Measurement | Proof) -> dict[str, Any]:
    """A measurement or proof for JSON."""
    return asdict(value)
