"""What a Best-of-N or PPO table found, in sentences: the first lines below it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rm_methods.overoptimization.numbers import number_text, signed_text
from rm_methods.overoptimization.variant_curves import PeakSummary
from rm_methods.reporting.sentences import column_sentence, detectable_sentence, interval_text, listed, no_test_sentence
from rm_methods.statistics.cell import Cell
from rm_methods.statistics.intervals import Estimate

ROUNDING = 1e-12  # a gap at or below this is rounding


def verdict(summaries: Sequence[PeakSummary], reference: str | None, axis: str) -> list[str]:
    """Sentences: whether each method is over-optimized, who falls more or less than the reference, what could not have
    been seen.

    Args:
        summaries: of one table.
        axis: "n" or "step".
    """
    sentences = [_fall_sentence(summary, axis) for summary in summaries]
    base = next((summary for summary in summaries if summary.curves.variant == reference), None)
    if base is None:
        return sentences
    rivals = [s for s in summaries if s is not base and s.curves.role == "trained"]
    end = f"Gold at {_place(axis, int(base.curves.axis[-1]))}" if axis == "n" else "Gold at the end"
    columns = [("gap", "Gap", ("larger", "smaller")), ("gold_end", end, ("higher", "lower"))]
    if not any(cell.tested for s in rivals for cell in s.cells.values()):
        is_single = base.curves.role != "trained" or len(base.curves.seeds) < 2
        sentences.append(no_test_sentence(base.curves.label, is_single, has_rivals=bool(rivals)))
    else:
        for column, heading, words in columns:
            tested = [(s.curves.label, s.cells[column]) for s in rivals if s.cells[column].tested]
            sentences.append(column_sentence(heading, base.curves.label, tested, signed_text, words))
    sentences += _untested(summaries, base)
    sentences += _limits_of_sight(summaries, base)
    return sentences


def _fall_sentence(summary: PeakSummary, axis: str) -> str:
    """Whether gold falls behind its peak while the proxy rises."""
    label = summary.curves.label
    gap = summary.cells["gap"].estimate
    size = interval_text(gap, number_text)
    only = ", of one model: prompts only" if summary.curves.counts_items_only(gap) else ""
    if abs(gap.mean) < ROUNDING:
        return f"{label}: no fall; both halves of the prompts have their highest gold at the end."
    if math.isnan(gap.low):
        return f"{label}: gap {size}, without an interval, so no fall is shown."
    if gap.low > 0:
        peak = _place(axis, summary.axis_peak)
        proxy = _proxy_text(summary.proxy_rise)
        return f"{label}: gold peaks near {peak} and then falls by {size}{only}, while the proxy {proxy}."
    if gap.high < 0:
        return f"{label}: no fall; gold is higher at the end than at the held-out peak, gap {size}{only}."
    return f"{label}: a fall is not told apart from 0, gap {size}{only}."


def _place(axis: str, value: int) -> str:
    return f"n = {value}" if axis == "n" else f"{axis} {value}"


def _proxy_text(rise: Estimate) -> str:
    size = interval_text(rise, signed_text)
    if math.isnan(rise.low) or rise.low <= 0 <= rise.high:
        return f"is not shown to rise ({size} standard deviations)"
    return f"{'rises' if rise.mean > 0 else 'falls, too'} ({size} standard deviations)"


def _untested(summaries: Sequence[PeakSummary], base: PeakSummary) -> list[str]:
    """Differences of the gap that no test stands behind."""
    texts = []
    for summary in summaries:
        cell = summary.cells["gap"]
        is_combined = summary.curves.role == "combined"
        if is_combined and summary is not base and cell.difference is not None and not cell.tested:
            texts.append(f"{summary.curves.label} {interval_text(cell.difference.estimate, signed_text)}")
    if not texts:
        return []
    return [f"Difference of the gap from that of {base.curves.label}, without a test: {'; '.join(texts)}."]


def _limits_of_sight(summaries: Sequence[PeakSummary], base: PeakSummary) -> list[str]:
    """What the tests could not have shown."""
    sizes = []
    cells: list[Cell] = []
    for column, name in (("gap", "in the gap"), ("gold_end", "in gold at the end")):
        if not math.isnan(base.detectable[column]):
            sizes.append(f"{number_text(base.detectable[column])} {name}")
            cells += [s.cells[column] for s in summaries if s.cells[column].tested]
    return [detectable_sentence(listed(sizes), cells, "prompts")] if sizes else []
