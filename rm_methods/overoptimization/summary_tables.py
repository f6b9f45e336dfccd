"""The over-optimization summary as terminal text, Markdown, LaTeX (rounded) and CSV (full precision)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_methods.files import write_text
from rm_methods.overoptimization.curve_fits import CurveFit
from rm_methods.overoptimization.numbers import number_text, signed_text
from rm_methods.overoptimization.variant_curves import COLUMNS, PeakSummary, VariantCurves
from rm_methods.reporting.footnotes import NotedRow, TableWords, difference_notes, interval_notes
from rm_methods.reporting.sentences import DETECTABLE, DIFFERENCE, reach_text
from rm_methods.reporting.tables import MISSING, Section, csv_text, latex_text, markdown_text, terminal_text
from rm_methods.statistics.cell import Cell
from rm_methods.statistics.intervals import Estimate


def cell_text(cell: Cell, curves: VariantCurves) -> str:
    """Mean ± half of the 95% interval, in units of the gold reward; ``(±)`` where seeds are not counted."""
    return number_text(cell.estimate.mean) + _reach(cell.estimate, curves)


def difference_cell_text(cell: Cell, curves: VariantCurves) -> str:
    """Difference from the reference, as `cell_text`; * is significant; empty for the reference itself."""
    if cell.difference is None or math.isnan(cell.difference.estimate.mean):
        return "" if cell.verdict == "reference" else MISSING
    difference = cell.difference.estimate
    star = "*" if cell.verdict == "significant" else ""
    return f"{signed_text(difference.mean)}{_reach(difference, curves)}{star}"


def _reach(estimate: Estimate, curves: VariantCurves) -> str:
    if math.isnan(estimate.half_width):
        return ""
    return reach_text(number_text(estimate.half_width), items_only=curves.counts_items_only(estimate))


def best_of_n_section(title: str, summaries: Sequence[PeakSummary], reference: str | None) -> Section:
    """One row a variant: gold at the largest n, at the peak, the gap, n at the peak."""
    largest = int(summaries[0].curves.axis[-1])
    return _held_out_section(title, summaries, reference, f"Gold at n = {largest}", ("n at peak", "KL at peak"))


def _held_out_section(
    title: str, summaries: Sequence[PeakSummary], reference: str | None, end: str, last: tuple[str, ...]
) -> Section:
    """One row a variant: each of `COLUMNS` with the difference from the reference, then where the peak is, and seeds.

    Args:
        end: heading of the gold at the end.
        last: headings of the place of the peak and, optionally, the KL there.
    """
    early = _early_ends(summaries)
    with_difference = len(summaries) > 1 and any(summary.curves.variant == reference for summary in summaries)
    blind = [summary for summary in summaries if summary.curves.role == "content_blind"]
    trained = [summary for summary in summaries if summary.curves.role != "content_blind"]
    rows = []
    for summary in [*trained, *blind]:
        texts = [_method(summary, early)]
        for column in COLUMNS:
            texts.append(cell_text(summary.cells[column], summary.curves))
            if with_difference:
                texts.append(difference_cell_text(summary.cells[column], summary.curves))
        places = (_peak_place(summary), number_text(summary.kl_peak))
        rows.append((*texts, *places[: len(last)], str(len(summary.curves.seeds))))
    rules = [len(trained)] if trained and blind else []
    detectable = summaries[0].detectable
    if with_difference and any(not math.isnan(value) for value in detectable.values()):
        texts = [DETECTABLE]
        for column in COLUMNS:
            texts += ["", number_text(detectable[column])]
        rules.append(len(rows))
        rows.append((*texts, *[""] * (len(last) + 1)))
    headings = ["Method"]
    for heading in (end, "Gold at peak", "Gap"):
        headings += [heading, DIFFERENCE] if with_difference else [heading]
    return Section(
        title=title,
        headings=(*headings, *last, "Seeds"),
        rows=tuple(rows),
        together=(2 if with_difference else 1,) * len(COLUMNS) + (len(last) + 1,),
        rules=tuple(rules),
        italic=frozenset(range(len(trained), len(trained) + len(blind))),
    )


def fit_section(title: str, summaries: Sequence[PeakSummary], fits: Mapping[tuple[str, str], CurveFit]) -> Section:
    """The fitted curve of each variant."""
    rows = []
    for summary in summaries:
        fit = fits[summary.curves.pool, summary.curves.variant]
        values = (fit.a, fit.b, fit.best_d, fit.best_reward, fit.r_squared)
        rows.append((summary.curves.label, str(fit.n_points), *map(number_text, values)))
    return Section(title, ("Method", "Points", "a", "b", "d*", "R*", "R squared"), tuple(rows))


def ppo_sections(
    title: str, summaries: Sequence[PeakSummary], extras: Mapping[str, Mapping[str, float]], reference: str | None
) -> list[Section]:
    """Two tables: gold at the end, at the peak, the gap, the step at the peak; and KL, length, rate of finished
    responses, alarms.

    A variant whose curves end before those of others (a run diverged or was stopped) is marked with †; see
    `early_end_notes`.

    Args:
        extras: variant -> {"kl_end", "length_end", "end_rate", "alarms"}.
    """
    early = _early_ends(summaries)
    state = []
    for summary in summaries:
        extra = extras[summary.curves.variant]
        state.append(
            (
                _method(summary, early),
                str(len(summary.curves.seeds)),
                number_text(summary.kl_peak),
                number_text(extra["kl_end"]),
                f"{extra['length_end']:.1f}",
                f"{100 * extra['end_rate']:.0f}%",
                f"{extra['alarms']:.0f}",
            )
        )
    state_headings = ("Method", "Seeds", "KL at peak", "KL at end", "Tokens", "Finished", "Alarms")
    return [
        _held_out_section(title, summaries, reference, "Gold at end", ("Step at peak",)),
        Section("State of the policies", state_headings, tuple(state), names=2),
    ]


def _early_ends(summaries: Sequence[PeakSummary]) -> dict[str, int]:
    """Variants whose curves end before the longest of the table, and at which step."""
    ends = {summary.curves.variant: int(summary.curves.axis[-1]) for summary in summaries}
    return {variant: end for variant, end in ends.items() if end < max(ends.values())}


def early_end_notes(summaries: Sequence[PeakSummary]) -> list[str]:
    """What † of `ppo_sections` means; nothing where all variants end at one step."""
    early = _early_ends(summaries)
    if not early:
        return []
    labels = {summary.curves.variant: summary.curves.label for summary in summaries}
    where = ", ".join(f"{labels[variant]} at step {end}" for variant, end in early.items())
    last = max(int(summary.curves.axis[-1]) for summary in summaries)
    return [
        f"†: ended early, so its end is that of a shorter training: {where}; the longest at step {last}. Gold, KL, "
        "tokens and finished at the end are read there (the last step that all seeds of a variant have), and "
        "differences compare policies of different steps."
    ]


def _method(summary: PeakSummary, early: Mapping[str, int]) -> str:
    return summary.curves.label + (" †" if summary.curves.variant in early else "")


def _peak_place(summary: PeakSummary) -> str:
    low, high = summary.axis_peak_low, summary.axis_peak_high
    return str(summary.axis_peak) if low == high else f"{summary.axis_peak} [{low}, {high}]"


def footnotes(tables: Sequence[Sequence[PeakSummary]], reference: str | None, axis: str) -> list[str]:
    """How the columns are to be read.

    Args:
        tables: the summaries of each pool, or those of PPO.
        axis: "n" or "step".
    """
    notes: list[str] = []
    words = TableWords("Gold in its own units", "", "prompts")
    for summaries in tables:
        notes += _table_notes(summaries, reference, words)
    notes.append(
        f"Gold at peak and gap (peak less end) are held out: each half of the prompts is read at the {axis} where the "
        f"other half is highest. Without over-optimization the gap is at most 0 on average. {axis} at peak: of the "
        "mean curve, 95% bootstrap limits."
    )
    if any(len(set(summary.curves.groups)) < 2 for summaries in tables for summary in summaries):
        notes.append("One prompt only: there are no two halves, so the peak is not held out, and nothing is tested.")
    notes += [note for summaries in tables for summary in summaries for note in summary.curves.notes]
    return list(dict.fromkeys(notes))


def _table_notes(summaries: Sequence[PeakSummary], reference: str | None, words: TableWords) -> list[str]:
    rows = {}
    for summary in summaries:
        curves = summary.curves
        rows[curves.variant] = NotedRow(
            label=curves.label,
            role=curves.role,
            n_models=len(curves.seeds),
            fixed=curves.seed_free,
            cells=tuple(summary.cells[column] for column in COLUMNS),
        )
    noted = list(rows.values())
    notes = interval_notes(noted, words)
    if reference in rows and len(rows) > 1:
        family = "the trained methods of the column"
        headings = ("gold at the end", "gold at peak", "gap")
        notes += difference_notes(noted, rows[reference], headings, family, words)
    elif reference is not None and reference not in rows:
        notes.append(f"{summaries[0].curves.pool}: no differences, because {reference} has no run there.")
    return notes


def table_records(
    summaries: Sequence[PeakSummary], reference: str | None, fits: Mapping[tuple[str, str], CurveFit]
) -> list[dict[str, Any]]:
    """One record a variant for the CSV: every column with its interval, difference and p value, unrounded."""
    records = []
    for summary in summaries:
        curves = summary.curves
        record: dict[str, Any] = {
            "pool": curves.pool,
            "variant": curves.variant,
            "method": curves.method,
            "title": curves.title,
            "role": curves.role,
            "n_seeds": len(curves.seeds),
            "n_prompts": len(curves.groups),
            "reference": reference or "",
            "end": int(curves.axis[-1]),
            "peak": summary.axis_peak,
            "peak_low": summary.axis_peak_low,
            "peak_high": summary.axis_peak_high,
            "kl_peak": summary.kl_peak,
            "kl_end": float(curves.kl[-1]),
            "gold_start": float(curves.mean_gold[0]),
            "gold_peak_in_sample": summary.gold_peak_in_sample,
            "gap_in_sample": summary.gap_in_sample,
            "proxy_rise": summary.proxy_rise.mean,
            "proxy_rise_low": summary.proxy_rise.low,
            "proxy_rise_high": summary.proxy_rise.high,
        }
        for column in COLUMNS:
            record |= _cell_record(column, summary.cells[column], summary.detectable[column])
        records.append(record | fit_record(fits[curves.pool, curves.variant]))
    return records


def _cell_record(column: str, cell: Cell, detectable: float) -> dict[str, Any]:
    """Values without a difference or a test are missing, so that nobody reads one that is not defined."""
    difference = cell.difference
    estimate = difference.estimate if difference is not None else None
    return {
        column: cell.estimate.mean,
        f"{column}_low": cell.estimate.low,
        f"{column}_high": cell.estimate.high,
        f"{column}_basis": cell.estimate.basis,
        f"{column}_difference": estimate.mean if estimate is not None else None,
        f"{column}_difference_low": estimate.low if estimate is not None else None,
        f"{column}_difference_high": estimate.high if estimate is not None else None,
        f"{column}_difference_basis": estimate.basis if estimate is not None else None,
        f"{column}_pairing": difference.pairing if difference is not None else None,
        f"{column}_p": difference.p_value if difference is not None and cell.tested else None,
        f"{column}_p_holm": cell.p_holm if cell.tested else None,
        f"{column}_detectable_difference": detectable if cell.tested else None,
        f"{column}_verdict": cell.verdict,
    }


def fit_record(fit: CurveFit) -> dict[str, Any]:
    """The columns of a fit."""
    return {
        "fit_form": fit.form,
        "fit_a": fit.a,
        "fit_b": fit.b,
        "fit_best_d": fit.best_d,
        "fit_best_reward": fit.best_reward,
        "fit_r_squared": fit.r_squared,
        "fit_points": fit.n_points,
        "fit_refused": fit.refused,
    }


def write_tables(
    stem: str,
    sections: Sequence[Section],
    notes: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    folder: Path,
    verdict: Sequence[str],
) -> dict[str, Path]:
    """Write `<stem>.txt`, `.md`, `.tex` and `.csv`; returns them by name."""
    texts = {
        f"{stem}.txt": terminal_text(sections, notes, verdict=verdict),
        f"{stem}.md": markdown_text(sections, notes, verdict=verdict),
        f"{stem}.tex": latex_text(sections, notes, verdict=verdict),
        f"{stem}.csv": csv_text(records),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return {name: folder / name for name in texts}
