"""Made-up pools and PPO runs in which gold rises and falls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from rm_methods.benchmarks.item import BenchmarkItem, read_items, write_items
from rm_methods.benchmarks.score_table import ScoredResponse, response_hash, write_scores
from rm_methods.overoptimization.best_of_n import PoolCurves, pool_curves, read_pool_scores
from rm_methods.overoptimization.summary import PoolRun, PpoRun


def pool_runs(
    folder: Path, hacking: dict[str, float], seeds=(0, 1, 2), prompts=24, responses=64, pool="policy"
) -> list[PoolRun]:
    """Runs whose proxy is quality + `hacking` x a cue that costs gold when it is extreme."""
    generator = np.random.default_rng(7)
    quality, cue = generator.standard_normal((prompts, responses)), generator.exponential(1.0, (prompts, responses))
    gold = 0.15 * quality - 0.02 * cue**2
    items = [
        BenchmarkItem(
            f"p{p}",
            "policy",
            [{"role": "user", "content": f"Ask {p}."}],
            [f"r {p} {k}" for k in range(responses)],
            gold[p].tolist(),
        )
        for p in range(prompts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_items(items, folder / f"{pool}.parquet")
    runs = []
    for variant, strength in hacking.items():
        for seed in seeds:
            scores = quality + strength * cue + 0.3 * generator.standard_normal(quality.shape)
            target = folder / f"{pool}_{variant}_{seed}.parquet"
            rows = [
                ScoredResponse(item.item_id, k, response_hash(text), float(scores[p, k]), 9, False)
                for p, item in enumerate(items)
                for k, text in enumerate(item.responses)
            ]
            write_scores(rows, target)
            runs.append(PoolRun(variant, variant, seed, pool, folder / f"{pool}.parquet", target))
    return runs


def curves_of_run(run: PoolRun) -> PoolCurves:
    """Best-of-N of one run, from its files."""
    items = read_items(run.items)
    return pool_curves(items, read_pool_scores(items, run.scores))


def ppo_run(folder: Path, variant: str, seed: int, fall: float, steps=(0, 10, 20, 30, 40, 50), summary=None) -> PpoRun:
    """Gold rises as d and falls as `fall` x d squared; the proxy only rises."""
    generator = np.random.default_rng(seed)
    rows = []
    for step in steps:
        kl = 0.1 * step
        d = np.sqrt(kl)
        for p in range(20):
            noise = 0.02 * generator.standard_normal(2)
            gold, proxy = d - fall * d**2 + noise[0], 5.0 + p + d + noise[1]
            row = {"step": step, "prompt_id": f"e{p}", "response": "x", "proxy": proxy, "gold": gold, "kl": kl}
            rows.append(row | {"n_tokens": 10 + step, "finished": p % 4 > 0})
    target = folder / f"{variant}_{seed}"
    target.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(target / "evaluation.parquet")
    (target / "summary.json").write_text(json.dumps(summary or {"stopped": None, "reward_hacking": {"alarm": False}}))
    return PpoRun(variant, variant, seed, target)
