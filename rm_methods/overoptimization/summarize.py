"""The `overoptimization` stage: tables, figures and pages of all Best-of-N and PPO runs (docs/overoptimization.md)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.members import Members
from rm_methods.experiment.layout import Layout, run_metrics
from rm_methods.files import write_json
from rm_methods.methods.members import members_of
from rm_methods.overoptimization.ppo_evaluations import read_ppo_run
from rm_methods.overoptimization.summary import PoolRun, PpoRun, summarize_best_of_n, summarize_ppo
from rm_methods.statistics.column import role_of
from rm_methods.stored import read_summary

_RUN_METRICS = ("gold_start", "gold_end", "gold_peak", "n_peak", "gap")


def summarize(config: Mapping[str, Any], folder: Path, out: Path, *, check: bool = True) -> str:
    """Write everything below `out`, from the runs below the experiment's folder.

    Args:
        check: refuse results that the configuration and the present code do not ask for.

    Returns:
        The tables as text.

    Raises:
        UserError, DataError: a run, pool, score table or PPO run is missing or damaged, or differs from the one that
            the configuration asks for.
    """
    from rm_methods.config.resolve import reference_variant
    from rm_methods.experiment.experiment import Experiment

    experiment = Experiment(config)
    if check:
        experiment.check_optimized(folder)
    reference = reference_variant(config)
    texts = []
    ppo = _ppo_runs(experiment, folder)
    for ppo_run in ppo:
        read_ppo_run(ppo_run.folder)  # refuses a damaged run before the first table is written
    if experiment.pools():
        runs = _pool_runs(experiment, folder)
        variants = {run.variant for run in runs}
        texts.append(summarize_best_of_n(runs, reference if reference in variants else None, out).text)
        _write_run_metrics(out)
    if ppo:
        variants = {run.variant for run in ppo}
        texts.append(summarize_ppo(ppo, reference if reference in variants else None, out).text)
    return "\n".join(texts)


def _pool_runs(experiment, folder: Path) -> list[PoolRun]:
    from rm_methods.methods.registry import load_method_card

    layout = Layout(folder)
    runs = []
    for variant, seed in experiment.optimized_runs():
        method = experiment.config["methods"][variant]["method"]
        card = load_method_card(method)
        for pool in experiment.pools():
            run = PoolRun(
                variant=variant,
                method=method,
                seed=seed,
                pool=pool,
                items=layout.items(pool),
                scores=layout.scores(variant, seed, pool),
                seed_free=card.without_seed,
                members=_members(experiment, layout, variant, seed, pool),
                role=role_of(card.kind),
                title=card.title,
            )
            runs.append(run)
    return runs


def _members(experiment, layout: Layout, variant: str, seed: int, pool: str) -> Members | None:
    """The members of a combined run with their score tables of a pool; None for other runs."""
    members = experiment.member_runs(variant)
    if not members:
        return None
    tables = [layout.scores(member, member_seed, pool) for member, member_seed in members]
    return members_of(read_summary(layout.summary(variant, seed)), {pool: tables})


def _ppo_runs(experiment, folder: Path) -> list[PpoRun]:
    from rm_methods.methods.registry import load_method_card

    runs = []
    for variant, seed in experiment.ppo_runs():
        method = experiment.config["methods"][variant]["method"]
        card = load_method_card(method)
        ppo_folder = Layout(folder).ppo_run(variant, seed)
        runs.append(PpoRun(variant, method, seed, ppo_folder, role=role_of(card.kind), title=card.title))
    return runs


def _write_run_metrics(out: Path) -> None:
    """The results of single runs, one file each, for the tracking store."""
    metrics_of_file: dict[str, dict[str, float]] = {}
    with (out / "best_of_n_runs.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            metrics = metrics_of_file.setdefault(run_metrics(row["variant"], int(row["seed"])), {})
            for name in _RUN_METRICS:
                metrics[f"best_of_n/{row['pool']}/{name}"] = float(row[name])
    for name, metrics in metrics_of_file.items():
        write_json(out / name, {"metrics": metrics})
