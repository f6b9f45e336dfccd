"""The measures of an evaluation that a model card prints."""

from __future__ import annotations

from dataclasses import dataclass

from rm_methods.statistics.cell import Cell
from rm_methods.statistics.intervals import Estimate


@dataclass(frozen=True)
class MeasuredMetric:
    """One metric of a benchmark; shares from 0 to 1.

    Attributes:
        benchmark: name and title of its card; hub_id, revision and url from there.
        metric, heading: as in metrics.json, and for readers.
        own: of this run.
        method: of all runs of the variant in the comparison, with its difference from the reference; None without a
            comparison.
        content_blind: the best content-blind scorer of the comparison: its name and its value.
        tie_rate: share of comparisons with equal scores; None if not recorded.
        n_truncated: items with a text that was cut; None if not recorded.
    """

    benchmark: str
    title: str
    hub_id: str | None
    revision: str | None
    metric: str
    heading: str
    own: Estimate
    method: Cell | None = None
    content_blind: tuple[str, float] | None = None
    tie_rate: float | None = None
    n_truncated: int | None = None


@dataclass(frozen=True)
class Measured:
    """The evaluation of one run.

    Attributes:
        metrics: in the order of the experiment's table.
        reference: title of the variant that the comparison tests against; None without a comparison.
        notes: sentences on contamination, and on what is missing.
    """

    metrics: tuple[MeasuredMetric, ...] = ()
    reference: str | None = None
    notes: tuple[str, ...] = ()
