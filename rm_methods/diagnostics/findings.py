"""From the diagnostics of all runs to findings: one number with its interval each, over all pairs of a benchmark and by subset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
# (at the same lengths, without the first token and the template's)
VERSIONS = {"raw": (False, False), "length": (True, False), "text": (False, True), "controlled": (True, True)}


@dataclass(frozen=True)
class Place:
    """What a finding is about.

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
        place: what it is about.
        quantity: "pairs", "late_gap", "stage_mass", "cumulative_mass", "dropped_mass", "accuracy" or "tie_rate"
            (docs/diagnostics.md).
        measure: "reward_row" or "received" for attention; "sequence" or "response" for masking.
        version: "raw", "length", "text" or "controlled", for attention.
        group: "correct", "misclassified" or "undecided", where the number is of one group.
        position: stage (1 to 10) or percent hidden (0 to 90).
        value, low, high: fractions with 95% limits; NaN where not defined.
    """

    place: Place
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

    def places(self, benchmark: str | None = None) -> list[Place]:
        """Pooled places, in order."""
        found = dict.fromkeys(f.place for f in self.entries if f.place.seed is None)
        return [place for place in found if benchmark in (None, place.benchmark)]

    def find(self, place: Place, quantity: str, measure: str, version: str = "", group: str = "") -> list[Finding]:
        """Findings of one kind, by position."""
        return self._by_kind.get((place, quantity, measure, version, group), [])

    @cached_property
    def _by_kind(self) -> dict[tuple, list[Finding]]:
        by_kind: dict[tuple, list[Finding]] = {}
        for f in self.entries:
            by_kind.setdefault((f.place, f.quantity, f.measure, f.version, f.group), []).append(f)
        return by_kind


def read_findings(config: Mapping[str, Any], folder: Path) -> Findings:
    """Read the diagnostics of every run below `folder`/diagnostics and compute the findings.

    Raises:
        UserError: no benchmark is named, or no run of the configuration can be diagnosed.
        DataError: a file is missing or unreadable, or runs looked at different pairs.
    """
    runs = diagnosed_runs(config)
    if not config["diagnostics"]["benchmarks"]:
        raise UserError("diagnostics.benchmarks is empty: nothing was measured. Name at least one of the benchmarks.")
    if not runs:
        raise UserError(
            "No method of this experiment is a trained reward model with a scalar reward; there is nothing to diagnose."
        )
    seeds: dict[str, list[int]] = {}
    for variant, seed in runs:
        seeds.setdefault(variant, []).append(seed)
    folders = {variant: [Layout(folder).diagnosed_run(variant, seed) for seed in own] for variant, own in seeds.items()}
    attention = {v: _read(folders[v], seeds[v], DIAGNOSED_RUN_FILES[0], ATTENTION_COLUMNS) for v in seeds}
    masking = {v: _read(folders[v], seeds[v], DIAGNOSED_RUN_FILES[1], MASKING_COLUMNS) for v in seeds}
    _check_same_pairs(attention)
    entries: list[Finding] = []
    for benchmark, subset in _scopes(config["diagnostics"]["benchmarks"], attention[runs[0][0]]):
        for variant, own_seeds in seeds.items():
            parts = [_of(frames[variant], benchmark, subset) for frames in (attention, masking)]
            for seed in (None, *own_seeds):
                rows = parts if seed is None else [part[part["seed"] == seed] for part in parts]
                place = Place(benchmark, subset, variant, seed)
                entries += [*attention_findings(place, rows[0]), *masking_findings(place, rows[1])]
    reports = {
        variant: read_record(own[0] / DIAGNOSED_RUN_FILES[2], "a report of diagnostics", "diagnose")
        for variant, own in folders.items()
    }
    return Findings(tuple(entries), reports, {variant: tuple(own) for variant, own in seeds.items()})


def _read(folders: Sequence[Path], seeds: Sequence[int], name: str, columns: Mapping[str, str]) -> pandas.DataFrame:
    import pandas

    return pandas.concat(
        [read_diagnostics(f / name, columns).assign(seed=s) for f, s in zip(folders, seeds, strict=True)],
        ignore_index=True,
    )


def _of(frame: pandas.DataFrame, benchmark: str, subset: str = ALL) -> pandas.DataFrame:
    inside = frame["benchmark"] == benchmark
    return frame[inside if subset == ALL else inside & (frame["subset"] == subset)]


def _scopes(benchmarks: Sequence[str], frame: pandas.DataFrame) -> Iterator[tuple[str, str]]:
    """(benchmark, subset), "all" first, then the subsets in the order of the card, if there are several."""
    for benchmark in benchmarks:
        present = set(_of(frame, benchmark)["subset"])
        if not present:
            raise DataError(f"The runs were not diagnosed on '{benchmark}'. Run the diagnose stage again.")
        yield benchmark, ALL
        if len(present) > 1:
            yield from ((benchmark, subset) for subset in load_benchmark_card(benchmark).subsets if subset in present)


def _check_same_pairs(attention: Mapping[str, pandas.DataFrame]) -> None:
    first = None
    for variant, frame in attention.items():
        for seed, own in frame.groupby("seed"):
            pairs = set(zip(own["benchmark"], own["item_id"], strict=True))
            if first is not None and pairs != first:
                raise DataError(
                    f"{variant} seed {seed} was diagnosed on other pairs than the runs before it ({len(pairs)} against {len(first)}, "
                    f"{len(pairs & first)} in common). Run the diagnose stage again for all runs."
                )
            first = pairs


def attention_findings(place: Place, frame: pandas.DataFrame) -> Iterator[Finding]:
    """Findings of rows of attention.parquet; by stage only for pooled seeds.

    Sequences count as correct or misclassified with their pair; pairs that are tied or could not be scored are counted
    apart.
    """
    outcome = frame["correct"].map({True: GROUPS[0], False: GROUPS[1]}).fillna(UNDECIDED)
    for name in (*GROUPS, UNDECIDED):
        yield Finding(place, "pairs", "", "", name, None, float((outcome[frame["chosen"]] == name).sum()))
    if place.seed is None:
        dropped, low, high = pooled_means(frame, [f"{measure}_dropped" for measure in MEASURES])
        for k, measure in enumerate(MEASURES):
            yield Finding(place, "dropped_mass", measure, "", "", None, dropped[k], low[k], high[k])
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
            yield _finding(place, "late_gap", measure, version, "", None, late[:, 1] - late[:, 0], enough.all())
            if place.seed is None:
                yield from _by_stage(place, measure, version, mass, enough)


def _strata(decided: pandas.DataFrame) -> dict[bool, np.ndarray]:
    """Strata without and with lengths.  Seeds always are strata: a seed that errs more often and also attends elsewhere
    would else make a
    difference between correct and misclassified sequences that no seed has.
    """
    seed = np.unique(decided["seed"], return_inverse=True)[1]
    length = length_bins(decided["n_tokens"].to_numpy())
    return {False: seed, True: seed * (length.max() + 1) + length}


def _by_stage(place: Place, measure: str, version: str, mass: np.ndarray, enough: np.ndarray) -> Iterator[Finding]:
    """Mass per stage and up to its end, from replicates [B, 2, stages]."""
    for quantity, replicates in (("stage_mass", mass), ("cumulative_mass", mass.cumsum(axis=2))):
        for g, group in enumerate(GROUPS):
            for stage in range(STAGES):
                yield _finding(place, quantity, measure, version, group, stage + 1, replicates[:, g, stage], enough[g])


def _finding(
    place, quantity, measure, version, group, position, replicates: np.ndarray, with_interval: bool
) -> Finding:
    low, high = interval(replicates) if with_interval else (math.nan, math.nan)
    return Finding(place, quantity, measure, version, group, position, float(replicates[0]), float(low), float(high))


def pooled_means(frame: pandas.DataFrame, columns: list[str]) -> tuple[list[float], list[float], list[float]]:
    """Means of columns over all rows, with limits; NaN limits where there are too few items."""
    cluster = np.unique(frame["group"], return_inverse=True)[1]
    replicates = means(frame[columns].to_numpy(np.float64), cluster, resampled_counts(cluster.max() + 1))
    nothing = np.full(len(columns), np.nan)
    low, high = interval(replicates) if cluster.max() + 1 >= MIN_CLUSTERS else (nothing, nothing)
    return replicates[0].tolist(), low.tolist(), high.tolist()


def masking_findings(place: Place, frame: pandas.DataFrame) -> Iterator[Finding]:
    """Findings of rows of masking.parquet: accuracy (a tie earns 0.5) and tie rate for every part of the text that is hidden."""
    credits = frame.pivot(index=["seed", "item_id", "group"], columns=["mode", "percent"], values="credit")
    credits = credits.sort_index(axis=1)
    keys = list(credits.columns)
    wide = credits.set_axis(range(len(keys)), axis=1).reset_index()
    value, low, high = pooled_means(wide, list(range(len(keys))))
    ties = (credits == 0.5).to_numpy().mean(axis=0)
    for mode in MODES:
        for k in (k for k, key in enumerate(keys) if key[0] == mode):
            yield Finding(place, "accuracy", mode, "", "", int(keys[k][1]), value[k], low[k], high[k])
            if place.seed is None:
                yield Finding(place, "tie_rate", mode, "", "", int(keys[k][1]), float(ties[k]))
