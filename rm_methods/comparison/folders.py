"""Results of several experiments in one table, if they were measured alike.

Refused: other items, other contents of items, other options of a benchmark, other rules for ties, other precision of
scoring, and other limits of length where a text was cut.  Other training data are a note, or refused on request.
Batches and layouts of scoring may differ: they change a score by rounding only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.comparison.compare import build_comparison, write_comparison
from rm_methods.comparison.contamination import contamination_of, merged_contamination
from rm_methods.comparison.result import Column, ComparisonResult
from rm_methods.comparison.runs import Run, read_runs, recorded_columns
from rm_methods.config.resolve import reference_variant
from rm_methods.errors import DataError, UserError, nearest
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import Layout
from rm_methods.experiment.stored_experiment import StoredExperiment, stored_experiment


def compare_folders(
    folders: Sequence[Path],
    out: Path | None = None,
    reference: str | None = None,
    *,
    benchmarks: Sequence[str] = (),
    same_data: bool = False,
) -> ComparisonResult:
    """Compare the runs of two or more folders of results and write the files of `compare`.

    Args:
        out: where the files go; None for a folder beside the first one, `comparison_<first>_<second>...`.
        reference: the variant that the others are compared with; None for that of the first experiment.
        benchmarks: columns of these benchmarks only; empty for all.
        same_data: refuse runs that were trained on different data.

    Raises:
        UserError, ConfigError, DataError: fewer than two folders, a folder without a finished experiment, or results
            that were not measured alike.
    """
    folders = [Path(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise UserError(f"Name two or more different folders, not {', '.join(map(str, folders))}.")
    stored = [stored_experiment(folder) for folder in folders]
    labels = _labels(stored)
    columns, left_out = _common_columns(stored, labels, benchmarks)
    _check_settings(stored, {column.benchmark for column in columns})
    by_folder = [read_runs(experiment.runs, columns) for experiment in stored]
    _check_evaluation(stored, by_folder)
    for name in dict.fromkeys(column.benchmark for column in columns):
        _check_items(stored, by_folder, name)
    if same_data:
        _check_training_data(stored, by_folder)
    names, notes = _names(labels, by_folder, columns)
    runs = _merged(names, by_folder)
    if reference is None:
        first_reference = reference_variant(stored[0].config)
        reference = names[0].get(first_reference, first_reference)
    correction = stored[0].config["comparison"]["correction"]
    contamination = merged_contamination(
        labels,
        [contamination_of(Experiment(experiment.config), experiment.folder) for experiment in stored],
        list(dict.fromkeys(column.benchmark for column in columns)),
    )
    comparison = build_comparison(runs, columns, reference, correction, contamination=contamination)
    if left_out:
        notes.append(f"Left out, because not every folder has them: {'; '.join(left_out)}.")
    notes += _code_notes(stored, labels)
    comparison = replace(comparison, notes=(*comparison.notes, *notes))
    if out is None:
        out = folders[0].resolve().parent / "_".join(["comparison", *(folder.resolve().name for folder in folders)])
    return write_comparison(comparison, runs, out)


def _labels(stored: Sequence[StoredExperiment]) -> list[str]:
    """A name for each folder: the experiment's, else the folder's, else its path."""
    choices: list[Callable[[StoredExperiment], str]] = [
        lambda experiment: experiment.name,
        lambda experiment: experiment.folder.resolve().name,
        lambda experiment: str(experiment.folder),
    ]
    for choice in choices:
        labels = [choice(experiment) for experiment in stored]
        if len(set(labels)) == len(labels):
            break
    return labels


def _common_columns(
    stored: Sequence[StoredExperiment], labels: Sequence[str], benchmarks: Sequence[str]
) -> tuple[list[Column], list[str]]:
    """The columns that all folders have, and the names of the others with the folders that have them."""
    by_folder = [recorded_columns(experiment.config, experiment.runs) for experiment in stored]
    names = {column.benchmark for columns in by_folder for column in columns}
    if unknown := [name for name in benchmarks if name not in names]:
        raise UserError(f"No folder has results on the benchmark '{unknown[0]}'. {nearest(unknown[0], names)}")
    every = dict.fromkeys(
        column for columns in by_folder for column in columns if not benchmarks or column.benchmark in benchmarks
    )
    common = [column for column in every if all(column in columns for columns in by_folder)]
    if not common:
        listed = "; ".join(
            f"{label}: {', '.join(experiment.config['benchmarks']) or 'none'}"
            for label, experiment in zip(labels, stored, strict=True)
        )
        raise UserError(f"The folders have no benchmark in common. Benchmarks: {listed}.")
    left_out = []
    for column in every:
        if column not in common:
            owners = [label for label, columns in zip(labels, by_folder, strict=True) if column in columns]
            left_out.append(f"{column.heading} ({', '.join(owners)})")
    return common, left_out


def _refuse_different(what: str, values: Mapping[Path, Any], advice: str) -> None:
    """Refuse folders with different values of one setting."""
    texts = {folder: json.dumps(value, ensure_ascii=False, sort_keys=True) for folder, value in values.items()}
    if len(set(texts.values())) > 1:
        listed = "".join(f"\n  - {folder}: {text:.200}" for folder, text in texts.items())
        raise DataError(f"Not measured alike: {what} differs:{listed}\n{advice}")


def _check_settings(stored: Sequence[StoredExperiment], benchmarks: set[str]) -> None:
    precisions = {experiment.folder: experiment.config["scoring"]["precision"] for experiment in stored}
    _refuse_different("scoring.precision", precisions, "Score all runs again with one precision.")
    for name in sorted(benchmarks):
        options = {experiment.folder: experiment.config["benchmarks"][name]["options"] for experiment in stored}
        advice = "Evaluate all runs with the same options, or leave the benchmark out: --benchmark names those to keep."
        _refuse_different(f"benchmarks.{name}.options", options, advice)


def _check_evaluation(stored: Sequence[StoredExperiment], by_folder: Sequence[Sequence[Run]]) -> None:
    """Refuse different rules for ties, and different limits of length where a text was cut."""
    names = dict.fromkeys(name for runs in by_folder for run in runs for name in run.benchmarks)
    for name in names:
        rules = {}
        for experiment, runs in zip(stored, by_folder, strict=True):
            of_folder = {run.benchmarks[name].get("tie_rule") for run in runs if name in run.benchmarks}
            if of_folder:
                rules[experiment.folder] = sorted(rule or "not recorded" for rule in of_folder)
        _refuse_different(f"the rule for ties of {name}", rules, "Run the evaluate stage again with one release.")
    cut = any(report.get("n_truncated") for runs in by_folder for run in runs for report in run.benchmarks.values())
    if cut:
        limits = {experiment.folder: experiment.config["backbone"]["max_length"] for experiment in stored}
        advice = "Texts were cut to this number of tokens, so the models did not read the same texts. Use one limit."
        _refuse_different("backbone.max_length", limits, advice)


def _check_items(stored: Sequence[StoredExperiment], by_folder: Sequence[Sequence[Run]], benchmark: str) -> None:
    """Refuse items of equal names and different contents."""
    hashes = {}
    for experiment, runs in zip(stored, by_folder, strict=True):
        reports = [run.benchmarks[benchmark] for run in runs if benchmark in run.benchmarks]
        hashes[experiment.folder] = sorted({report.get("made_from", {}).get("items", "") for report in reports})
    if len({tuple(values) for values in hashes.values()}) == 1:
        return
    files = [Layout(experiment.folder).items(benchmark) for experiment in stored]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        advice = f"The items cannot be compared, because {missing[0]} is missing. Copy it from where it was made."
        _refuse_different(f"the hash of the items of {benchmark}", hashes, advice)
    first = _contents(files[0])
    for path in files[1:]:
        other = _contents(path)
        differing = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if differing:
            name = differing[0]
            pair = (first.get(name), other.get(name))
            advice = f"{len(differing)} items of {benchmark} differ. Evaluate all runs on the same items."
            _refuse_different(
                f"item {name!r} of {benchmark}", dict(zip((files[0], path), _apart(*pair), strict=True)), advice
            )


def _apart(first: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """What differs in two versions of an item."""
    if first is None or other is None:
        return first or "no such item", other or "no such item"
    keys = [key for key in first if first[key] != other[key]]
    return {key: first[key] for key in keys}, {key: other[key] for key in keys}


def _contents(path: Path) -> dict[str, Any]:
    """What a model reads of each item, and its labels."""
    from dataclasses import asdict

    from rm_methods.benchmarks.item import read_items

    return {item.item_id: asdict(item) for item in read_items(path)}


def _check_training_data(stored: Sequence[StoredExperiment], by_folder: Sequence[Sequence[Run]]) -> None:
    hashes = {
        experiment.folder: sorted({run.data_hash or "" for run in runs if not run.is_line})
        for experiment, runs in zip(stored, by_folder, strict=True)
    }
    advice = "Leave --same-data out to compare them nevertheless; a note then says that the data differ."
    _refuse_different("the hash of the prepared training pairs", hashes, advice)


def _names(
    labels: Sequence[str], by_folder: Sequence[Sequence[Run]], columns: Sequence[Column]
) -> tuple[list[dict[str, str]], list[str]]:
    """For each folder, the name in the table of each variant; and notes.

    A variant of several folders keeps its name if its runs are the same ones, else the experiment's name precedes it.
    """
    names: list[dict[str, str]] = [{run.variant: run.variant for run in runs} for runs in by_folder]
    equal: dict[str, list[str]] = {}
    for variant in dict.fromkeys(run.variant for runs in by_folder for run in runs):
        owners = [k for k, mapping in enumerate(names) if variant in mapping]
        if len(owners) == 1:
            continue
        of_owners = [[run for run in by_folder[k] if run.variant == variant] for k in owners]
        if _same_variant(of_owners, columns):
            listed = ", ".join(labels[k] for k in owners)
            equal.setdefault(listed, []).append(variant + _evaluated_twice(of_owners, columns))
        else:
            for k in owners:
                names[k][variant] = f"{labels[k]}/{variant}"
    return names, [f"Equal runs of {listed} count once: {'; '.join(same)}." for listed, same in equal.items()]


def _same_variant(by_owner: Sequence[Sequence[Run]], columns: Sequence[Column]) -> bool:
    """Whether folders hold runs of one variant: equal run keys under the seeds they share (at least one).

    Content-blind scorers learn nothing, so equal metrics are enough.
    """
    seen: dict[int, Run] = {}
    for number, runs in enumerate(by_owner):
        shared = [run for run in runs if run.seed in seen]
        if number and not shared:
            return False
        for run in shared:
            other = seen[run.seed]
            blind = run.is_line and run.method == other.method
            equal_metrics = all(run.metric(column) == other.metric(column) for column in columns)
            if run.run_key != other.run_key and not (blind and equal_metrics):
                return False
        seen |= {run.seed: run for run in runs if run.seed not in seen}
    return True


def _evaluated_twice(by_owner: Sequence[Sequence[Run]], columns: Sequence[Column]) -> str:
    """A remark if two evaluations of one run differ."""
    first: dict[int, Run] = {}
    largest = 0.0
    for runs in by_owner:
        for run in runs:
            other = first.setdefault(run.seed, run)
            for column in columns:
                pair = (run.metric(column), other.metric(column))
                if pair[0] is not None and pair[1] is not None and pair[0] == pair[0] and pair[1] == pair[1]:
                    largest = max(largest, abs(pair[0] - pair[1]))
    if largest < 1e-9:
        return ""
    return f" (evaluations differ by up to {100 * largest:.2g} points, and that of the first folder counts)"


def _merged(names: Sequence[Mapping[str, str]], by_folder: Sequence[Sequence[Run]]) -> list[Run]:
    """All runs under their names in the table, each once."""
    merged: dict[tuple[str, int], Run] = {}
    for mapping, runs in zip(names, by_folder, strict=True):
        for run in runs:
            renamed = replace(
                run,
                variant=mapping[run.variant],
                made_of=tuple(mapping.get(name, name) for name in run.made_of),
                shared_with_all_seeds=tuple(mapping.get(name, name) for name in run.shared_with_all_seeds),
            )
            merged.setdefault((renamed.variant, renamed.seed), renamed)
    return list(merged.values())


def _code_notes(stored: Sequence[StoredExperiment], labels: Sequence[str]) -> list[str]:
    """Remarks where folders were scored or evaluated by different versions of the code."""
    stages = {"score": "Scored"}
    # The code of an evaluation is that of all its benchmarks, so only evaluations on the same ones can be compared.
    if len({tuple(sorted(experiment.config["benchmarks"])) for experiment in stored}) == 1:
        stages["evaluate"] = "Evaluated"
    notes = []
    for stage, done in stages.items():
        codes = {label: experiment.code(stage) for label, experiment in zip(labels, stored, strict=True)}
        recorded = {label: sorted(values) for label, values in codes.items() if values}
        if len({tuple(values) for values in recorded.values()}) > 1:
            listed = "; ".join(f"{label} {', '.join(values)}" for label, values in recorded.items())
            notes.append(f"{done} with different versions of the code: {listed}.")
    return notes
