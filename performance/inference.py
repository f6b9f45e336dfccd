"""Do the intervals and stars of a comparison table hold their level?  Simulated tables say.

Usage:

    python performance/inference.py grid --out grid.jsonl      # coverage and false alarms: about 20 minutes of one core
    python performance/inference.py power --out power.jsonl    # power, against the estimator of release 0.1: 10 minutes
    python performance/inference.py members --out members.jsonl  # ensembles: 2 minutes
    python performance/inference.py table grid.jsonl           # the tables of docs/comparison.md

A finished line of an --out file is not computed again.

The simulated table.  A method v under seed s answers item i right where

    threshold_v + a_vs + sqrt(0.8) b_vi + sqrt(0.2) e_vsi > 0

with normal a, b, e.  `b` is the item effect, of which two methods share the part `item_correlation`; `a` is the seed
effect, with a standard deviation of `seed_sd` points of accuracy.  All methods are right 75% of the time over seeds and
items, so every star is a false alarm.  With `spread`, the standard deviations of a are lognormal over methods with this
sigma, at the same mean square.  The first three tables of each setting also go through `column_cells`, and must agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtri
from scipy.stats import norm, t

from rm_methods.statistics.cell import with_verdicts
from rm_methods.statistics.column import VariantValues, column_cells, detectable_difference
from rm_methods.statistics.corrections import ALPHA
from rm_methods.statistics.designs import item_design
from rm_methods.statistics.error_law import two_sided_tail
from rm_methods.statistics.moderation import PRIOR_FREEDOM

ACCURACY = 0.75
ITEM_SHARE = 0.8  # of the latent variance of one method and seed
DENSITY = norm.pdf(ndtri(ACCURACY))  # points of accuracy for a unit of the latent scale
BATCH = 2_000_000  # credits in memory


@dataclass(frozen=True)
class Setting:
    """One simulated table.  `effect`: points by which the first rival is better than all others."""

    seeds: int
    rivals: int
    seed_sd: float
    item_correlation: float
    spread: float = 0.0
    shared_seeds: float = 0.0
    effect: float = 0.0
    items: int = 300


@dataclass(frozen=True)
class Tables:
    """Simulated tables, summed over items.  R tables, K methods (the first is the reference), S seeds.

    Attributes:
        metric_RKS: accuracy.
        item_RK, residual_RK: mean squares of items and of the residual, over S n, of each difference.
        mean_item_RK, mean_residual_RK: the same of each method.
        first: credits [methods, seeds, items] of the first tables.
    """

    metric_RKS: np.ndarray
    item_RK: np.ndarray
    residual_RK: np.ndarray
    mean_item_RK: np.ndarray
    mean_residual_RK: np.ndarray
    first: list[np.ndarray]


def simulate(setting: Setting, repetitions: int, seed: int = 0) -> Tables:
    """Draw tables."""
    rng = np.random.default_rng(seed)
    n_methods = setting.rivals + 1
    size = max(1, min(repetitions, BATCH // (n_methods * setting.seeds * setting.items)))
    parts: list[tuple[np.ndarray, ...]] = []
    first: list[np.ndarray] = []
    done = 0
    while done < repetitions:
        credits = _credits(setting, min(size, repetitions - done), rng)
        first += list(credits[: max(0, 3 - len(first))])
        differences = credits[:, 1:] - credits[:, :1]
        parts.append((credits.mean(axis=3), *_mean_squares(differences), *_mean_squares(credits)))
        done += len(credits)
    columns = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    metric, item, residual, mean_item, mean_residual = columns
    return Tables(metric, item, residual, mean_item, mean_residual, first)


def _credits(setting: Setting, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    """Credits, float32 [R, K, S, n]."""
    n_methods = setting.rivals + 1
    shape = (repetitions, n_methods)
    sd = setting.seed_sd / 100 / DENSITY
    sd_RK = sd * np.exp(setting.spread * rng.standard_normal(shape) - setting.spread**2)
    accuracy = np.full(n_methods, ACCURACY)
    accuracy[1] += setting.effect / 100
    threshold_RK = ndtri(accuracy) * np.sqrt(1 + sd_RK**2)
    common = rng.standard_normal((repetitions, 1, setting.seeds))
    alone = rng.standard_normal((*shape, setting.seeds))
    share = setting.shared_seeds
    a_RKS = sd_RK[:, :, None] * (np.sqrt(share) * common + np.sqrt(1 - share) * alone)
    common_b = rng.standard_normal((repetitions, 1, setting.items), dtype=np.float32)
    alone_b = rng.standard_normal((*shape, setting.items), dtype=np.float32)
    rho = np.float32(setting.item_correlation)
    b_RKn = np.float32(np.sqrt(ITEM_SHARE)) * (np.sqrt(rho) * common_b + np.sqrt(1 - rho) * alone_b)
    noise = rng.standard_normal((*shape, setting.seeds, setting.items), dtype=np.float32)
    level_RKS = (threshold_RK[:, :, None] + a_RKS).astype(np.float32)
    latent = np.float32(np.sqrt(1 - ITEM_SHARE)) * noise + b_RKn[:, :, None, :] + level_RKS[:, :, :, None]
    return (latent > 0).astype(np.float32)


def _mean_squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares of items and of the residual over S n, [R, K], of values [R, K, S, n]."""
    n_seeds, n_items = values.shape[2:]
    by_item = values.mean(axis=2)
    item = n_seeds * by_item.var(axis=2, ddof=1)
    deviation = values - by_item[:, :, None, :]
    deviation -= deviation.mean(axis=3, keepdims=True)
    residual = np.square(deviation).sum(axis=(2, 3)) / ((n_items - 1) * (n_seeds - 1))
    return item / (n_seeds * n_items), residual / (n_seeds * n_items)


@dataclass(frozen=True)
class Judged:
    """p values of the true value [tables, rivals or methods], and standard errors."""

    p: np.ndarray
    error: np.ndarray


def judge_differences(tables: Tables, truth: np.ndarray) -> dict[str, Judged]:
    """Two-sided p values of each difference less its true value, by estimator."""
    metric = tables.metric_RKS.astype(np.float64)
    n_methods, n_seeds = metric.shape[1:]
    differences = metric[:, 1:] - metric[:, :1]
    deviation = np.abs(differences.mean(axis=2) - truth)
    seed = differences.var(axis=2, ddof=1) / n_seeds
    item = np.maximum(tables.item_RK - tables.residual_RK, 0)
    pool_freedom = (n_methods - 1) * (n_seeds - 1)
    rest = metric - metric.mean(axis=1, keepdims=True) - metric.mean(axis=2, keepdims=True)
    rest += metric.mean(axis=(1, 2), keepdims=True)
    pool = 2 * np.square(rest).sum(axis=(1, 2)) / pool_freedom / n_seeds
    return {
        "moderated": _judge(deviation, seed, pool[:, None], n_seeds - 1, pool_freedom, item),
        "own seeds": _judge(deviation, seed, pool[:, None], n_seeds - 1, 0, item),
        "satterthwaite": _judge_satterthwaite(deviation, seed, tables.item_RK, tables.residual_RK, n_seeds),
    }


def _judge(deviation, seed, pool, freedom: int, pool_freedom: int, item) -> Judged:
    added = max(min(PRIOR_FREEDOM, pool_freedom - freedom), 0)
    moderated = (freedom * seed + added * pool) / (freedom + added)
    variance = moderated + item
    # A table without any spread has no p value; the comparison says so.
    error = np.sqrt(np.maximum(variance, 1e-24))
    share = moderated / np.maximum(variance, 1e-24)
    items = Setting.items - 1
    return Judged(two_sided_tail(deviation / error, share, freedom + added, items), error)


def _judge_satterthwaite(deviation, seed, item_square, residual_square, n_seeds: int) -> Judged:
    """The estimator of release 0.1: Satterthwaite's degrees of freedom over the three mean squares, at least S - 1."""
    items = Setting.items - 1
    item = np.maximum(item_square - residual_square, 0)
    variance = seed + item
    error = np.sqrt(np.maximum(variance, 1e-24))
    spread = seed**2 / (n_seeds - 1) + item_square**2 / items + residual_square**2 / (items * (n_seeds - 1))
    freedom = np.where(item > 0, variance**2 / np.maximum(spread, 1e-24), n_seeds - 1)
    freedom = np.maximum(freedom, n_seeds - 1)
    return Judged(2 * t.sf(deviation / error, freedom), error)


def judge_means(tables: Tables) -> Judged:
    """Two-sided p values of the true accuracy by Wilson's limits, with the moderated variance."""
    metric = tables.metric_RKS.astype(np.float64)
    n_methods, n_seeds = metric.shape[1:]
    mean = metric.mean(axis=2)
    seed = metric.var(axis=2, ddof=1) / n_seeds
    pool = seed.mean(axis=1, keepdims=True)
    item = np.maximum(tables.mean_item_RK - tables.mean_residual_RK, 0)
    judged = _judge(np.zeros_like(mean), seed, pool, n_seeds - 1, n_methods * (n_seeds - 1), item)
    effective = mean * (1 - mean) / judged.error**2
    x = np.abs(mean - ACCURACY) / np.sqrt(ACCURACY * (1 - ACCURACY) / effective)
    added = max(min(PRIOR_FREEDOM, (n_methods - 1) * (n_seeds - 1)), 0)
    moderated = ((n_seeds - 1) * seed + added * pool) / (n_seeds - 1 + added)
    share = moderated / judged.error**2
    return Judged(two_sided_tail(x, share, n_seeds - 1 + added, Setting.items - 1), judged.error)


def holm_rejects(p: np.ndarray) -> np.ndarray:
    """Which tests Holm's procedure rejects at 5%, bool [tables, rivals]."""
    n_tests = p.shape[1]
    order = np.argsort(p, axis=1)
    stepped = np.take_along_axis(p, order, axis=1) * (n_tests - np.arange(n_tests))
    adjusted = np.maximum.accumulate(np.minimum(stepped, 1), axis=1)
    rejected = np.empty(p.shape, dtype=bool)
    np.put_along_axis(rejected, order, adjusted < ALPHA, axis=1)
    return rejected


def check_against_package(tables: Tables, judged: Judged, truth: np.ndarray) -> float:
    """Largest difference between the p values here and those of `column_cells`; returns the detectable difference."""
    if truth.any():
        raise ValueError("the package tests a difference of 0")
    detectable = 0.0
    for table, credits in enumerate(tables.first):
        n_methods, n_seeds, n_items = credits.shape
        design = item_design(["all"] * n_items, [1.0] * n_items)
        variants = {
            f"v{k}": VariantValues({s: credits[k, s].astype(np.float64) for s in range(n_seeds)})
            for k in range(n_methods)
        }
        cells = with_verdicts(column_cells(variants, "v0", design))
        for k in range(1, n_methods):
            difference = cells[f"v{k}"].difference
            if difference is None or difference.estimate.law is None:
                continue
            if abs(difference.p_value - judged.p[table, k - 1]) > 1e-4:
                raise AssertionError(f"{difference.p_value} here, {judged.p[table, k - 1]} in the simulation")
        detectable += detectable_difference(cells, n_methods - 1) / len(tables.first)
    return detectable


def grid_line(setting: Setting, repetitions: int) -> dict[str, float]:
    """Coverage and false alarms, in percent."""
    tables = simulate(setting, repetitions, seed=_seed(setting))
    truth = np.zeros(setting.rivals)
    line: dict[str, float] = {"repetitions": repetitions}
    judged = judge_differences(tables, truth)
    for name, by_estimator in judged.items():
        line[f"coverage, {name}"] = 100 * float((by_estimator.p >= ALPHA).mean())
        line[f"false alarms, {name}"] = 100 * float(holm_rejects(by_estimator.p).any(axis=1).mean())
    line["coverage of means"] = 100 * float((judge_means(tables).p >= ALPHA).mean())
    check_against_package(tables, judged["moderated"], truth)
    return line


def power_line(setting: Setting, repetitions: int) -> dict[str, float]:
    """How often the first rival is significant after Holm's correction, in percent."""
    tables = simulate(setting, repetitions, seed=_seed(setting))
    # The p values test a difference of 0.
    judged = judge_differences(tables, np.zeros(setting.rivals))
    line: dict[str, float] = {"repetitions": repetitions}
    for name, by_estimator in judged.items():
        line[f"power, {name}"] = 100 * float(holm_rejects(by_estimator.p)[:, 0].mean())
    return line


def _seed(setting: Setting) -> int:
    return abs(hash(tuple(asdict(setting).values()))) % 2**32


def members_line(seed_sd: float, members: int, repetitions: int, items: int = 300) -> dict[str, float]:
    """Coverage of an ensemble's accuracy: by its items alone, and with the jackknife over its members.

    The ensemble is right where the mean latent value of its members is positive; the truth is its accuracy over other
    members and items.
    """
    rng = np.random.default_rng(int(1000 * seed_sd) + members)
    sd = seed_sd / 100 / DENSITY
    threshold = ndtri(ACCURACY) * np.sqrt(1 + sd**2)
    truth = norm.cdf(threshold / np.sqrt(ITEM_SHARE + (sd**2 + 1 - ITEM_SHARE) / members))
    covered = {"items only": 0, "jackknife": 0}
    design = item_design(["all"] * items, [1.0] * items)
    for _ in range(repetitions):
        latent = threshold + sd * rng.standard_normal((members, 1))
        latent = latent + np.sqrt(ITEM_SHARE) * rng.standard_normal(items)
        latent = latent + np.sqrt(1 - ITEM_SHARE) * rng.standard_normal((members, items))
        credits = (latent.mean(axis=0) > 0).astype(np.float64)
        left_out = {j: float((np.delete(latent, j, axis=0).mean(axis=0) > 0).mean()) for j in range(members)}
        for name, values in (
            ("items only", VariantValues({0: credits}, role="combined")),
            ("jackknife", VariantValues({0: credits}, role="combined", left_out=left_out)),
        ):
            estimate = column_cells({"ensemble": values}, None, design)["ensemble"].estimate
            covered[name] += estimate.low <= truth <= estimate.high
    return {"repetitions": repetitions} | {f"coverage, {name}": 100 * n / repetitions for name, n in covered.items()}


def _run(out: Path, lines: list[tuple[dict, int, object]]) -> None:
    """Compute the lines that the file lacks, with progress and the time left."""
    finished = set()
    if out.exists():
        for text in out.read_text(encoding="utf-8").splitlines():
            finished.add(json.dumps(json.loads(text)["setting"], sort_keys=True))
    open_lines = [line for line in lines if json.dumps(line[0], sort_keys=True) not in finished]
    weights = [cost for _, cost, _ in open_lines]
    begun = time.monotonic()
    for number, (setting, _, compute) in enumerate(open_lines):
        result = compute()
        with out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"setting": setting, "result": result}) + "\n")
        done = sum(weights[: number + 1])
        left = (time.monotonic() - begun) / done * (sum(weights) - done)
        print(f"{number + 1} of {len(open_lines)}, {left / 60:.0f} min left: {setting}", file=sys.stderr, flush=True)


REPETITIONS = {1: 10000, 5: 3000, 13: 1000, 30: 600}


def _grid() -> list[tuple[dict, int, object]]:
    lines = []
    for seeds, rivals, seed_sd, rho, spread in itertools.product(
        (3, 5, 8, 10), REPETITIONS, (0, 1, 3, 10), (0, 0.7, 0.95), (0, 0.6)
    ):
        if spread and not seed_sd:
            continue
        setting = Setting(seeds, rivals, seed_sd, rho, spread)
        repetitions = REPETITIONS[rivals]
        lines.append((setting, repetitions))
    return [(asdict(s), r * s.seeds * (s.rivals + 1), lambda s=s, r=r: grid_line(s, r)) for s, r in lines]


def _power() -> list[tuple[dict, int, object]]:
    lines = []
    for seeds, rivals, seed_sd, shared, effect in itertools.product(
        (3, 5, 8, 10), (1, 5, 13), (1, 3, 10), (0, 0.9), (3, 10)
    ):
        lines.append((Setting(seeds, rivals, seed_sd, 0.7, shared_seeds=shared, effect=effect), REPETITIONS[rivals]))
    return [(asdict(s), r * s.seeds * (s.rivals + 1), lambda s=s, r=r: power_line(s, r)) for s, r in lines]


def _members() -> list[tuple[dict, int, object]]:
    return [
        (
            {"seed_sd": sd, "members": members},
            1,
            lambda sd=sd, members=members: members_line(sd, members, 2000),
        )
        for sd, members in itertools.product((0, 2.5, 7, 13, 21), (3, 5, 8))
    ]


def print_tables(path: Path) -> None:
    """For each number of seeds and rivals: the range over all other settings."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    names = [name for name in lines[0]["result"] if name != "repetitions"]
    if "seeds" not in lines[0]["setting"] or any(name.startswith("power") for name in names):
        keys = [key for key in lines[0]["setting"] if len({json.dumps(x["setting"][key]) for x in lines}) > 1]
        print("| " + " | ".join([*keys, *names]) + " |")
        print("|" + "---|" * (len(keys) + len(names)))
        for line in lines:
            values = [f"{line['setting'][key]:g}" for key in keys] + [f"{line['result'][name]:.1f}" for name in names]
            print("| " + " | ".join(values) + " |")
        return
    print("| seeds | rivals | " + " | ".join(names) + " |")
    print("|" + "---|" * (2 + len(names)))
    groups: dict[tuple[int, int], list[dict]] = {}
    for line in lines:
        groups.setdefault((line["setting"]["seeds"], line["setting"]["rivals"]), []).append(line["result"])
    for (seeds, rivals), results in sorted(groups.items()):
        spans = [f"{min(r[name] for r in results):.1f} to {max(r[name] for r in results):.1f}" for name in names]
        print(f"| {seeds} | {rivals} | " + " | ".join(spans) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("grid", "power", "members"):
        verbs.add_parser(verb).add_argument(
            "--out", type=Path, required=True, help="JSON lines; finished ones are kept."
        )
    verbs.add_parser("table").add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "table":
        print_tables(arguments.file)
    else:
        _run(arguments.out, {"grid": _grid, "power": _power, "members": _members}[arguments.verb]())


if __name__ == "__main__":
    main()
