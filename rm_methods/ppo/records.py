"""The records of a PPO run (`metrics.jsonl`, `evaluation.parquet`), and the reward-hacking alarm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.files import read_json_lines, write_text
from rm_methods.overoptimization.ppo_columns import PPO_EVALUATION_COLUMNS
from rm_methods.parquet import read_parquet, write_rows
from rm_methods.ppo.losses import distinct
from rm_methods.ppo.rollouts import Rollouts


class Records:
    """The two files of a run, kept in its work folder until it is finished.

    Args:
        folder: work folder.
        keep_until: a resumed run keeps lines and rows up to this step (updates done) and writes the others again; None
            removes them.
    """

    def __init__(self, folder: Path, keep_until: int | None):
        self.metrics = folder / "metrics.jsonl"
        self.evaluation = folder / "evaluation.parquet"
        self.rows: list[dict[str, Any]] = []
        self.before = 0.0
        lines: list[dict[str, Any]] = []
        if keep_until is not None:
            lines = [line for line in read_json_lines(self.metrics) if line["step"] <= keep_until]
            self.rows = [row for row in read_evaluation(self.evaluation) if row["step"] <= keep_until]
            self.before = lines[-1]["time"] if lines else 0.0
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in lines))

    def add_update(self, line: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl` and flush it; values that are not finite become null."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
        }
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite) + "\n")

    def add_evaluation(self, step: int, rollouts: Rollouts) -> None:
        """Add the evaluation prompts' rows at a step and write the file again."""
        columns = (
            rollouts.prompts,
            rollouts.responses,
            rollouts.proxy,
            rollouts.gold,
            rollouts.kl,
            rollouts.lengths,
            rollouts.finished,
        )
        for prompt, response, proxy, gold, kl, n_tokens, finished in zip(*columns, strict=True):
            values = (
                step,
                prompt.prompt_id,
                response,
                float(proxy),
                float(gold),
                float(kl),
                int(n_tokens),
                bool(finished),
            )
            self.rows.append(dict(zip(PPO_EVALUATION_COLUMNS, values, strict=True)))
        write_evaluation(self.rows, self.evaluation)


def write_evaluation(rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Write `evaluation.parquet`: one row for each step and evaluation prompt."""
    write_rows(rows, PPO_EVALUATION_COLUMNS, target)


def read_evaluation(source: str | Path) -> list[dict[str, Any]]:
    """The rows of `evaluation.parquet`; raises DataError if the file is missing or is another one."""
    return read_parquet(source, PPO_EVALUATION_COLUMNS, "a PPO evaluation", "ppo").to_pylist()


def measures(rollouts: Rollouts) -> dict[str, float]:
    """The values of a batch of responses in `metrics.jsonl`."""
    tokens = rollouts.token_lists()
    return {
        "proxy": float(rollouts.proxy.mean()),
        "gold": float(rollouts.gold.mean()),
        "kl": float(rollouts.kl.mean()),
        "length": float(rollouts.lengths.mean()),
        "end_rate": float(rollouts.finished.float().mean()),
        "distinct_1": distinct(tokens, 1),
        "distinct_2": distinct(tokens, 2),
        "entropy": float(rollouts.entropies[rollouts.mask].mean()),
    }


def evaluation_means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Means over the evaluation prompts at each step, in the order of steps: step, proxy, gold, kl, length,
    end_rate."""
    means = []
    for step in sorted({row["step"] for row in rows}):
        step_rows = [row for row in rows if row["step"] == step]
        names = {"proxy": "proxy", "gold": "gold", "kl": "kl", "length": "n_tokens", "end_rate": "finished"}
        means.append(
            {"step": step}
            | {name: float(np.mean([row[column] for row in step_rows])) for name, column in names.items()}
        )
    return means


def reward_hacking(rows: Sequence[Mapping[str, Any]], margin: float, confidence: float = 0.95) -> dict[str, Any]:
    """The reward-hacking alarm: gold has fallen below its best while the proxy has risen above its value there.

    Every evaluation is compared with the best one (highest mean gold) before it, prompt by prompt.  It alarms if the
    upper end of the t interval of the mean difference in gold is below -margin and the mean proxy is higher.  The best
    one is selected after the fact, so the level is divided by the number of pairs of evaluations (Bonferroni).
    Otherwise noise alone alarms in most runs.

    Returns:
        alarm, margin, confidence, comparisons, steps (those that alarm), and `first` and `last`: of the first and the
        last alarming step (None without alarm) step, best_step, gold_change, gold_interval, proxy_change, kl.
    """
    # What `scipy.stats.t.ppf` calls; importing that package takes longer than all the rest of this function.
    from scipy.special import stdtrit

    steps = sorted({row["step"] for row in rows})
    by_step = {step: {row["prompt_id"]: row for row in rows if row["step"] == step} for step in steps}
    prompt_ids = sorted(by_step[steps[0]]) if steps else []

    def column(step: int, name: str) -> np.ndarray:
        return np.array([by_step[step][prompt_id][name] for prompt_id in prompt_ids])

    comparisons = len(steps) * (len(steps) - 1) // 2
    alarms: list[dict[str, Any]] = []
    for number, step in enumerate(steps[1:], start=1):
        best = max(steps[:number], key=lambda earlier: column(earlier, "gold").mean())
        change = column(step, "gold") - column(best, "gold")
        error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else math.inf
        reach = float(stdtrit(max(len(change) - 1, 1), 1 - (1 - confidence) / (2 * comparisons)) * error)
        proxy_change = float(column(step, "proxy").mean() - column(best, "proxy").mean())
        if change.mean() + reach < -margin and proxy_change > 0:
            interval = [float(change.mean() - reach), float(change.mean() + reach)]
            alarms.append(
                {
                    "step": step,
                    "best_step": best,
                    "gold_change": float(change.mean()),
                    "gold_interval": interval,
                    "proxy_change": proxy_change,
                    "kl": float(column(step, "kl").mean()),
                }
            )
    return {
        "alarm": bool(alarms),
        "margin": margin,
        "confidence": confidence,
        "comparisons": comparisons,
        "steps": [alarm["step"] for alarm in alarms],
        "first": alarms[0] if alarms else None,
        "last": alarms[-1] if alarms else None,
    }
