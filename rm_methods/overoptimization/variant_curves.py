"""Variants on one pool: mean curves with bands, where they peak, how far they fall, and paired differences to a
reference.

Intervals are those of the comparison (rm_methods/statistics/intervals.py): seeds of the reward model and prompts of
the pool are crossed random effects, with Student's t.  A percentile bootstrap over three seeds would be far too narrow
(measured: docs/overoptimization.md); it is used only for the n at the peak, which is no mean of anything.

The highest point of a noisy curve overstates its height, and so does the fall from there.  The tested columns
therefore hold out: the prompts are cut in two halves, each half is read at the n where the *other* half's curve is
highest.  Without over-optimization the gap so measured is at most 0 in expectation; the plain peak less end is never
below 0, however noisy the curve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rm_methods.errors import DataError, UserError, nearest
from rm_methods.overoptimization.best_of_n import PoolCurves
from rm_methods.statistics.cell import Cell, with_verdicts
from rm_methods.statistics.column import Role, VariantValues, column_cells
from rm_methods.statistics.designs import ItemDesign, item_design
from rm_methods.statistics.intervals import Estimate, estimate

COLUMNS = ("gold_end", "gold_peak", "gap")
REPLICATES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class VariantCurves:
    """All seeds of one variant along one axis: n of Best-of-n on a pool, or the steps of PPO.

    S seeds, P prompts, K points of the axis.

    Attributes:
        variant, method, pool: names.
        seeds: rising; seed_free: the scorer is the same under every seed.
        role: see `rm_methods.statistics.column`.
        axis: int64 [K], n or step.
        kl: float64 [K], mean over prompts and seeds of the KL estimate, nats; kl_bound: float64 [K], NaN where there
            is none.
        gold, proxy: float64 [S, P, K]; the proxy standardized.
        groups: of the prompts, [P].
        notes: what a reader of the numbers must know.
        left_out, left_out_seeds: of a combined reward model: float64 [M, P, K], gold without each of its M members, and
            their seeds; None for others.
    """

    variant: str
    method: str
    pool: str
    seeds: tuple[int, ...]
    seed_free: bool
    axis: np.ndarray
    kl: np.ndarray
    kl_bound: np.ndarray
    gold: np.ndarray
    proxy: np.ndarray
    groups: tuple[str, ...]
    notes: tuple[str, ...] = ()
    left_out: np.ndarray | None = None
    left_out_seeds: tuple[int, ...] = ()
    role: Role = "trained"

    @property
    def design(self) -> ItemDesign:
        """Every prompt counts once; prompts of one group are not independent."""
        return item_design(["pool"] * len(self.groups), [1.0] * len(self.groups), self.groups)

    @property
    def mean_gold(self) -> np.ndarray:
        """float64 [K], over seeds and prompts."""
        return self.gold.mean(axis=(0, 1))

    @property
    def peak(self) -> int:
        """Position on the axis of the highest mean gold; the first of equals, which costs the least KL."""
        return highest(self.mean_gold)

    def bands(self, values_SPK: np.ndarray) -> list[Estimate]:
        """Mean and 95% interval at every point of the axis."""
        return [estimate(values_SPK[:, :, k].T, self.design) for k in range(values_SPK.shape[2])]


@dataclass(frozen=True)
class PeakSummary:
    """Columns of a variant in the table.

    Attributes:
        cells: by the names in `COLUMNS`; held out as described above, differences paired by seed and prompt with the
            reference.
        axis_peak, axis_peak_low, axis_peak_high: n (or step) at the peak of the mean curve; 95% bootstrap limits over
            prompts and seeds.
        kl_peak: KL estimate there, nats.
        gold_peak_in_sample, gap_in_sample: of the mean curve itself; biased upwards.
    """

    curves: VariantCurves
    cells: dict[str, Cell]
    axis_peak: int
    axis_peak_low: int
    axis_peak_high: int
    kl_peak: float
    gold_peak_in_sample: float
    gap_in_sample: float


def highest(curve: np.ndarray) -> int:
    """First position whose value is the highest up to rounding.

    >>> highest(np.array([0.1, 0.5, 0.5, 0.2]))
    1
    """
    return int(np.argmax(curve >= curve.max() - 1e-12))


def combine_seeds(
    variant: str,
    method: str,
    pool: str,
    by_seed: dict[int, PoolCurves],
    *,
    seed_free: bool = False,
    role: Role = "trained",
) -> VariantCurves:
    """The curves of one variant on one pool from those of its seeds.

    Raises:
        DataError: the seeds were scored on other prompts, gold values or numbers of samples.
    """
    seeds = tuple(sorted(by_seed))
    first = by_seed[seeds[0]]
    for seed in seeds[1:]:
        other = by_seed[seed]
        if (
            other.item_ids != first.item_ids
            or not np.array_equal(other.n, first.n)
            or not np.array_equal(other.oracle, first.oracle)
        ):
            raise DataError(
                f"{variant} on {pool}: seed {seed} was scored on another pool than seed {seeds[0]}. Score the same "
                "items again."
            )
    return VariantCurves(
        variant=variant,
        method=method,
        pool=pool,
        seeds=seeds,
        seed_free=seed_free,
        axis=first.n,
        kl=np.mean([by_seed[seed].kl_estimate.mean(axis=0) for seed in seeds], axis=0),
        kl_bound=first.kl_bound,
        gold=np.stack([by_seed[seed].gold for seed in seeds]),
        proxy=np.stack([by_seed[seed].proxy_standardized for seed in seeds]),
        groups=first.groups,
        notes=tuple(dict.fromkeys(note for seed in seeds for note in by_seed[seed].notes)),
        role=role,
    )


def summarize_peaks(curves: Sequence[VariantCurves], reference: str | None) -> list[PeakSummary]:
    """One summary a variant, all of one pool (or of PPO), in the order given.

    Args:
        reference: the variant that the others are tested against; Holm's correction runs over the variants of a column.

    Raises:
        UserError: the reference is not among the variants.
        DataError: variants with other prompts.
    """
    names = [curve.variant for curve in curves]
    if reference is not None and reference not in names:
        raise UserError(f"The reference '{reference}' is not among the variants compared. {nearest(reference, names)}")
    for curve in curves[1:]:
        if curve.groups != curves[0].groups:
            raise DataError(
                f"{curve.variant} and {curves[0].variant} on {curve.pool} have other prompts, so they cannot be "
                "compared."
            )
    credits = {curve.variant: held_out_credits(curve) for curve in curves}
    left_out = {curve.variant: left_out_columns(curve) for curve in curves}
    cells = {}
    for column in COLUMNS:
        column_credits = {variant: by_column[column] for variant, by_column in credits.items()}
        column_left_out = {variant: by_column.get(column, {}) for variant, by_column in left_out.items()}
        cells[column] = _column_cells(curves, column_credits, column_left_out, reference)
    return [_summary(curve, {column: cells[column][curve.variant] for column in COLUMNS}) for curve in curves]


def held_out_credits(curves: VariantCurves) -> dict[str, np.ndarray]:
    """float64 [P, S] of each of `COLUMNS`: gold at the end, gold at the other half's peak, and the difference."""
    end = curves.gold[:, :, -1].T
    peak = np.empty_like(end)
    halves = half_of_group(curves.groups)
    for half in (0, 1):
        is_read = halves == half
        # With too few prompts for two halves, the peak of all prompts is used; the notes of the table say so.
        source = curves.gold[:, ~is_read] if (~is_read).any() and is_read.any() else curves.gold
        peak[is_read] = curves.gold[:, is_read, highest(source.mean(axis=(0, 1)))].T
    return {"gold_end": end, "gold_peak": peak, "gap": peak - end}


def left_out_columns(curves: VariantCurves) -> dict[str, dict[int, float]]:
    """For each of `COLUMNS`, its value without the member of each seed; empty for a model without members."""
    if curves.left_out is None:
        return {}
    without = [held_out_credits(replace(curves, gold=gold[None])) for gold in curves.left_out]
    by_seed = list(zip(curves.left_out_seeds, without, strict=True))
    return {column: {seed: float(credits[column].mean()) for seed, credits in by_seed} for column in COLUMNS}


def half_of_group(groups: Sequence[str]) -> np.ndarray:
    """0 or 1 for each prompt, int64 [P]: groups in the order of a hash, alternating; a group is never cut."""
    order = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode("utf-8")).hexdigest())
    half = {group: rank % 2 for rank, group in enumerate(order)}
    return np.array([half[group] for group in groups], dtype=np.int64)


def _column_cells(
    curves: Sequence[VariantCurves],
    credits: Mapping[str, np.ndarray],
    left_out: Mapping[str, Mapping[int, float]],
    reference: str | None,
) -> dict[str, Cell]:
    """Estimates, paired differences and verdicts of one column, by the rules of the comparison."""
    variants = {
        curve.variant: VariantValues(
            {seed: credits[curve.variant][:, k] for k, seed in enumerate(curve.seeds)},
            role=curve.role,
            seed_free=curve.seed_free,
            left_out=left_out[curve.variant],
        )
        for curve in curves
    }
    return with_verdicts(column_cells(variants, reference, curves[0].design))


def _summary(curves: VariantCurves, cells: dict[str, Cell]) -> PeakSummary:
    low, high = peak_interval(curves)
    peak = curves.peak
    gold = curves.mean_gold
    return PeakSummary(
        curves=curves,
        cells=cells,
        axis_peak=int(curves.axis[peak]),
        axis_peak_low=low,
        axis_peak_high=high,
        kl_peak=float(curves.kl[peak]),
        gold_peak_in_sample=float(gold[peak]),
        gap_in_sample=float(gold[peak] - gold[-1]),
    )


def peak_interval(curves: VariantCurves, seed: int = 0) -> tuple[int, int]:
    """95% percentile-bootstrap limits of where the peak is, resampling groups of prompts and seeds independently.

    Of S seeds S - 1 are drawn with replacement, which makes the bootstrap variance of a mean over seeds unbiased (Rao
    and Wu, "Resampling inference with complex survey data", JASA 1988); with one seed only prompts are resampled.
    """
    from rm_methods.statistics.bootstrap import resampled_counts

    group = np.unique(np.asarray(curves.groups), return_inverse=True)[1]
    n_seeds, _, points = curves.gold.shape
    sums_SGK = np.zeros((n_seeds, group.max() + 1, points))
    for seed_sums, seed_gold in zip(sums_SGK, curves.gold, strict=True):
        np.add.at(seed_sums, group, seed_gold)
    counts_BG = resampled_counts(group.max() + 1, REPLICATES, seed)
    if n_seeds == 1:
        weights_BS = np.ones((len(counts_BG), 1))
    else:
        drawn = np.random.default_rng(seed).multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), size=REPLICATES)
        weights_BS = np.concatenate([np.ones((1, n_seeds)), drawn])
    curves_BSK = np.tensordot(counts_BG, sums_SGK, axes=(1, 1))
    replicates_BK = np.einsum("bs,bsk->bk", weights_BS, curves_BSK)
    # The number of prompts in a replicate and the weights only scale a whole curve, which does not move its peak.
    peaks = curves.axis[[highest(curve) for curve in replicates_BK[1:]]]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(peaks, [tail, 1 - tail], method="inverted_cdf")
    return int(low), int(high)
