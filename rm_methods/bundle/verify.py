"""Computes the metrics, tables and figures of a bundle again, without a GPU, and names every number that differs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rm_methods.benchmarks.credits import CREDIT_COLUMNS
from rm_methods.benchmarks.evaluation import evaluate_run
from rm_methods.bundle.archive import Manifest, matplotlib_version, read_bundle
from rm_methods.comparison.contamination import contamination_of
from rm_methods.comparison.noise import compare_configured
from rm_methods.comparison.runs import recorded_columns
from rm_methods.config.resolve import read_resolved
from rm_methods.errors import DataError, UserError
from rm_methods.experiment.evaluated_runs import files_of_runs
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout
from rm_methods.methods.members import members_of
from rm_methods.parquet import read_parquet
from rm_methods.stored import read_metrics, read_summary

CLOSE = 1e-9  # numbers that differ by less differ by rounding
_SHOWN = 10
_FIGURES = (".png", ".svg")


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        manifest: of the bundle.
        evaluations: number of runs whose metrics were computed again.
        files: number of tables and figures that were made again.
        differences: one sentence for each number or file that differs.
        notes: what was not compared, and why.
    """

    manifest: Manifest
    evaluations: int
    files: int
    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The result for a terminal."""
        lines = [
            f"{self.manifest.experiment}: {len(self.manifest.files)} files unchanged. Computed again: metrics of "
            f"{self.evaluations} runs, {self.files} tables and figures."
        ]
        if self.differences:
            lines.append(f"{len(self.differences)} differ:")
            lines += [f"  - {difference}" for difference in self.differences[:_SHOWN]]
            if len(self.differences) > _SHOWN:
                lines.append(f"  - and {len(self.differences) - _SHOWN} more")
        else:
            lines.append("OK: all are equal.")
        return "\n".join([*lines, *self.notes])


def verify(path: Path) -> Verification:
    """Check a bundle and compute its results again.

    Raises:
        UserError, DataError: it is not a bundle, or a file of it was changed, is missing or was added.
    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        manifest = read_bundle(path, folder)
        again = Path(scratch) / "again"
        try:
            config = read_resolved(folder / manifest.configuration)
            experiment = Experiment(config)
            differences = list(_metric_differences(experiment, folder, again))
            _compare(config, experiment, folder, again / "comparison")
            _other_tables(config, experiment, folder, again)
        except UserError as error:
            # Paths in the message are those in the bundle.
            raise DataError(f"{path}: {str(error).replace(f'{folder}/', '')}") from error
        notes = []
        same_figures = manifest.made_with.get("matplotlib") == matplotlib_version()
        if not same_figures:
            notes.append(
                f"Figures were not compared: the bundle's are by matplotlib {manifest.made_with.get('matplotlib')}, "
                f"here is {matplotlib_version()}."
            )
        n_files = 0
        for made in sorted(again.rglob("*")):
            name = made.relative_to(again).as_posix()
            if not made.is_file() or name.startswith("evaluation/"):
                continue
            if made.suffix in _FIGURES and not same_figures:
                continue
            if name in manifest.masked and name not in manifest.files:
                continue
            n_files += 1
            differences += _file_differences(folder / name, made, name)
        if manifest.masked:
            notes.append(
                f"Texts of {len(manifest.masked)} files of items are not in the bundle because of their license; their "
                "lengths and hashes are."
            )
        return Verification(manifest, len(experiment.runs()), n_files, tuple(differences), tuple(notes))


def _metric_differences(experiment: Experiment, folder: Path, again: Path) -> Iterator[str]:
    """Metrics that differ from those computed again from items and score tables."""
    layout = Layout(folder)
    for variant, seed in experiment.runs():
        stored = read_metrics(layout.metrics(variant, seed))
        summary = read_summary(layout.summary(variant, seed))
        names = list(experiment.config["benchmarks"])
        tables = {
            name: [layout.scores(member, number, name) for member, number in experiment.member_runs(variant)]
            for name in names
        }
        members = members_of(summary, tables) if experiment.member_runs(variant) else None
        target = again / "evaluation" / variant / f"seed{seed}"
        made = evaluate_run(
            [(name, layout.items(name), layout.scores(variant, seed, name)) for name in names],
            summary,
            target / "metrics.json",
            target / "credits.parquet",
            members,
        )
        for name in names:
            recorded = stored["benchmarks"].get(name, {})
            yield from _value_differences(recorded, made["benchmarks"][name], f"{variant} seed {seed}, {name}")
        yield from _credit_differences(layout.credits(variant, seed), target / "credits.parquet", folder)


def _value_differences(stored: Any, made: Any, where: str) -> Iterator[str]:
    """Values of two JSON-like values that differ by more than rounding."""
    if isinstance(stored, Mapping) and isinstance(made, Mapping):
        for key in dict.fromkeys([*stored, *made]):
            # The metrics of a benchmark are named by themselves.
            inner = where if key == "metrics" else f"{where}: {key}" if ": " not in where else f"{where}.{key}"
            yield from _value_differences(stored.get(key), made.get(key), inner)
    elif isinstance(stored, list) and isinstance(made, list) and len(stored) == len(made):
        for number, (first, second) in enumerate(zip(stored, made, strict=True)):
            yield from _value_differences(first, second, f"{where}.{number}")
    elif not _equal(stored, made):
        yield f"{where} is {stored}, computed again it is {made}"


def _equal(first: Any, second: Any) -> bool:
    numbers = isinstance(first, (int, float)) and isinstance(second, (int, float))
    if numbers and not isinstance(first, bool) and not isinstance(second, bool):
        return first == second or abs(first - second) <= CLOSE
    return type(first) is type(second) and first == second


def _credit_differences(stored: Path, made: Path, folder: Path) -> Iterator[str]:
    """Credits of items that differ."""
    first, second = (read_parquet(path, CREDIT_COLUMNS, "a file of credits", "evaluate") for path in (stored, made))
    name = stored.relative_to(folder).as_posix()
    if first.num_rows != second.num_rows:
        yield f"{name}: has {first.num_rows} rows, computed again {second.num_rows}"
        return
    for row, again in zip(first.to_pylist(), second.to_pylist(), strict=True):
        if not all(_equal(row[key], again[key]) for key in CREDIT_COLUMNS):
            what = f"{row['metric']} of item {row['item_id']}"
            yield f"{name}: {what} is {row['credit']}, computed again it is {again['credit']}"
            return  # one names the table; all of them would be a list of items


def _compare(config: Mapping[str, Any], experiment: Experiment, folder: Path, out: Path) -> None:
    """Make the comparison again from the stored evaluations, which were checked before."""
    files = files_of_runs(experiment, folder)
    compare_configured(config, files, recorded_columns(config, files), out, contamination_of(experiment, folder))


def _other_tables(config: Mapping[str, Any], experiment: Experiment, folder: Path, again: Path) -> None:
    """Make the tables of Best-of-N, PPO and diagnostics again, if the experiment has them."""
    from rm_methods.diagnostics.summary import write_summary
    from rm_methods.overoptimization.summarize import summarize

    if experiment.is_optimized():
        summarize(config, folder, again / "overoptimization", check=False)
    if config["diagnostics"]["benchmarks"]:
        write_summary(config, folder, again / "diagnostics")


def _file_differences(stored: Path, made: Path, name: str) -> Iterator[str]:
    if not stored.exists():
        yield f"{name}: is not in the bundle, but belongs to this experiment"
        return
    if stored.read_bytes() == made.read_bytes():
        return
    if stored.suffix != ".csv":
        yield f"{name}: differs from the one made again"
        return
    yield from _csv_differences(stored, made, name)


def _csv_differences(stored: Path, made: Path, name: str) -> Iterator[str]:
    """Cells of two CSV tables that differ by more than rounding."""
    with stored.open(encoding="utf-8", newline="") as first, made.open(encoding="utf-8", newline="") as second:
        rows = list(csv.DictReader(first))
        rows_again = list(csv.DictReader(second))
    if len(rows) != len(rows_again):
        yield f"{name}: has {len(rows)} rows, made again {len(rows_again)}"
        return
    for number, (row, row_again) in enumerate(zip(rows, rows_again, strict=True), start=1):
        labels = ", ".join(filter(None, (row.get(key) for key in ("variant", "benchmark", "metric", "pool"))))
        for key in dict.fromkeys([*row, *row_again]):
            if not _same_cell(row.get(key), row_again.get(key)):
                yield (
                    f"{name}, row {number} ({labels}): {key} is {row.get(key)}, computed again it is "
                    f"{row_again.get(key)}"
                )


def _same_cell(first: str | None, second: str | None) -> bool:
    if first == second:
        return True
    try:
        return abs(float(first or "") - float(second or "")) <= CLOSE * max(1.0, abs(float(second or "")))
    except ValueError:
        return False
