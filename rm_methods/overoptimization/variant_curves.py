"""Variants on one pool: mean curves with bands, where they peak, how far they fall, and paired differences from a
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
from rm_methods.reporting.footnotes import counts_items_only
from rm_methods.reporting.sentences import method_label
from rm_methods.statistics.cell import Cell, with_verdicts
from rm_methods.statistics.column import Role, VariantValues, column_cells, detectable_difference
from rm_methods.statistics.designs import ItemDesign, item_design
from rm_methods.statistics.intervals import Estimate

COLUMNS = ("gold_end", "gold_peak", "gap")
REPLICATES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class VariantCurves:
    """All seeds of one variant along one axis: n of Best-of-n on a pool, or the steps of PPO.

    S seeds, P prompts, K points of the axis.

    Attributes:
        variant, method, pool: names; title: of the method, for readers ("" takes the name).
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
    title: str = ""

    @property
    def label(self) -> str:
        """What tables and figures call the variant."""
        return method_label(self.variant, self.method, self.title or self.method)

    def counts_items_only(self, estimate: Estimate) -> bool:
        """Whether an interval leaves out what another training would change."""
        return counts_items_only(estimate, fixed=self.seed_free)

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


@dataclass(frozen=True)
class PeakSummary:
    """Columns of a variant in the table.

    Attributes:
        cells: by the names in `COLUMNS`; held out as described above, differences paired by seed and prompt with the
            reference.
        proxy_rise: standardized proxy at the end less that at the other half's peak of gold.
        detectable: by the names in `COLUMNS`, the least detectable difference of the table's column; NaN without a
            test.
        axis_peak, axis_peak_low, axis_peak_high: n (or step) at the peak of the mean curve; 95% bootstrap limits over
            prompts and seeds.
        kl_peak: KL estimate there, nats.
        gold_peak_in_sample, gap_in_sample: of the mean curve itself; biased upwards.
    """

    curves: VariantCurves
    cells: dict[str, Cell]
    proxy_rise: Estimate
    detectable: dict[str, float]
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
    title: str = "",
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
        title=title,
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
        cells[column] = _column_cells(curves, column_credits, reference, column_left_out)
    proxy_rises = _column_cells(curves, {curve.variant: proxy_rise_credits(curve) for curve in curves}, None)
    detectable = {
        column: detectable_difference(by_variant, sum(cell.tested for cell in by_variant.values()))
        for column, by_variant in cells.items()
    }
    return [
        _summary(
            curve,
            {column: cells[column][curve.variant] for column in COLUMNS},
            proxy_rises[curve.variant].estimate,
            detectable,
        )
        for curve in curves
    ]


def held_out_credits(curves: VariantCurves) -> dict[str, np.ndarray]:
    """float64 [P, S] of each of `COLUMNS`: gold at the end, gold at the other half's peak, and the difference.

    The means are the values of the columns.  The spread of the last two also counts that other prompts and seeds would
    move the peak (`_selection_effects`).
    """
    end = curves.gold[:, :, -1].T
    halves = half_of_group(curves.groups)
    peaks = _half_peaks(curves.gold, halves)
    peak = _read(curves.gold, halves, peaks) + _selection_effects(curves, halves, peaks)
    return {"gold_end": end, "gold_peak": peak, "gap": peak - end}


def proxy_rise_credits(curves: VariantCurves) -> np.ndarray:
    """Standardized proxy at the end less that at the other half's peak of gold, float64 [P, S]."""
    halves = half_of_group(curves.groups)
    return curves.proxy[:, :, -1].T - _read(curves.proxy, halves, _half_peaks(curves.gold, halves))


def _half_peaks(gold_SPK: np.ndarray, halves: np.ndarray) -> tuple[int, int]:
    """Position of the highest mean gold of each half.

    With too few prompts for two halves, it is that of all prompts; the notes of the table say so.
    """
    both = (halves == 0).any() and (halves == 1).any()
    first, second = (gold_SPK[:, halves == half] if both else gold_SPK for half in (0, 1))
    return highest(first.mean(axis=(0, 1))), highest(second.mean(axis=(0, 1)))


def _read(values_SPK: np.ndarray, halves: np.ndarray, peaks: tuple[int, int]) -> np.ndarray:
    """Each prompt's value at the peak of the other half, float64 [P, S]."""
    position = np.where(halves == 0, peaks[1], peaks[0])
    return np.take_along_axis(values_SPK, position[None, :, None], axis=2)[:, :, 0].T


def _selection_effects(curves: VariantCurves, halves: np.ndarray, peaks: tuple[int, int]) -> np.ndarray:
    """What each prompt and seed adds to the gold read because it helps to place the peaks: float64 [P, S], mean 0.

    The two halves are not independent: each places the peak at which the other is read.  With D_j the change of the
    mean gold read when group j (of J) is left out of the placing, the jackknife's pseudo-value (Efron and Stein 1981)
    of group j holds -(J - 1) D_j beside its gold; likewise for the seeds.  Without this the interval is far too short
    where the peak is flat (docs/overoptimization.md).
    """
    n_seeds, n_prompts, _ = curves.gold.shape
    group = np.unique(np.asarray(curves.groups), return_inverse=True)[1]
    n_groups = int(group.max()) + 1
    by_prompt = curves.gold.mean(axis=0)
    sums = [by_prompt[halves == half].sum(axis=0) for half in (0, 1)]

    def reading(at: tuple[int, int]) -> float:
        return float(sums[0][at[1]] + sums[1][at[0]]) / n_prompts

    of_prompt = np.zeros(n_prompts)
    for j in range(n_groups):
        members = group == j
        half = int(halves[members][0])
        left = int((halves == half).sum() - members.sum())
        if left == 0:
            continue  # without its only group a half would place no peak
        moved = highest((sums[half] - by_prompt[members].sum(axis=0)) / left)
        change = reading((moved, peaks[1]) if half == 0 else (peaks[0], moved)) - reading(peaks)
        of_prompt[members] = -(n_groups - 1) * change * n_prompts / (n_groups * members.sum())
    of_seed = np.zeros(n_seeds)
    for s in range(n_seeds if n_seeds > 1 else 0):
        moved_peaks = _half_peaks(np.delete(curves.gold, s, axis=0), halves)
        of_seed[s] = -(n_seeds - 1) * (reading(moved_peaks) - reading(peaks))
    return (of_prompt - of_prompt.mean())[:, None] + (of_seed - of_seed.mean())[None, :]


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
    reference: str | None,
    left_out: Mapping[str, Mapping[int, float]] | None = None,
) -> dict[str, Cell]:
    """Estimates, paired differences and verdicts of one column, by the rules of the comparison.

    Args:
        credits: of each variant, float64 [P, S].
        left_out: of each variant, member's seed -> the column without that member.
    """
    variants = {
        curve.variant: VariantValues(
            {seed: credits[curve.variant][:, k] for k, seed in enumerate(curve.seeds)},
            role=curve.role,
            seed_free=curve.seed_free,
            left_out=left_out[curve.variant] if left_out is not None else {},
            may_be_share=False,
        )
        for curve in curves
    }
    return with_verdicts(column_cells(variants, reference, curves[0].design))


@dataclass(frozen=True)
class Bands:
    """A variant's intervals at every point of its axis.

    Attributes:
        gold, proxy: mean and interval, K each.
        difference: of gold to the reference, at the points that the reference has; None for the reference itself, and
            without one.
    """

    gold: list[Estimate]
    proxy: list[Estimate]
    difference: dict[int, Estimate] | None


def bands(curves: Sequence[VariantCurves], reference: str | None) -> dict[str, Bands]:
    """Intervals of every variant along its axis, by the rules of the tables; variants of PPO may end at other steps."""
    drawn = {
        curve.variant: Bands([], [], None if reference is None or curve.variant == reference else {})
        for curve in curves
    }
    for point in sorted({int(place) for curve in curves for place in curve.axis}):
        present = [curve for curve in curves if point in curve.axis]
        at = {curve.variant: int(np.flatnonzero(curve.axis == point)[0]) for curve in present}
        left_out = {curve.variant: _left_out_at(curve, at[curve.variant]) for curve in present}
        gold = {curve.variant: curve.gold[:, :, at[curve.variant]].T for curve in present}
        proxy = {curve.variant: curve.proxy[:, :, at[curve.variant]].T for curve in present}
        for variant, cell in _column_cells(present, gold, reference, left_out).items():
            drawn[variant].gold.append(cell.estimate)
            difference = drawn[variant].difference
            if difference is not None and cell.difference is not None:
                difference[point] = cell.difference.estimate
        for variant, cell in _column_cells(present, proxy, None).items():
            drawn[variant].proxy.append(cell.estimate)
    return drawn


def _left_out_at(curve: VariantCurves, k: int) -> dict[int, float]:
    if curve.left_out is None:
        return {}
    means = curve.left_out[:, :, k].mean(axis=1)
    return {seed: float(mean) for seed, mean in zip(curve.left_out_seeds, means, strict=True)}


def _summary(
    curves: VariantCurves, cells: dict[str, Cell], proxy_rise: Estimate, detectable: dict[str, float]
) -> PeakSummary:
    low, high = peak_interval(curves)
    peak = curves.peak
    gold = curves.mean_gold
    return PeakSummary(
        curves=curves,
        cells=cells,
        proxy_rise=proxy_rise,
        detectable=detectable,
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
