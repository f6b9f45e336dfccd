"""Reads what evaluation left of each run and refuses runs that cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.credits import CREDIT_COLUMNS
from rm_methods.comparison.result import Column
from rm_methods.errors import DataError, UserError, nearest
from rm_methods.experiment.evaluated_runs import EvaluatedFiles
from rm_methods.parquet import read_parquet
from rm_methods.preferences.data_sources import data_sources, source_metric
from rm_methods.run_card import BenchmarkResult, RunCost, RunMetrics, RunSummary, StepsRecord
from rm_methods.statistics.column import LINES, Role, role_of
from rm_methods.statistics.designs import ItemDesign, item_coefficients, item_design
from rm_methods.stored import read_metrics, read_summary

if TYPE_CHECKING:
    import pandas

_ITEM_COLUMNS = ("group", "stratum", "weight")
_AGREE = 1e-6  # a metric and the weighted mean of its credits may differ by rounding only


@dataclass(frozen=True)
class Run:
    """One (variant, seed) as the comparison needs it.

    Attributes:
        title: of the method, for readers.
        role: see `rm_methods.statistics.column`.
        seed_free: any seed gives the same scores.  A combination of runs is not seed-free: other runs would change it.
        made_of: variants whose runs are needed first: teachers, members.
        benchmarks: the `benchmarks` of metrics.json.
        credits: (benchmark, metric) -> DataFrame with the columns item_id, group, stratum, weight, credit, sorted by
            item_id.
        weights_hash: equal for runs with equal weights; None without weights, and for results of older releases.
        run_key: equal for runs of equal settings, data, seed and code.
        left_out: of a combined run: (benchmark, metric) -> its value without the member of each seed, NaN where it is
            undefined.  Empty for other runs, and for metrics without such values.
        shared_with_all_seeds: variants of which every seed of this run's variant uses the same model or models (a
            teacher, cross-fitted judges).  Empty for a variant of one run.
        merged_seeds: seeds of the same variant whose weights are those of this run (`distinct_runs`).
        steps: the optimizer steps of its training; None without one, and for results of older releases.
    """

    files: EvaluatedFiles
    variant: str
    method: str
    seed: int
    seed_free: bool
    scalar_reward: bool
    title: str
    role: Role
    made_of: tuple[str, ...]
    data_hash: str | None
    cost: RunCost
    benchmarks: Mapping[str, BenchmarkResult]
    credits: dict[tuple[str, str], pandas.DataFrame]
    weights_hash: str | None = None
    run_key: str = ""
    left_out: Mapping[tuple[str, str], Mapping[int, float]] = field(default_factory=dict)
    shared_with_all_seeds: tuple[str, ...] = ()
    merged_seeds: tuple[int, ...] = ()
    steps: StepsRecord | None = None

    @property
    def is_line(self) -> bool:
        """Whether the scorer is not trained: a line to read against."""
        return self.role in LINES

    def metric(self, column: Column) -> float | None:
        """Value of the column's metric; NaN if it was undefined, None if the run does not have it."""
        result = self.benchmarks.get(column.benchmark)
        metrics = result.get("metrics", {}) if result else {}
        if column.metric not in metrics:
            return None
        value = metrics[column.metric]
        return math.nan if value is None else float(value)


def compared_columns(config: Mapping[str, Any], files: Sequence[EvaluatedFiles]) -> list[Column]:
    """The columns of the comparison table.

    For each benchmark of the configuration, those that its card names; on held-out pairs of a mixture also one for each
    source that a run has.
    """
    recorded = _recorded(files) if len(data_sources(config["data"])) > 1 else set()
    columns = []
    for name, entry in config["benchmarks"].items():
        card = load_benchmark_card(name)
        headings = card.columns_with(entry["options"])
        for metric, heading in headings.items():
            columns.append(Column(benchmark=name, metric=metric, heading=heading, chance=card.chance))
        if card.module != "prepared_splits":
            continue
        for source in data_sources(config["data"]):
            for split in entry["options"]["splits"]:
                metric = source_metric(split, source.name)
                if split in headings and (name, metric) in recorded:
                    columns.append(Column(name, metric, f"{headings[split]}, {source.name}", card.chance))
    return columns


def recorded_columns(config: Mapping[str, Any], files: Sequence[EvaluatedFiles]) -> list[Column]:
    """Those of `compared_columns` that a run has: results of another release may lack a column of today's cards."""
    recorded = _recorded(files)
    return [column for column in compared_columns(config, files) if (column.benchmark, column.metric) in recorded]


def _recorded(files: Sequence[EvaluatedFiles]) -> set[tuple[str, str]]:
    """(benchmark, metric) of every value that a run has."""
    recorded = set()
    for run in files:
        for benchmark, result in read_metrics(run.metrics)["benchmarks"].items():
            recorded |= {(benchmark, metric) for metric in result.get("metrics", {})}
    return recorded


def read_runs(files: Sequence[EvaluatedFiles], columns: Sequence[Column]) -> list[Run]:
    """Read runs and check that they belong together.

    Raises:
        UserError: no runs or columns, a (variant, seed) given twice, one variant with two methods, or a column that no
            run has.
        DataError: files of one run that do not belong together, or credits that do not add up to the metric.
    """
    if not files:
        raise UserError("Nothing to compare: no runs were given. Run the evaluate stage first.")
    if not columns:
        raise UserError("Nothing to compare: no columns were given. Name at least one benchmark in the configuration.")
    first_frames: dict[tuple[str, str], pandas.DataFrame] = {}
    runs = [_read_run(f, columns, first_frames) for f in files]
    seen: dict[tuple[str, int], Run] = {}
    methods: dict[str, Run] = {}
    for run in runs:
        if (other := seen.setdefault((run.variant, run.seed), run)) is not run:
            raise UserError(
                f"Variant {run.variant!r} seed {run.seed} was given twice: {other.files.summary} and "
                f"{run.files.summary}. Keep one of them."
            )
        if (other := methods.setdefault(run.variant, run)).method != run.method:
            raise UserError(
                f"Variant {run.variant!r} stands for two methods: {other.method!r} in {other.files.summary} and "
                f"{run.method!r} in {run.files.summary}. Runs of an older configuration are mixed in; give the "
                "variants different names."
            )
    for column in columns:
        _check_column(column, runs)
    return [_with_shared(run, runs) for run in runs]


def distinct_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs without those whose weights another run of their variant has: one model under several seeds is one run.

    Returns:
        Of runs with equal weights the one with the lowest seed, which names the others in `merged_seeds`; the order
        stays.  Runs without a hash of their weights are distinct.
    """
    seeds: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        if run.weights_hash is not None:
            seeds.setdefault((run.variant, run.weights_hash), []).append(run.seed)
    distinct = []
    for run in runs:
        first, *others = sorted(seeds.get((run.variant, run.weights_hash or ""), [run.seed]))
        if run.seed == first:
            distinct.append(replace(run, merged_seeds=tuple(others)))
    return distinct


def _read_run(
    files: EvaluatedFiles, columns: Sequence[Column], first_frames: dict[tuple[str, str], pandas.DataFrame]
) -> Run:
    """One run.

    Args:
        first_frames: credits of the runs read before, a frame for each metric; those of this run are added.
    """
    summary = read_summary(files.summary)
    metrics = read_metrics(files.metrics)
    for key in ("variant", "method", "seed", "run_key"):
        if summary[key] != metrics[key]:
            raise DataError(
                f"{files.metrics}: {key} is {metrics[key]!r}, but {files.summary} says {summary[key]!r}. "
                "The evaluation is of another run; run score and evaluate again."
            )
    required = _required(summary)
    run = Run(
        files=files,
        variant=summary["variant"],
        method=summary["method"],
        seed=int(summary["seed"]),
        seed_free=bool(summary.get("seed_free", False)) and _role(summary) in LINES,
        scalar_reward=bool(summary.get("scalar_reward", True)),
        title=_title(summary),
        role=_role(summary),
        made_of=tuple(required),
        data_hash=(summary.get("data") or {}).get("hash"),
        cost=summary.get("cost") or {},
        benchmarks=metrics.get("benchmarks", {}),
        credits=_read_credits(files.credits, columns, first_frames),
        weights_hash=summary.get("weights_hash"),
        run_key=summary["run_key"],
        left_out=_read_left_out(files.metrics, metrics),
        shared_with_all_seeds=tuple(variant for variant, seeds in required.items() if seeds != "same"),
        steps=summary.get("steps"),
    )
    for column in columns:
        _check_adds_up(run, column)
    return run


def _read_left_out(path: Path, metrics: RunMetrics) -> dict[tuple[str, str], dict[int, float]]:
    """The `left_out` metrics by the seed of the member left out."""
    left_out = {}
    for benchmark, result in metrics["benchmarks"].items():
        seeds = result.get("left_out_seeds", [])
        for metric, values in result.get("left_out", {}).items():
            if len(seeds) != len(values) or len(set(seeds)) != len(seeds):
                raise DataError(
                    f"{path}: {benchmark}/{metric} has {len(values)} values without a member, but 'left_out_seeds' is "
                    f"{seeds}; one different seed for each is needed. Run the evaluate stage again."
                )
            numbers = [math.nan if value is None else float(value) for value in values]
            left_out[benchmark, metric] = dict(zip(seeds, numbers, strict=True))
    return left_out


def _role(summary: RunSummary) -> Role:
    """The method's role in a table: by the summary, or else by the method's card."""
    from rm_methods.methods.registry import load_method_card, method_names

    kind = summary.get("kind")
    if kind is None and summary["method"] in method_names():
        kind = load_method_card(summary["method"]).kind
    return role_of(kind)


def _title(summary: RunSummary) -> str:
    from rm_methods.methods.registry import load_method_card, method_names

    method = summary["method"]
    return load_method_card(method).title if method in method_names() else method


def _required(summary: RunSummary) -> dict[str, str]:
    """The variants that a run requires, by name, with the seeds that it requires: "same", "first" or "all"."""
    from rm_methods.methods.registry import load_method_card, method_names

    if summary["method"] not in method_names():
        return {}
    card = load_method_card(summary["method"])
    required = card.required_variants(card.defaults() | (summary.get("settings") or {}))
    return {variant: card.requires[setting].get("seeds", "same") for setting, variant in required.items()}


def _with_shared(run: Run, runs: Sequence[Run]) -> Run:
    """The run with `shared_with_all_seeds`, which the runs of all variants decide: one teacher may have many seeds."""
    seeds = {other.seed for other in runs if other.variant == run.variant}
    if len(seeds) == 1:
        return replace(run, shared_with_all_seeds=())
    shared = []
    for variant in run.made_of:
        same_seeds = [other for other in runs if other.variant == variant and other.seed in seeds]
        hashes = {other.weights_hash for other in same_seeds}
        is_one_model = len(same_seeds) == len(seeds) and len(hashes) == 1 and None not in hashes
        if variant in run.shared_with_all_seeds or is_one_model:
            shared.append(variant)
    return replace(run, shared_with_all_seeds=tuple(shared))


def _read_credits(
    path: Path, columns: Sequence[Column], first_frames: dict[tuple[str, str], pandas.DataFrame]
) -> dict[tuple[str, str], pandas.DataFrame]:
    """Credits of each metric.  Items that are those of `first_frames` share their memory: they are most of a file."""
    table = read_parquet(path, CREDIT_COLUMNS, "a file of credits", "evaluate")
    wanted = {(c.benchmark, c.metric) for c in columns}
    credits = {}
    for key, frame in table.to_pandas().groupby(["benchmark", "metric"], sort=False):
        if key not in wanted:
            continue
        frame = frame[["item_id", *_ITEM_COLUMNS, "credit"]].sort_values("item_id", ignore_index=True)
        twice = frame["item_id"][frame["item_id"].duplicated()]
        if len(twice):
            raise DataError(
                f"{path}: item {twice.iloc[0]!r} occurs twice in {key[0]}/{key[1]}; an item has one credit for a "
                "metric."
            )
        first = first_frames.setdefault(key, frame)
        credits[key] = first.assign(credit=frame["credit"]) if _same_items(first, frame) else frame
    return credits


def _same_items(first: pandas.DataFrame, frame: pandas.DataFrame) -> bool:
    return all(first[name].equals(frame[name]) for name in ("item_id", *_ITEM_COLUMNS))


def _check_adds_up(run: Run, column: Column) -> None:
    """Refuse credits that do not give the metric: the interval would be of another quantity than the mean."""
    frame = run.credits.get((column.benchmark, column.metric))
    metric = run.metric(column)
    if frame is None:
        return
    name = f"{column.benchmark}/{column.metric}"
    if metric is None:
        raise DataError(
            f"{run.files.credits}: has credits for {name}, which {run.files.metrics} lacks. Run the evaluate stage "
            "again."
        )
    try:
        coefficient, _ = item_coefficients(frame["stratum"].to_numpy(), frame["weight"].to_numpy())
    except ValueError as error:
        raise DataError(f"{run.files.credits}: {name}: {error}.") from None
    total = float(coefficient @ frame["credit"].to_numpy(np.float64))
    both_undefined = math.isnan(total) and math.isnan(metric)
    if not both_undefined and not abs(total - metric) <= _AGREE:
        raise DataError(
            f"{run.files.credits}: the credits of {name} give {total:.6f}, but {run.files.metrics} says {metric:.6f}. "
            "The two files are of different evaluations; run the evaluate stage again."
        )


def _check_column(column: Column, runs: Sequence[Run]) -> None:
    benchmarks = {name for run in runs for name in run.benchmarks}
    if column.benchmark not in benchmarks:
        raise UserError(
            f"No run was evaluated on benchmark '{column.benchmark}'. {nearest(column.benchmark, benchmarks)}"
        )
    metrics = {name for run in runs for name in run.benchmarks.get(column.benchmark, {}).get("metrics", {})}
    if column.metric not in metrics:
        raise UserError(
            f"No run has the metric '{column.metric}' of {column.benchmark}. {nearest(column.metric, metrics)}"
        )


def common_design(runs: Sequence[Run], column: Column) -> ItemDesign | None:
    """The item design that all runs share on a column, None if the metric has no credits.

    Raises:
        DataError: if the runs have different items, groups, strata or weights, or only some of them have credits.
    """
    key = (column.benchmark, column.metric)
    measured = [run for run in runs if run.metric(column) is not None]
    with_credits = [run for run in measured if key in run.credits]
    if not with_credits:
        return None
    for run in measured:
        if key not in run.credits:
            raise DataError(
                f"{run.files.credits}: no credits for {key[0]}/{key[1]}, which other runs have. Run evaluate again."
            )
    for run in with_credits:
        _check_same_items(with_credits[0], run, column)
    first = with_credits[0].credits[key]
    return item_design(first["stratum"].to_numpy(), first["weight"].to_numpy(), first["group"].to_numpy())


def _check_same_items(first_run: Run, run: Run, column: Column) -> None:
    name = f"{column.benchmark}/{column.metric}"
    first = first_run.credits[column.benchmark, column.metric]
    frame = run.credits[column.benchmark, column.metric]
    if _same_items(first, frame):
        return
    if not np.array_equal(first["item_id"], frame["item_id"]):
        items = set(frame["item_id"])
        first_items = set(first["item_id"])
        example = min(items ^ first_items)
        raise DataError(
            f"{run.files.credits}: other items of {name} than in {first_run.files.credits}: {len(items)} against "
            f"{len(first_items)}, {len(items & first_items)} in common, first difference {example!r}. All runs must be "
            "evaluated on the same items; run score and evaluate again for the runs that are older."
        )
    for key in _ITEM_COLUMNS:
        differ = np.flatnonzero(first[key].to_numpy() != frame[key].to_numpy())
        if len(differ):
            row = differ[0]
            raise DataError(
                f"{run.files.credits}: {key} of item {frame['item_id'][row]!r} of {name} is {frame[key][row]!r}, "
                f"in {first_run.files.credits} it is {first[key][row]!r}. Run the evaluate stage again for all runs."
            )
