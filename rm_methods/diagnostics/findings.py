"""Findings from the diagnostics of all runs: numbers with intervals, over all pairs of a benchmark and by subset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.diagnostics.position_bins import LATE_STAGES, STAGES
from rm_methods.diagnostics.records import ATTENTION_COLUMNS, MASKING_COLUMNS, read_diagnostics
from rm_methods.errors import DataError, UserError
from rm_methods.experiment.diagnosed_runs import MEASURES, MODES, diagnosed_runs
from rm_methods.experiment.layout import DIAGNOSED_RUN_FILES, Layout
from rm_methods.statistics.bootstrap import (
    MIN_CLUSTERS,
    interval,
    length_bins,
    means,
    resampled_counts,
    standardized_means,
)
from rm_methods.stored import read_record

if TYPE_CHECKING:
    import pandas

ALL = "all"  # every subset of a benchmark
GROUPS = ("correct", "misclassified")
UNDECIDED = "undecided"  # pairs that are tied or could not be scored
# Version -> (compared at the same lengths, without the first token and the template's tokens)
VERSIONS = {"raw": (False, False), "length": (True, False), "text": (False, True), "controlled": (True, True)}


@dataclass(frozen=True)
class Scope:
    """The pairs and runs that a finding is about.

    Attributes:
        benchmark, variant: names.
        subset: of the benchmark, or "all".
        seed: of the run; None for all seeds pooled.
    """

    benchmark: str
    subset: str
    variant: str
    seed: int | None = None


@dataclass(frozen=True)
class Finding:
    """One number.

    Attributes:
        scope: the pairs and runs that it is about.
        quantity: "pairs", "late_gap", "stage_mass", "cumulative_mass", "dropped_mass", "accuracy" or "tie_rate"
            (docs/diagnostics.md).
        measure: "reward_row" or "received" for attention; "sequence" or "response" for masking.
        version: "raw", "length", "text" or "controlled", for attention.
        group: "correct", "misclassified" or "undecided", if the number is of one group.
        position: stage (1 to 10) or percent hidden (0 to 90).
        value, low, high: fractions with 95% limits; NaN where not defined.
    """

    scope: Scope
    quantity: str
    measure: str
    version: str
    group: str
    position: int | None
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Findings:
    """All findings of an experiment.

    Attributes:
        entries: in the order of benchmarks, subsets ("all" first) and variants.
        reports: variant to the report.json of its first run.
        seeds: variant to its seeds.
    """

    entries: tuple[Finding, ...]
    reports: dict[str, dict[str, Any]]
    seeds: dict[str, tuple[int, ...]]

    def scopes(self, benchmark: str | None = None) -> list[Scope]:
        """Scopes of all seeds pooled, in order."""
        pooled = dict.fromkeys(finding.scope for finding in self.entries if finding.scope.seed is None)
        return [scope for scope in pooled if benchmark in (None, scope.benchmark)]

    def find(self, scope: Scope, quantity: str, measure: str, version: str = "", group: str = "") -> list[Finding]:
        """Findings of one kind, by position."""
        return self._by_kind.get((scope, quantity, measure, version, group), [])

    @cached_property
    def _by_kind(self) -> dict[tuple, list[Finding]]:
        by_kind: dict[tuple, list[Finding]] = {}
        for finding in self.entries:
            kind = (finding.scope, finding.quantity, finding.measure, finding.version, finding.group)
            by_kind.setdefault(kind, []).append(finding)
        return by_kind


def read_findings(config: Mapping[str, Any], folder: Path) -> Findings:
    """Read the diagnostics of every run below `folder`/diagnostics and compute the findings.

    Raises:
        UserError: no benchmark is named, or no run of the configuration can be diagnosed.
        DataError: a file is missing or unreadable, or the runs were diagnosed on different pairs.
    """
    runs = diagnosed_runs(config)
    if not config["diagnostics"]["benchmarks"]:
        raise UserError("diagnostics.benchmarks is empty: nothing was measured. Name at least one of the benchmarks.")
    if not runs:
        raise UserError(
            "No method of this experiment is a trained reward model with a scalar reward, so none can be diagnosed."
        )
    seeds: dict[str, list[int]] = {}
    for variant, seed in runs:
        seeds.setdefault(variant, []).append(seed)
    attention_file, masking_file, report_file = DIAGNOSED_RUN_FILES
    attention: dict[str, pandas.DataFrame] = {}
    masking: dict[str, pandas.DataFrame] = {}
    reports: dict[str, dict[str, Any]] = {}
    for variant, seeds_of_variant in seeds.items():
        folders = {seed: Layout(folder).diagnosed_run(variant, seed) for seed in seeds_of_variant}
        attention[variant] = _read_runs(folders, attention_file, ATTENTION_COLUMNS)
        masking[variant] = _read_runs(folders, masking_file, MASKING_COLUMNS)
        first = folders[seeds_of_variant[0]]
        reports[variant] = read_record(first / report_file, "a report of diagnostics", "diagnose")
    _check_same_pairs(attention)
    entries: list[Finding] = []
    for benchmark, subset in _benchmarks_and_subsets(config["diagnostics"]["benchmarks"], attention[runs[0][0]]):
        for variant, seeds_of_variant in seeds.items():
            attention_rows = _rows_of(attention[variant], benchmark, subset)
            masking_rows = _rows_of(masking[variant], benchmark, subset)
            pooled = Scope(benchmark, subset, variant)
            entries += attention_findings(pooled, attention_rows)
            entries += masking_findings(pooled, masking_rows)
            for seed in seeds_of_variant:
                scope = replace(pooled, seed=seed)
                entries += attention_findings(scope, attention_rows[attention_rows["seed"] == seed])
                entries += masking_findings(scope, masking_rows[masking_rows["seed"] == seed])
    seed_tuples = {variant: tuple(seeds_of_variant) for variant, seeds_of_variant in seeds.items()}
    return Findings(tuple(entries), reports, seed_tuples)


def _read_runs(folders: Mapping[int, Path], name: str, columns: Mapping[str, str]) -> pandas.DataFrame:
    """One file of all runs of a variant, with their seeds.

    Args:
        folders: by seed.
    """
    import pandas

    frames = [read_diagnostics(folder / name, columns).assign(seed=seed) for seed, folder in folders.items()]
    return pandas.concat(frames, ignore_index=True)


def _rows_of(frame: pandas.DataFrame, benchmark: str, subset: str = ALL) -> pandas.DataFrame:
    inside = frame["benchmark"] == benchmark
    return frame[inside if subset == ALL else inside & (frame["subset"] == subset)]


def _benchmarks_and_subsets(benchmarks: Sequence[str], frame: pandas.DataFrame) -> Iterator[tuple[str, str]]:
    """(benchmark, subset), "all" first; then, if the benchmark has several, the subsets in the order of the card."""
    for benchmark in benchmarks:
        present = set(_rows_of(frame, benchmark)["subset"])
        if not present:
            raise DataError(f"The runs were not diagnosed on '{benchmark}'. Run the diagnose stage again.")
        yield benchmark, ALL
        if len(present) > 1:
            yield from ((benchmark, subset) for subset in load_benchmark_card(benchmark).subsets if subset in present)


def _check_same_pairs(attention: Mapping[str, pandas.DataFrame]) -> None:
    first = None
    for variant, frame in attention.items():
        for seed, rows in frame.groupby("seed"):
            pairs = set(zip(rows["benchmark"], rows["item_id"], strict=True))
            if first is not None and pairs != first:
                raise DataError(
                    f"{variant} seed {seed} was diagnosed on other pairs than the runs before it ({len(pairs)} against "
                    f"{len(first)}, {len(pairs & first)} in common). Run the diagnose stage again for all runs."
                )
            first = pairs


def attention_findings(scope: Scope, frame: pandas.DataFrame) -> Iterator[Finding]:
    """Findings of rows of attention.parquet; by stage only for pooled seeds.

    Both sequences of a pair count as correct or misclassified. Pairs that are tied or could not be scored are counted
    separately.
    """
    outcome = frame["correct"].map({True: GROUPS[0], False: GROUPS[1]}).fillna(UNDECIDED)
    for name in (*GROUPS, UNDECIDED):
        yield Finding(scope, "pairs", "", "", name, None, float((outcome[frame["chosen"]] == name).sum()))
    if scope.seed is None:
        dropped, low, high = pooled_means(frame, [f"{measure}_dropped" for measure in MEASURES])
        for k, measure in enumerate(MEASURES):
            yield Finding(scope, "dropped_mass", measure, "", "", None, dropped[k], low[k], high[k])
    usable = (outcome != UNDECIDED) & (frame["n_text_tokens"] > 0)
    decided = frame[usable]
    if decided.empty:
        return
    group = (outcome[usable] == GROUPS[1]).to_numpy(np.int64)
    cluster = np.unique(decided["group"], return_inverse=True)[1]
    enough = np.array([len(np.unique(cluster[group == g])) >= MIN_CLUSTERS for g in range(2)])
    kinds = [name + suffix for name in MEASURES for suffix in ("", "_text")]
    values = np.concatenate([np.stack(decided[kind].to_list()) for kind in kinds], axis=1)
    counts = resampled_counts(cluster.max() + 1)
    replicates = {}
    for same_lengths, stratum in _strata(decided).items():
        # [B, 2 groups, kinds, stages]
        replicates[same_lengths] = standardized_means(values, group, cluster, stratum, counts).reshape(
            len(counts), 2, len(kinds), STAGES
        )
    for measure in MEASURES:
        for version, (same_lengths, text_only) in VERSIONS.items():
            kind = kinds.index(measure + ("_text" if text_only else ""))
            mass = replicates[same_lengths][:, :, kind]
            late = mass[:, :, -LATE_STAGES:].sum(axis=2)
            gap = late[:, 1] - late[:, 0]
            finding = Finding(scope, "late_gap", measure, version, "", None, float(gap[0]))
            yield _with_interval(finding, gap) if enough.all() else finding
            if scope.seed is None:
                yield from _by_stage(scope, measure, version, mass, enough)


def _strata(decided: pandas.DataFrame) -> dict[bool, np.ndarray]:
    """Strata without and with lengths.

    Seeds are always strata. Otherwise a seed that errs more often and also attends elsewhere would make a difference
    between correct and misclassified sequences that no seed has.
    """
    seed = np.unique(decided["seed"], return_inverse=True)[1]
    length = length_bins(decided["n_tokens"].to_numpy())
    return {False: seed, True: seed * (length.max() + 1) + length}


def _by_stage(scope: Scope, measure: str, version: str, mass: np.ndarray, enough: np.ndarray) -> Iterator[Finding]:
    """Mass per stage and up to its end, from replicates [B, 2, stages]."""
    for quantity, replicates in (("stage_mass", mass), ("cumulative_mass", mass.cumsum(axis=2))):
        for g, group in enumerate(GROUPS):
            for stage in range(STAGES):
                values = replicates[:, g, stage]
                finding = Finding(scope, quantity, measure, version, group, stage + 1, float(values[0]))
                yield _with_interval(finding, values) if enough[g] else finding


def _with_interval(finding: Finding, replicates: np.ndarray) -> Finding:
    """A finding with the limits that its bootstrap replicates give."""
    low, high = interval(replicates)
    return replace(finding, low=float(low), high=float(high))


def pooled_means(frame: pandas.DataFrame, columns: Sequence[str]) -> tuple[list[float], list[float], list[float]]:
    """Means of columns over all rows, with limits; NaN limits for too few items."""
    return _clustered_means(frame[list(columns)].to_numpy(np.float64), frame["group"].to_numpy())


def _clustered_means(values: np.ndarray, groups: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """As `pooled_means`, of an array [rows, columns] with the group of every row."""
    cluster = np.unique(groups, return_inverse=True)[1]
    replicates = means(values, cluster, resampled_counts(cluster.max() + 1))
    if cluster.max() + 1 >= MIN_CLUSTERS:
        low, high = interval(replicates)
    else:
        low = np.full(values.shape[1], np.nan)
        high = low
    return replicates[0].tolist(), low.tolist(), high.tolist()


def masking_findings(scope: Scope, frame: pandas.DataFrame) -> Iterator[Finding]:
    """Findings of rows of masking.parquet: accuracy (a tie earns 0.5) and tie rate for each part of the text hidden."""
    credits = frame.pivot(index=["seed", "item_id", "group"], columns=["mode", "percent"], values="credit")
    credits = credits.sort_index(axis=1)
    modes = credits.columns.get_level_values("mode").to_list()
    percents = credits.columns.get_level_values("percent").to_list()
    values = credits.to_numpy(np.float64)
    accuracy, low, high = _clustered_means(values, credits.index.get_level_values("group").to_numpy())
    ties = (values == 0.5).mean(axis=0)
    for mode in MODES:
        for k, percent in enumerate(percents):
            if modes[k] != mode:
                continue
            yield Finding(scope, "accuracy", mode, "", "", int(percent), accuracy[k], low[k], high[k])
            if scope.seed is None:
                yield Finding(scope, "tie_rate", mode, "", "", int(percent), float(ties[k]))
