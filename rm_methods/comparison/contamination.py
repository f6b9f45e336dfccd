"""Contamination beside the comparison table: how many items of each benchmark share texts with the training pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rm_methods.benchmarks.contamination_report import (
    COUNTS,
    ContaminationReport,
    contamination_note,
    read_contamination,
)
from rm_methods.benchmarks.items_hash import items_hash
from rm_methods.errors import DataError
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout
from rm_methods.files import file_hash
from rm_methods.reporting.tables import csv_text

CSV_FIELDS = (
    "experiment",
    "benchmark",
    "subset",
    "training_pairs",
    "items",
    *COUNTS,
    *(f"{count}_share" for count in COUNTS),
)


@dataclass(frozen=True)
class BenchmarkContamination:
    """The overlap of one benchmark with the training pairs of an experiment.

    Attributes:
        benchmark: its name.
        report: the counts; None if they are missing, or not made because of `by_design`.
        by_design: one generator made items and training pairs.
        experiment: the experiment whose training pairs they are; empty where all compared ones have the same.
    """

    benchmark: str
    report: ContaminationReport | None
    by_design: bool = False
    experiment: str = ""

    @property
    def name(self) -> str:
        """The benchmark, and the experiment if several differ."""
        return f"{self.experiment}/{self.benchmark}" if self.experiment else self.benchmark


def contamination_of(experiment: Experiment, folder: Path) -> list[BenchmarkContamination]:
    """The stored overlap of every benchmark of an experiment.

    Args:
        folder: of the experiment's results.

    Raises:
        DataError: an overlap was edited, or counted on other items or pairs than those beside it.
    """
    layout = Layout(folder)
    entries = []
    for benchmark in experiment.config["benchmarks"]:
        file = layout.contamination(benchmark)
        if experiment.overlaps_by_design(benchmark):
            entries.append(BenchmarkContamination(benchmark, None, by_design=True))
        elif file.exists():
            report = read_contamination(file)
            for name, source, digest in (
                ("items", layout.items(benchmark), items_hash),
                ("pairs", layout.pairs, file_hash),
            ):
                # The results may have been copied without them.
                if source.exists() and digest(source) != report["hashes"][name]:
                    raise DataError(f"{file}: {source} was changed since. Run the contamination stage again.")
            entries.append(BenchmarkContamination(benchmark, report))
        else:
            entries.append(BenchmarkContamination(benchmark, None))
    return entries


def merged_contamination(
    labels: Sequence[str], by_folder: Sequence[Sequence[BenchmarkContamination]], benchmarks: Sequence[str]
) -> list[BenchmarkContamination]:
    """The overlaps of several folders: one of each benchmark where all folders agree, else one for each folder.

    Args:
        labels: names of the folders.
        benchmarks: those to keep.
    """
    merged = []
    for benchmark in benchmarks:
        entries = [entry for folder in by_folder for entry in folder if entry.benchmark == benchmark]
        if all(entry == entries[0] for entry in entries):
            merged.append(entries[0])
            continue
        for label, entry in zip(labels, entries, strict=True):
            merged.append(BenchmarkContamination(benchmark, entry.report, entry.by_design, label))
    return merged


def contamination_notes(entries: Sequence[BenchmarkContamination]) -> list[str]:
    """One footnote for each benchmark that was counted, and one for those that were not, by reason."""
    notes = []
    for entry in entries:
        if entry.report is not None:
            prefix = f"{entry.experiment}: " if entry.experiment else ""
            notes.append(prefix + contamination_note(entry.report))
    by_design = [entry.name for entry in entries if entry.by_design]
    if by_design:
        notes.append(
            f"{', '.join(by_design)}: overlap with the training pairs is not counted, because one generator makes both "
            "and repeats its phrases."
        )
    missing = [entry.name for entry in entries if entry.report is None and not entry.by_design]
    if missing:
        notes.append(
            f"{', '.join(missing)}: overlap with the training pairs was not counted, so contamination is not ruled out."
        )
    return notes


def contamination_csv(entries: Sequence[BenchmarkContamination]) -> str:
    """One line for each benchmark that was counted, with an empty subset, and one for each of its subsets."""
    records = []
    for entry in entries:
        if entry.report is None:
            continue
        counts = cast(dict[str, int], entry.report["counts"])
        whole = {"items": entry.report["items"], **counts}
        for subset, sizes in {"": whole, **entry.report["subsets"]}.items():
            record: dict[str, object] = {"experiment": entry.experiment, "benchmark": entry.benchmark, "subset": subset}
            record |= {"training_pairs": entry.report["training_pairs"], **sizes}
            record |= {f"{count}_share": sizes[count] / max(sizes["items"], 1) for count in COUNTS}
            records.append(record)
    return csv_text(records, CSV_FIELDS)
