"""The evaluations of PPO runs as curves over their steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.errors import DataError
from rm_methods.overoptimization.ppo_columns import PPO_EVALUATION_COLUMNS
from rm_methods.overoptimization.variant_curves import VariantCurves
from rm_methods.parquet import read_parquet
from rm_methods.statistics.column import Role
from rm_methods.stored import read_record


@dataclass(frozen=True)
class PpoEvaluation:
    """The evaluations of one PPO run.  T steps, P prompts.

    Attributes:
        steps: int64 [T], rising, from the policy before training.
        prompt_ids: sorted, [P].
        values: float64 [T, P] for each of proxy, gold, kl, n_tokens, finished (a mean where a prompt has several
            responses).
        summary: content of summary.json.
        folder: of the run.
        broken_steps: evaluations left out because they hold values that are not finite: the policy had diverged.
    """

    steps: np.ndarray
    prompt_ids: tuple[str, ...]
    values: dict[str, np.ndarray]
    summary: dict[str, Any]
    folder: Path
    broken_steps: tuple[int, ...] = ()


def read_ppo_run(folder: str | Path) -> PpoEvaluation:
    """Read evaluation.parquet and summary.json of a PPO run.

    Raises:
        DataError: missing files or columns, no evaluations, a step that lacks prompts, or values that are not finite
            at every step.
    """
    folder = Path(folder)
    source = folder / "evaluation.parquet"
    frame = read_parquet(source, PPO_EVALUATION_COLUMNS, "the evaluations of a PPO run", "ppo").to_pandas()
    if frame.empty:
        raise DataError(f"{source}: has no evaluations.")
    names = ["proxy", "gold", "kl", "n_tokens", "finished"]
    frame[names] = frame[names].astype(np.float64)
    frame["prompt_id"] = frame["prompt_id"].astype(str)
    broken = sorted(frame.loc[~np.isfinite(frame[names]).all(axis=1), "step"].unique().tolist())
    if len(broken) == frame["step"].nunique():
        raise DataError(
            f"{source}: every evaluation holds values that are not finite; look at the run's metrics.jsonl."
        )
    frame = frame[~frame["step"].isin(broken)]
    table = frame.groupby(["step", "prompt_id"])[names].mean()
    steps = np.array(sorted(frame["step"].unique()))
    prompts = np.array(sorted(frame["prompt_id"].unique()))
    if len(table) != len(steps) * len(prompts):
        counts = frame.groupby("step")["prompt_id"].nunique()
        raise DataError(
            f"{source}: step {counts.idxmin()} has {counts.min()} prompts, others have {len(prompts)}. Run it again."
        )
    values = {name: table[name].to_numpy().reshape(len(steps), len(prompts)) for name in names}
    return PpoEvaluation(
        steps=steps.astype(np.int64),
        prompt_ids=tuple(prompts.tolist()),
        values=values,
        summary=read_record(folder / "summary.json", "a summary.json of a PPO run", "ppo"),
        folder=folder,
        broken_steps=tuple(broken),
    )


def ppo_curves(
    variant: str, method: str, by_seed: Mapping[int, PpoEvaluation], *, role: Role = "trained", title: str = ""
) -> VariantCurves:
    """The curves of one variant over the steps that all its seeds have; the proxy in standard deviations of the first
    step.

    A run that was stopped early has fewer steps; then the curves end with the shortest run, and a note says so.

    Raises:
        DataError: the seeds have other prompts, or no step in common.
    """
    seeds = tuple(sorted(by_seed))
    first = by_seed[seeds[0]]
    steps = first.steps
    for seed in seeds[1:]:
        if by_seed[seed].prompt_ids != first.prompt_ids:
            raise DataError(
                f"{by_seed[seed].folder}: other evaluation prompts than {first.folder}; evaluate all seeds on the same "
                "prompts."
            )
        steps = np.intersect1d(steps, by_seed[seed].steps)
    if len(steps) == 0:
        raise DataError(f"{variant}: its PPO runs (seeds {list(seeds)}) have no evaluation step in common.")
    last = {seed: int(by_seed[seed].steps[-1]) for seed in seeds}
    notes = []
    if len(set(last.values())) > 1:
        ends = ", ".join(f"seed {seed} at step {step}" for seed, step in last.items())
        notes.append(
            f"{variant}: runs ended at different steps ({ends}); the curves end at step {steps[-1]}, the last that all "
            "have."
        )

    notes += [
        f"{variant}, seed {seed}: values that are not finite at steps {list(run.broken_steps)}; left out."
        for seed, run in sorted(by_seed.items())
        if run.broken_steps
    ]

    def stacked(name: str) -> np.ndarray:  # [S, P, K]
        return np.stack([by_seed[seed].values[name][np.isin(by_seed[seed].steps, steps)].T for seed in seeds])

    return VariantCurves(
        variant=variant,
        method=method,
        pool="ppo",
        seeds=seeds,
        seed_free=False,
        axis=steps,
        kl=stacked("kl").mean(axis=(0, 1)),
        kl_bound=np.full(len(steps), np.nan),
        gold=stacked("gold"),
        proxy=_standardized(stacked("proxy")),
        groups=first.prompt_ids,
        notes=tuple(notes),
        role=role,
        title=title,
    )


def _standardized(proxy_SPK: np.ndarray) -> np.ndarray:
    """Each seed's proxy less its mean at the first step, in its standard deviation over prompts there: 0 before
    training."""
    start = proxy_SPK[:, :, 0]
    center = start.mean(axis=1)[:, None, None]
    scale = start.std(axis=1)[:, None, None]
    return np.where(scale > 0, (proxy_SPK - center) / np.where(scale > 0, scale, 1.0), 0.0)


def alarms(by_seed: Mapping[int, PpoEvaluation]) -> list[str]:
    """One text for every alarm or early stop that the runs' summaries record."""
    texts = []
    for seed in sorted(by_seed):
        texts += [f"seed {seed}: {text}" for text in _alarm_texts(by_seed[seed].summary)]
    return texts


def _alarm_texts(summary: Mapping[str, Any]) -> list[str]:
    texts = []
    hacking = summary.get("reward_hacking") or {}
    if hacking.get("alarm"):
        first = hacking["first"]
        texts.append(
            f"reward hacking from step {first['step']} on: gold {first['gold_change']:+.3f} and proxy "
            f"{first['proxy_change']:+.3f} since its best at step {first['best_step']}"
        )
    stopped = summary.get("stopped")
    if stopped:
        texts.append(f"stopped at step {stopped['step']}: {stopped['reason'].rstrip('.')}")
    return texts
