"""How often the 95% interval of the held-out gap holds the true gap, in simulated Best-of-N experiments.

Usage:

    python performance/held_out_gap.py --out gap.jsonl      # 15 minutes of one core; a finished line is not done again
    python performance/held_out_gap.py --table gap.jsonl    # the tables of docs/overoptimization.md

The simulated experiment.  A response has a quality q and a cue c.  Its gold is u_p + 0.15 q - 0.02 e_p c^2: prompts
differ in their level u_p and in what the cue costs, e_p.  The reward model of seed s scores q + h_s c + 0.5 noise:
seeds differ in how much they like the cue, h_s (lognormal).  `CURVES` has the median and sigma of h_s:

    clear   gold peaks at n = 4 and falls by about 0.18 at n = 64, as much as gold differs between responses
    flat    gold is nearly level from n = 8 to n = 16 and falls by about 0.04
    rising  gold rises up to n = 64

Four such variants make a table, and moderate each other's seed variance.

The truth is the expectation of the held-out gap over new seeds and new prompts, at the same numbers of both: the mean
over all repetitions.  An interval of a single model says that it counts prompts only, so it has a second truth: the
expectation over new prompts for the seed at hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rm_methods.overoptimization.best_of_n import best_of_n_weights, numbers_of_samples
from rm_methods.overoptimization.variant_curves import VariantCurves, half_of_group, held_out_credits, highest
from rm_methods.statistics.column import SeedPools, VariantValues, seed_pools, variant_estimate
from rm_methods.statistics.intervals import Estimate

RESPONSES = 64
VARIANTS = 4
CURVES = {"clear": (0.7, 0.2), "flat": (0.45, 0.1), "rising": (0.1, 0.1)}
SEEDS = (1, 3, 5, 8)
PROMPTS = (50, 100, 200)
NUMBERS = numbers_of_samples(RESPONSES)
WEIGHTS = best_of_n_weights(RESPONSES, NUMBERS).astype(np.float32)
ALONE = SeedPools(None, None)


def simulated_gold(liking_S: np.ndarray, prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Expected gold of the pick, float64 [S, P, K], of one pool of prompts."""
    level = 0.1 * rng.standard_normal((prompts, 1), dtype=np.float32)
    cost = 0.02 * np.exp(0.5 * rng.standard_normal((prompts, 1), dtype=np.float32))
    quality = rng.standard_normal((prompts, RESPONSES), dtype=np.float32)
    cue = rng.standard_exponential((prompts, RESPONSES), dtype=np.float32)
    gold = level + 0.15 * quality - cost * cue**2
    noise = 0.5 * rng.standard_normal((len(liking_S), prompts, RESPONSES), dtype=np.float32)
    scores = quality + liking_S[:, None, None].astype(np.float32) * cue + noise
    ranked = np.take_along_axis(np.broadcast_to(gold, scores.shape), np.argsort(scores, axis=2), axis=2)
    return (ranked @ WEIGHTS).astype(np.float64)


def drawn_likings(curve: str, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """h_s of new seeds."""
    median, sigma = CURVES[curve]
    return median * np.exp(sigma * rng.standard_normal(seeds))


def curves_of(gold_SPK: np.ndarray) -> VariantCurves:
    """The curves of one variant."""
    return VariantCurves(
        variant="v",
        method="v",
        pool="simulated",
        seeds=tuple(range(len(gold_SPK))),
        seed_free=False,
        axis=NUMBERS,
        kl=np.zeros(len(NUMBERS)),
        kl_bound=np.zeros(len(NUMBERS)),
        gold=gold_SPK,
        proxy=gold_SPK,
        groups=tuple(f"g{p}" for p in range(gold_SPK.shape[1])),
    )


def gaps(gold_SPK: np.ndarray) -> dict[str, np.ndarray]:
    """Credits of the held-out gap [P, S]: those of the package, and those that take the peaks as given."""
    halves = half_of_group([f"g{p}" for p in range(gold_SPK.shape[1])])
    at_first, at_second = (highest(gold_SPK[:, halves == half].mean(axis=(0, 1))) for half in (0, 1))
    read = np.where(halves == 0, gold_SPK[:, :, at_second], gold_SPK[:, :, at_first])
    return {"jackknife": held_out_credits(curves_of(gold_SPK))["gap"], "peaks as given": (read - gold_SPK[:, :, -1]).T}


def estimates(credits: Sequence[np.ndarray]) -> Estimate:
    """The first variant's estimate in a table of all."""
    n_prompts, n_seeds = credits[0].shape
    design = curves_of(np.zeros((n_seeds, n_prompts, 1))).design
    values = {f"v{k}": VariantValues({s: gap[:, s] for s in range(n_seeds)}) for k, gap in enumerate(credits)}
    return variant_estimate(values["v0"], design, seed_pools(values, design))


def coverage(curve: str, seeds: int, prompts: int, repetitions: int) -> dict[str, float]:
    """Coverage of the expectation over new seeds and prompts, and how often the interval lies above 0, in percent."""
    rng = np.random.default_rng([*curve.encode(), seeds, prompts])
    means = []
    limits: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repetitions):
        by_variant = []
        for _ in range(VARIANTS if seeds > 1 else 1):
            by_variant.append(gaps(simulated_gold(drawn_likings(curve, seeds, rng), prompts, rng)))
        for name in by_variant[0]:
            estimate = estimates([credits[name] for credits in by_variant])
            limits.setdefault(name, []).append((estimate.low, estimate.high))
        means.append(estimate.mean)
    truth = float(np.mean(means))
    result = {"repetitions": repetitions, "truth": truth, "sd": float(np.std(means))}
    for name, rows in limits.items():
        low, high = np.array(rows).T
        defined = ~np.isnan(low)
        result[f"no interval, {name}"] = 100 * float((~defined).mean())
        covers = (low <= truth) & (truth <= high)
        result[f"coverage, {name}"] = 100 * float(covers[defined].mean())
        result[f"above 0, {name}"] = 100 * float((low > 0).mean())
        result[f"half width, {name}"] = float(np.nanmedian(high - low)) / 2
    return result


def coverage_of_one_model(curve: str, prompts: int, models: int = 60, pools: int = 50) -> dict[str, float]:
    """Coverage of the expectation over new prompts for the seed at hand, in percent."""
    rng = np.random.default_rng([*curve.encode(), prompts])
    covered: dict[str, list[bool]] = {}
    for _ in range(models):
        liking = drawn_likings(curve, 1, rng)
        drawn = [gaps(simulated_gold(liking, prompts, rng)) for _ in range(pools)]
        truth = float(np.mean([credits["jackknife"].mean() for credits in drawn]))
        for credits in drawn:
            for name, gap in credits.items():
                estimate = estimates([gap])
                if not np.isnan(estimate.low):
                    covered.setdefault(name, []).append(estimate.low <= truth <= estimate.high)
    return {f"seed at hand, {name}": 100 * float(np.mean(hits)) for name, hits in covered.items()}


def measure(out: Path, repetitions: int) -> None:
    """Compute the lines that the file lacks."""
    finished = [json.loads(text)["setting"] for text in out.read_text().splitlines()] if out.exists() else []
    for curve, seeds, prompts in itertools.product(CURVES, SEEDS, PROMPTS):
        setting = {"curve": curve, "seeds": seeds, "prompts": prompts}
        if setting in finished:
            continue
        result = coverage(curve, seeds, prompts, repetitions)
        if seeds == 1:
            result |= coverage_of_one_model(curve, prompts)
        with out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"setting": setting, "result": result}) + "\n")
        print(setting, file=sys.stderr, flush=True)


def print_tables(path: Path) -> None:
    """One table a curve: coverage with the peaks as given, and with the jackknife."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    for curve in CURVES:
        print(f"\n{curve}\n\n| seeds | prompts | truth | as given | jackknife | half width | above 0 |")
        print("|" + "---:|" * 7)
        for line in lines:
            setting, result = line["setting"], line["result"]
            if setting["curve"] != curve:
                continue
            given, jackknife = (f"{result[f'coverage, {name}']:.0f}" for name in ("peaks as given", "jackknife"))
            if setting["seeds"] == 1:
                given += f" ({result['seed at hand, peaks as given']:.0f})"
                jackknife += f" ({result['seed at hand, jackknife']:.0f})"
            widths = [result[f"half width, {name}"] for name in ("peaks as given", "jackknife")]
            print(
                f"| {setting['seeds']} | {setting['prompts']} | {result['truth']:.3f} | {given} | {jackknife} "
                f"| {widths[0]:.3f} to {widths[1]:.3f} | {result['above 0, jackknife']:.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines of the measurements")
    parser.add_argument("--repetitions", type=int, default=600)
    parser.add_argument("--table", type=Path, help="print the tables of an --out file")
    arguments = parser.parse_args()
    if arguments.table:
        print_tables(arguments.table)
    elif arguments.out:
        measure(arguments.out, arguments.repetitions)
    else:
        parser.error("give --out or --table")


if __name__ == "__main__":
    main()
