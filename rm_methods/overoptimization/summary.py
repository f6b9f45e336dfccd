"""The over-optimization summary: from pools, score tables and PPO runs to curves, tables, figures and a page of
samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.members import Members
from rm_methods.errors import UserError, nearest
from rm_methods.experiment.layout import pool_stem
from rm_methods.files import write_text
from rm_methods.overoptimization.best_of_n import PoolCurves, left_out_gold, pool_curves, read_pool_scores
from rm_methods.overoptimization.curve_fits import CurveFit, fit_curve
from rm_methods.overoptimization.figures import write_best_of_n_figure, write_ppo_figure
from rm_methods.overoptimization.numbers import number_text
from rm_methods.overoptimization.ppo_evaluations import PpoEvaluation, alarms, ppo_curves, read_ppo_run
from rm_methods.overoptimization.samples_page import samples_page
from rm_methods.overoptimization.summary_tables import (
    best_of_n_section,
    early_end_notes,
    fit_record,
    fit_section,
    footnotes,
    ppo_sections,
    table_records,
    write_tables,
)
from rm_methods.overoptimization.variant_curves import (
    PeakSummary,
    VariantCurves,
    combine_seeds,
    highest,
    summarize_peaks,
)
from rm_methods.overoptimization.verdict import verdict
from rm_methods.reporting.tables import Section, csv_text
from rm_methods.statistics.column import Role


@dataclass(frozen=True)
class PoolRun:
    """One reward model on one pool: `items` is the pool, `scores` its score table by this run.  `seed_free`: any seed
    scores the same.  `members`: of a combined run, with their score tables of the pool.  `role`: see
    `rm_methods.statistics.column`.  `title`: of the method, for readers."""

    variant: str
    method: str
    seed: int
    pool: str
    items: Path
    scores: Path
    seed_free: bool = False
    members: Members | None = field(default=None, compare=False)
    role: Role = "trained"
    title: str = ""


@dataclass(frozen=True)
class PpoRun:
    """One PPO run along the reward model of this variant and seed: a folder with evaluation.parquet and
    summary.json."""

    variant: str
    method: str
    seed: int
    folder: Path
    role: Role = "trained"
    title: str = ""


@dataclass(frozen=True)
class OveroptimizationSummary:
    """Files written, by name, and the text of the terminal table."""

    files: dict[str, Path]
    text: str


def summarize_best_of_n(runs: Sequence[PoolRun], reference: str | None, out_folder: Path) -> OveroptimizationSummary:
    """Best-of-N of every run: curves, table, figures, samples (names: `best_of_n_files`).

    Args:
        runs: variants appear in the order of their first run.
        reference: variant that the others are tested against, on every pool that it has; None for no tests.
        out_folder: made if missing.

    Raises:
        UserError: no runs, a run given twice, an unknown reference.
        DataError: a pool or score table is wrong or does not fit.
    """
    out_folder = Path(out_folder)
    _check_runs([(run.pool, run.variant, run.seed) for run in runs])
    _check_reference(reference, [run.variant for run in runs])
    curve_records: list[dict[str, Any]] = []
    run_records: list[dict[str, Any]] = []
    sections: list[Section] = []
    tables: list[list[PeakSummary]] = []
    sentences: list[str] = []
    notes: list[str] = []
    fits: dict[tuple[str, str], CurveFit] = {}
    files: dict[str, Path] = {}
    pools = list(dict.fromkeys(run.pool for run in runs))
    for pool in pools:
        pool_runs = [run for run in runs if run.pool == pool]
        # A pool can have millions of responses: it is read once, and only scores for the page of samples are kept.
        items_of = {path: read_items(path) for path in dict.fromkeys(run.items for run in pool_runs)}
        first_seeds = _first_seeds(pool_runs)
        scores_of: dict[str, list[np.ndarray]] = {}
        curves_of_run: dict[tuple[str, int], PoolCurves] = {}
        for run in pool_runs:
            scores = read_pool_scores(items_of[run.items], run.scores)
            curves_of_run[run.variant, run.seed] = pool_curves(items_of[run.items], scores)
            if first_seeds[run.variant] is run:
                scores_of[run.variant] = scores
        for run in pool_runs:
            curve_records += _curve_records(run, curves_of_run[run.variant, run.seed])
            run_records.append(_run_record(run, curves_of_run[run.variant, run.seed]))
        names = dict.fromkeys(run.variant for run in pool_runs)
        variants = [_variant_curves(name, pool_runs, curves_of_run, items_of) for name in names]
        fits |= {(pool, curves.variant): _fit(curves, "best_of_n") for curves in variants}
        pool_reference = reference if reference in names else None
        pool_summaries = summarize_peaks(variants, pool_reference)
        first = next(iter(curves_of_run.values()))
        sections.append(best_of_n_section(_title(pool, first), pool_summaries, pool_reference))
        sections.append(fit_section(f"Fitted curves on {pool}", pool_summaries, fits))
        tables.append(pool_summaries)
        before = f"{pool}: " if len(pools) > 1 else ""
        sentences += [before + sentence for sentence in verdict(pool_summaries, pool_reference, "n")]
        notes += _pool_notes(pool, first)
        targets = [out_folder / f"{pool_stem(pool)}.{suffix}" for suffix in ("png", "svg")]
        write_best_of_n_figure(variants, pool_reference, targets)
        page = out_folder / f"{pool_stem(pool)}_samples.md"
        labels = {curves.variant: curves.label for curves in variants}
        picks = [
            (labels[variant], run.seed, items_of[run.items], scores_of[variant]) for variant, run in first_seeds.items()
        ]
        write_text(page, samples_page(pool, picks))
        files |= {target.name: target for target in [*targets, page]}
    notes = [*footnotes(tables, reference, "n"), *_fit_notes(fits), *notes]
    records = [record for summaries in tables for record in table_records(summaries, reference, fits)]
    files |= write_tables("best_of_n_table", sections, notes, records, out_folder, sentences)
    for name, records in (("best_of_n.csv", curve_records), ("best_of_n_runs.csv", run_records)):
        write_text(out_folder / name, csv_text(records))
        files[name] = out_folder / name
    return OveroptimizationSummary(files, files["best_of_n_table.txt"].read_text(encoding="utf-8"))


def summarize_ppo(runs: Sequence[PpoRun], reference: str | None, out_folder: Path) -> OveroptimizationSummary:
    """PPO runs of every variant: curves over steps, table, figure (names: `ppo_files`).

    Args, Raises: as `summarize_best_of_n`.
    """
    out_folder = Path(out_folder)
    _check_runs([("ppo", run.variant, run.seed) for run in runs])
    _check_reference(reference, [run.variant for run in runs])
    by_variant: dict[str, dict[int, PpoEvaluation]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, {})[run.seed] = read_ppo_run(run.folder)
    first = {run.variant: run for run in reversed(runs)}
    variants = [
        ppo_curves(variant, first[variant].method, by_seed, role=first[variant].role, title=first[variant].title)
        for variant, by_seed in by_variant.items()
    ]
    summaries = summarize_peaks(variants, reference)
    fits = {("ppo", curves.variant): _fit(curves, "reinforcement_learning") for curves in variants}
    extras = {curves.variant: _ppo_extras(by_variant[curves.variant], int(curves.axis[-1])) for curves in variants}
    sections = ppo_sections(f"PPO, {len(variants[0].groups)} evaluation prompts", summaries, extras, reference)
    sections.append(fit_section("Fitted curves of PPO", summaries, fits))
    labels = {curves.variant: curves.label for curves in variants}
    alarm_texts = [f"{labels[variant]}, {text}" for variant, by_seed in by_variant.items() for text in alarms(by_seed)]
    notes = footnotes([summaries], reference, "step")
    notes.append(
        "Tokens: mean length of a response at the end. Finished: share of responses with an end token. KL: estimated, "
        "nats."
    )
    notes += early_end_notes(summaries)
    notes += [f"Alarm: {text}." for text in alarm_texts] + _fit_notes(fits)
    records = [
        record | extras[summary.curves.variant]
        for summary, record in zip(summaries, table_records(summaries, reference, fits), strict=True)
    ]
    sentences = verdict(summaries, reference, "step")
    files = write_tables("ppo_table", sections, notes, records, out_folder, sentences)
    write_text(
        out_folder / "ppo.csv", csv_text([r for v, by_seed in by_variant.items() for r in _ppo_records(v, by_seed)])
    )
    targets = [out_folder / f"ppo.{suffix}" for suffix in ("png", "svg")]
    write_ppo_figure(variants, reference, targets)
    files |= {target.name: target for target in [out_folder / "ppo.csv", *targets]}
    return OveroptimizationSummary(files, files["ppo_table.txt"].read_text(encoding="utf-8"))


def _check_runs(keys: Sequence[tuple[str, str, int]]) -> None:
    if not keys:
        raise UserError("The over-optimization summary needs at least one run.")
    doubles = sorted({key for key in keys if keys.count(key) > 1})
    if doubles:
        pool, variant, seed = doubles[0]
        raise UserError(f"Variant '{variant}', seed {seed}, is given twice for '{pool}'. Give every run once.")


def _check_reference(reference: str | None, names: Sequence[str]) -> None:
    if reference is not None and reference not in names:
        names = list(dict.fromkeys(names))
        raise UserError(f"The reference '{reference}' is not among the variants compared. {nearest(reference, names)}")


def _variant_curves(
    variant: str,
    runs: Sequence[PoolRun],
    curves_of_run: Mapping[tuple[str, int], PoolCurves],
    items_of: Mapping[Path, list[BenchmarkItem]],
) -> VariantCurves:
    variant_runs = [run for run in runs if run.variant == variant]
    first = variant_runs[0]
    by_seed = {run.seed: curves_of_run[variant, run.seed] for run in variant_runs}
    seed_free = all(run.seed_free for run in variant_runs)
    curves = combine_seeds(
        variant, first.method, first.pool, by_seed, seed_free=seed_free, role=first.role, title=first.title
    )
    if first.members is None:
        return curves
    left_out = left_out_gold(items_of[first.items], first.scores, first.members, first.pool)
    return replace(curves, left_out=left_out, left_out_seeds=first.members.seeds)


def _fit(curves: VariantCurves, form: str) -> CurveFit:
    """The curve through the variant's mean gold less its value at the start."""
    gold = curves.mean_gold
    return fit_curve(np.maximum(curves.kl, 0.0), gold - gold[0], form)


def _curve_records(run: PoolRun, curves: PoolCurves) -> list[dict[str, Any]]:
    return [
        {
            "variant": run.variant,
            "method": run.method,
            "seed": run.seed,
            "pool": run.pool,
            "n": int(n),
            "kl_bound": float(curves.kl_bound[k]),
            "kl_estimate": float(curves.kl_estimate[:, k].mean()),
            "proxy": float(curves.proxy[:, k].mean()),
            "proxy_standardized": float(curves.proxy_standardized[:, k].mean()),
            "gold": float(curves.gold[:, k].mean()),
            "gold_oracle": float(curves.oracle[:, k].mean()),
        }
        for k, n in enumerate(curves.n)
    ]


def _run_record(run: PoolRun, curves: PoolCurves) -> dict[str, Any]:
    gold = curves.gold.mean(axis=0)
    peak = highest(gold)
    fit = fit_curve(curves.kl_estimate.mean(axis=0), gold - gold[0], "best_of_n")
    return {
        "variant": run.variant,
        "method": run.method,
        "seed": run.seed,
        "pool": run.pool,
        "n_end": int(curves.n[-1]),
        "gold_start": float(gold[0]),
        "gold_end": float(gold[-1]),
        "gold_peak": float(gold[peak]),
        "n_peak": int(curves.n[peak]),
        "gap": float(gold[peak] - gold[-1]),
        **fit_record(fit),
        **curves.counts,
    }


def _title(pool: str, curves: PoolCurves) -> str:
    gold, oracle = curves.gold.mean(axis=0), curves.oracle.mean(axis=0)
    return (
        f"Best-of-N on {pool}: {len(curves.item_ids)} prompts, n up to {curves.n[-1]}; gold at n = 1 is "
        f"{number_text(float(gold[0]))}, at n = {curves.n[-1]} at most {number_text(float(oracle[-1]))}"
    )


def _pool_notes(pool: str, curves: PoolCurves) -> list[str]:
    counts = curves.counts
    repeated = f"{counts['duplicates']} repeat another of their prompt and {counts['empty']} are empty; all are kept"
    return [f"{pool}: {counts['responses']} responses, of which {repeated}."]


def _fit_notes(fits: Mapping[tuple[str, str], CurveFit]) -> list[str]:
    form = next(iter(fits.values())).form
    curve = "d (a - b d)" if form == "best_of_n" else "d (a - b log d)"
    notes = [
        f"a, b: least-squares fit of gold less its start = {curve}, d = sqrt(KL estimate), to the mean curve (Gao et "
        "al. 2023)."
    ]
    refused: dict[str, list[str]] = {}
    for (pool, variant), fit in fits.items():
        if fit.refused:
            refused.setdefault(fit.refused, []).append(f"{variant} on {pool}" if pool != "ppo" else variant)
    return notes + [f"No fitted optimum for {', '.join(names)}: {reason}." for reason, names in refused.items()]


def _first_seeds(runs: Sequence[PoolRun]) -> dict[str, PoolRun]:
    """The run with the lowest seed of each variant."""
    first: dict[str, PoolRun] = {}
    for run in runs:
        first[run.variant] = min(run, first.get(run.variant, run), key=attrgetter("seed"))
    return first


def _ppo_extras(by_seed: Mapping[int, PpoEvaluation], end: int) -> dict[str, float]:
    """Means over seeds at the step where the curves end, the last that all seeds have."""

    def at_end(name: str) -> float:
        return float(np.mean([run.values[name][run.steps == end].mean() for run in by_seed.values()]))

    return {
        "kl_end": at_end("kl"),
        "length_end": at_end("n_tokens"),
        "end_rate": at_end("finished"),
        "alarms": float(len(alarms(by_seed))),
    }


def _ppo_records(variant: str, by_seed: Mapping[int, PpoEvaluation]) -> list[dict[str, Any]]:
    return [
        {"variant": variant, "seed": seed, "step": int(step)}
        | {name: float(values[k].mean()) for name, values in run.values.items()}
        for seed, run in sorted(by_seed.items())
        for k, step in enumerate(run.steps)
    ]
