"""All variants of one column: their means, their differences from the reference, and what the column could have shown.

Roles.  *Trained* variants are the hypotheses: they are tested against the reference.  *Content-blind* scorers are lines
to read against, not hypotheses; so are *computed* scorers, which know more than any training tells (the exact
quality, the annotators).  A *combination of runs* (an ensemble, averaged weights) is one run whatever its
members, so it has no p value; its interval counts the members by the jackknife (Efron and Stein 1981),

    V_members = (M - 1) / M * sum_j (m_(-j) - mean of m_(-))^2

where m_(-j) is the metric without member j.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rm_methods.statistics.cell import Cell, Difference, least_detectable
from rm_methods.statistics.designs import ItemDesign
from rm_methods.statistics.error_law import ErrorLaw
from rm_methods.statistics.intervals import Estimate, estimate, estimate_from_seeds, variance_parts, with_interval
from rm_methods.statistics.moderation import SeedPool, pool_paired, pool_shares, pool_within

MIN_SEEDS = 3  # fewer pairs of runs than this are "not enough evidence"

Role = Literal["trained", "content_blind", "computed", "combined", "external"]
LINES = ("content_blind", "computed", "external")  # roles of rows to read against: fixed scorers


def role_of(kind: str | None) -> Role:
    """The role of a method by the kind of its card; other kinds, and none, are trained."""
    roles: dict[str | None, Role] = {role: role for role in ("content_blind", "computed", "combined", "external")}
    return roles.get(kind, "trained")


@dataclass(frozen=True)
class VariantValues:
    """What the runs of one variant got in one column.

    Attributes:
        by_seed: seed -> float64 [items] credits in the order of the column's design; without a design, the metric
            itself.  Not empty; runs with equal weights count once.
        role: see the top of the file.
        seed_free: the scorer is the same under every seed.
        left_out: of a combination, member's seed -> the metric without that member; empty where it was not computed.
        may_be_share: credits that all lie from 0 to 1 are shares, whose limits stay there; False for metrics without
            such limits.
    """

    by_seed: Mapping[int, np.ndarray]
    role: Role = "trained"
    seed_free: bool = False
    left_out: Mapping[int, float] = field(default_factory=dict)
    may_be_share: bool = True

    def metrics(self, design: ItemDesign | None) -> dict[int, float]:
        """The metric of each run."""
        if design is None:
            return {seed: float(value) for seed, value in self.by_seed.items()}
        return {seed: float(design.coefficient @ credits) for seed, credits in self.by_seed.items()}

    @property
    def single(self) -> bool:
        """Whether the variant is one scorer, so that seeds cannot be counted."""
        return len(self.by_seed) == 1


@dataclass(frozen=True)
class SeedPools:
    """Variance of single runs over the trained variants of a column.

    Attributes:
        within: around their variant.
        paired: what is left once variant and seed are known.
        shares: as `within`, in units of share (1 - share); None if the metric is no share.
    """

    within: SeedPool | None
    paired: SeedPool | None
    shares: SeedPool | None = None

    def of_values(self, mean: float) -> SeedPool | None:
        """The pool for the values of a variant with this mean."""
        if self.shares is None:
            return self.within
        return SeedPool(self.shares.variance * max(mean * (1 - mean), 0.0), self.shares.freedom)


def seed_pools(variants: Mapping[str, VariantValues], design: ItemDesign | None) -> SeedPools:
    """The pools of a column's trained variants with at least two runs."""
    pooled = [
        values
        for values in variants.values()
        if values.role == "trained" and not values.single and not values.seed_free
    ]
    runs = [values.metrics(design) for values in pooled]
    runs = [by_seed for by_seed in runs if all(math.isfinite(metric) for metric in by_seed.values())]
    are_shares = design is not None and all(
        values.may_be_share and _is_share(np.asarray(credits))
        for values in pooled
        for credits in values.by_seed.values()
    )
    return SeedPools(pool_within(runs), pool_paired(runs), pool_shares(runs) if are_shares else None)


def column_cells(
    variants: Mapping[str, VariantValues], reference: str | None, design: ItemDesign | None
) -> dict[str, Cell]:
    """A cell for each variant, without Holm's correction (`with_verdicts`).

    Args:
        variants: those that have the column.
        reference: name of the variant that the others are compared with; None, or a name that lacks the column, for no
            differences.
        design: of the items; None for a metric without credits.
    """
    pools = seed_pools(variants, design)
    cells = {}
    for name, values in variants.items():
        cell = Cell(variant_estimate(values, design, pools))
        if name == reference:
            cell = Cell(cell.estimate, verdict="reference")
        elif reference is not None and reference in variants:
            difference = difference_to(values, variants[reference], design, pools)
            verdict = "not enough evidence" if values.role == "trained" else "not tested"
            cell = Cell(cell.estimate, difference=difference, verdict=verdict)
        cells[name] = cell
    return cells


def variant_estimate(values: VariantValues, design: ItemDesign | None, pools: SeedPools) -> Estimate:
    """Mean and interval of one variant."""
    seeds = sorted(values.by_seed)
    pool = None
    if values.role == "trained":
        pool = pools.of_values(float(np.mean(list(values.metrics(design).values()))))
    if values.role == "combined" and design is not None and len(values.left_out) > 1:
        credits = np.asarray(values.by_seed[seeds[0]], dtype=np.float64)
        is_share = values.may_be_share and _is_share(credits)
        return _jackknifed(credits, list(values.left_out.values()), design, is_share=is_share)
    if design is None:
        return estimate_from_seeds([float(values.by_seed[seed]) for seed in seeds], pool)
    credits = np.column_stack([values.by_seed[seed] for seed in seeds])
    return estimate(credits, design, pool, may_be_share=values.may_be_share)


def _is_share(credits: np.ndarray) -> bool:
    return bool(np.all((credits >= 0) & (credits <= 1)))


def _jackknifed(credits: np.ndarray, left_out: Sequence[float], design: ItemDesign, *, is_share: bool) -> Estimate:
    """The estimate of one combination of runs: its items, and its members by the jackknife."""
    parts = variance_parts(credits[:, None], design)
    n_members = len(left_out)
    members = (n_members - 1) * float(np.var(left_out))
    return with_interval(
        float(design.coefficient @ credits),
        ErrorLaw(members, n_members - 1, parts.item, parts.item_freedom),
        basis="members and items",
        n_seeds=1,
        design=design,
        is_share=is_share,
    )


def difference_to(
    candidate: VariantValues, reference: VariantValues, design: ItemDesign | None, pools: SeedPools
) -> Difference:
    """Difference of a variant from the reference on the same items.

    Two trained variants are paired run by run: by seed where they share seeds, else in the order of their seeds (seeds
    are exchangeable, so any fixed pairing is valid; an A/A comparison of one method with other seeds uses this).  Where
    one side is a single scorer, the difference is from the mean of the other's runs.
    """
    if "combined" in (candidate.role, reference.role) or (candidate.single != reference.single):
        return _difference_of_means(candidate, reference, design, pools)
    common = sorted(candidate.by_seed.keys() & reference.by_seed.keys())
    if common:
        pairing = "same seed"
        pairs = [(seed, seed) for seed in common]
    else:
        pairing = "order of seeds"
        pairs = list(zip(sorted(candidate.by_seed), sorted(reference.by_seed), strict=False))
    # Without shared seeds, the variance between seeds does not drop out, so the paired pool would be too small.
    both_trained = candidate.role == reference.role == "trained"
    pool = pools.paired if both_trained and pairing == "same seed" else None
    differences = [np.asarray(candidate.by_seed[a]) - np.asarray(reference.by_seed[b]) for a, b in pairs]
    if design is None:
        difference = estimate_from_seeds([float(value) for value in differences], pool, pooled_per_run=2)
    else:
        difference = estimate(np.column_stack(differences), design, pool, pooled_per_run=2, may_be_share=False)
    tested = both_trained and len(pairs) >= MIN_SEEDS
    return Difference(difference, _p_value(difference) if tested else math.nan, tested, pairing)


def _difference_of_means(
    candidate: VariantValues, reference: VariantValues, design: ItemDesign | None, pools: SeedPools
) -> Difference:
    """Difference of the means of two variants of which at least one is a single scorer; never a test.

    Of a combination and the variant that its members are runs of, the jackknife leaves the same run out on both sides.
    """
    if design is None:
        mean = float(np.mean(list(candidate.by_seed.values()))) - float(np.mean(list(reference.by_seed.values())))
        unknown = with_interval(mean, ErrorLaw(0, 1, 0, 1), basis="nothing", n_seeds=0, design=None, is_share=False)
        return Difference(unknown, math.nan, False, "mean of runs")
    mean_of_candidate = np.mean([candidate.by_seed[seed] for seed in sorted(candidate.by_seed)], axis=0)
    mean_of_reference = np.mean([reference.by_seed[seed] for seed in sorted(reference.by_seed)], axis=0)
    difference = _estimate_of_means(candidate, reference, mean_of_candidate - mean_of_reference, design, pools)
    return Difference(difference, math.nan, False, "mean of runs")


def _estimate_of_means(
    candidate: VariantValues, reference: VariantValues, credits: np.ndarray, design: ItemDesign, pools: SeedPools
) -> Estimate:
    for combination, other, sign in ((candidate, reference, 1.0), (reference, candidate, -1.0)):
        if combination.role != "combined":
            continue
        metrics = other.metrics(design)
        if len(metrics) > 1 and set(combination.left_out) == set(metrics):
            total = sum(metrics.values())
            left_out = []
            for seed, metric in sorted(combination.left_out.items()):
                rest = (total - metrics[seed]) / (len(metrics) - 1)
                left_out.append(sign * (metric - rest))
            return _jackknifed(credits, left_out, design, is_share=False)
        if len(combination.left_out) > 1 and other.seed_free:
            return _jackknifed(credits, list(combination.left_out.values()), design, is_share=False)
        return _without_interval(credits, design)
    # One side is a single scorer.  If it was trained, another seed would have given another: no interval counts that.
    fixed = reference if reference.single else candidate
    if fixed.role == "trained":
        return _without_interval(credits, design)
    many = candidate if reference.single else reference
    fixed_credits = next(iter(fixed.by_seed.values()))
    sign = 1.0 if many is candidate else -1.0
    runs = [sign * (np.asarray(many.by_seed[seed]) - fixed_credits) for seed in sorted(many.by_seed)]
    pool = pools.within if many.role == "trained" else None
    return estimate(np.column_stack(runs), design, pool, may_be_share=False)


def _without_interval(credits: np.ndarray, design: ItemDesign) -> Estimate:
    unknown = ErrorLaw(0.0, 1, 0.0, 1.0)
    mean = float(design.coefficient @ credits)
    return with_interval(mean, unknown, basis="nothing", n_seeds=1, design=design, is_share=False)


def _p_value(difference: Estimate) -> float:
    if difference.law is not None:
        return difference.law.p_value(difference.mean)
    # Without spread: two equal columns of credits are no evidence of a difference; anything else cannot be judged.
    return 1.0 if abs(difference.mean) < 1e-12 else math.nan


def detectable_difference(cells: Mapping[str, Cell], n_tests: int) -> float:
    """The least detectable difference of a column: the median over its tested variants; NaN without one.

    Args:
        n_tests: in the family that Holm's correction counts.
    """
    differences = [cell.difference for cell in cells.values() if cell.tested and cell.difference is not None]
    values = [least_detectable(difference, n_tests) for difference in differences]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.median(defined)) if defined else math.nan
