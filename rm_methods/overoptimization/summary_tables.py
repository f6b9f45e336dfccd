"""The over-optimization summary as terminal text, Markdown, LaTeX (rounded) and CSV (full precision)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_methods.files import write_text
from rm_methods.overoptimization.curve_fits import CurveFit
from rm_methods.overoptimization.variant_curves import COLUMNS, PeakSummary
from rm_methods.reporting.tables import MISSING, Section, csv_text, latex_text, markdown_text, terminal_text
from rm_methods.statistics.cell import Cell
from rm_methods.statistics.column import MIN_SEEDS
from rm_methods.statistics.corrections import ALPHA


def cell_text(cell: Cell) -> str:
    """Mean ± half of the 95% interval, in units of the gold reward; * differs from the reference, ‡ interval of
    prompts only."""
    text = number_text(cell.estimate.mean)
    if not math.isnan(cell.estimate.half_width):
        text += f" ±{number_text(cell.estimate.half_width)}"
    return text + ("‡" if cell.estimate.basis == "items" else "") + ("*" if cell.verdict == "significant" else "")


def number_text(value: float) -> str:
    """Three decimals below 10, one below 1,000, three digits above.

    >>> number_text(0.12345), number_text(33.0), number_text(-0.0001), number_text(float("nan"))
    ('0.123', '33.0', '0.000', '—')
    """
    if math.isnan(value):
        return MISSING
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.3g}"
    return text.removeprefix("-") if float(text) == 0 else text


def best_of_n_section(title: str, summaries: Sequence[PeakSummary]) -> Section:
    """One row a variant: gold at the largest n, at the peak, n there, the gap."""
    largest = int(summaries[0].curves.axis[-1])
    headings = ("Method", "Seeds", f"Gold at n = {largest}", "Gold at peak", "n at peak", "Gap", "KL at peak")
    rows = [(_method(s), str(len(s.curves.seeds)), *_held_out_texts(s), number_text(s.kl_peak)) for s in summaries]
    return Section(title, headings, tuple(rows), names=2)


def fit_section(title: str, summaries: Sequence[PeakSummary], fits: Mapping[tuple[str, str], CurveFit]) -> Section:
    """The fitted curve of each variant."""
    rows = []
    for summary in summaries:
        fit = fits[summary.curves.pool, summary.curves.variant]
        values = (fit.a, fit.b, fit.best_d, fit.best_reward, fit.r_squared)
        rows.append((_method(summary), str(fit.n_points), *map(number_text, values)))
    return Section(title, ("Method", "Points", "a", "b", "d*", "R*", "R squared"), tuple(rows))


def ppo_sections(
    title: str, summaries: Sequence[PeakSummary], extras: Mapping[str, Mapping[str, float]]
) -> list[Section]:
    """Two tables: gold at the end, at the peak, the step there, the gap; and KL, length, rate of finished responses,
    alarms.

    A variant whose curves end before those of others (a run diverged or was stopped) is marked with †; see
    `early_end_notes`.

    Args:
        extras: variant -> {"kl_end", "length_end", "end_rate", "alarms"}.
    """
    early = _early_ends(summaries)
    names = {s.curves.variant: _method(s) + (" †" if s.curves.variant in early else "") for s in summaries}
    headings = ("Method", "Seeds", "Gold at end", "Gold at peak", "Step at peak", "Gap")
    rows = [(names[s.curves.variant], str(len(s.curves.seeds)), *_held_out_texts(s)) for s in summaries]
    state = []
    for summary in summaries:
        extra = extras[summary.curves.variant]
        state.append(
            (
                names[summary.curves.variant],
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
        Section(title, headings, tuple(rows), names=2),
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
    where = ", ".join(f"{variant} at step {end}" for variant, end in early.items())
    last = max(int(summary.curves.axis[-1]) for summary in summaries)
    return [
        f"†: ended early, so its end is that of a shorter training: {where}; the longest at step {last}. Gold, KL, "
        "tokens and finished at the end are read there (the last step that all seeds of a variant have), and "
        "differences compare policies of different steps."
    ]


def _method(summary: PeakSummary) -> str:
    curves = summary.curves
    return curves.variant if curves.variant == curves.method else f"{curves.variant} ({curves.method})"


def _held_out_texts(summary: PeakSummary) -> tuple[str, str, str, str]:
    """Gold at the end, gold at the peak, where the peak is, the gap."""
    low, high = summary.axis_peak_low, summary.axis_peak_high
    place = str(summary.axis_peak) if low == high else f"{summary.axis_peak} [{low}, {high}]"
    end, peak, gap = (cell_text(summary.cells[column]) for column in COLUMNS)
    return end, peak, place, gap


def footnotes(summaries: Sequence[PeakSummary], reference: str | None, axis: str) -> list[str]:
    """How the columns are to be read."""
    cells = [cell for summary in summaries for cell in summary.cells.values()]
    notes = ["Gold in its own units, mean over seeds ± half of a 95% interval."]
    if any(cell.estimate.basis == "seeds and items" for cell in cells):
        notes[0] = "Gold in its own units, mean over seeds ± half of a 95% interval that counts both seeds and prompts."
    if any(cell.estimate.basis == "items" for cell in cells):
        notes.append("‡: one run only; its interval counts prompts, not seeds.")
    notes.append(
        f"Gold at peak and gap (peak less end) are held out: each half of the prompts is read at the {axis} where the "
        f"other half is highest. Without over-optimization the gap is at most 0 on average. {axis} at peak: of the "
        "mean curve, 95% bootstrap limits."
    )
    if len({group for summary in summaries for group in summary.curves.groups}) < 2:
        notes.append("One prompt only: there are no two halves, so the peak is not held out.")
    verdicts = {cell.verdict for cell in cells}
    if verdicts & {"significant", "not significant"}:
        notes.append(
            f"*: differs from {reference} at the {ALPHA:.0%} level, paired by seed and prompt, Holm-corrected over the "
            "column."
        )
    few = [
        s.curves.variant
        for s in summaries
        if s.cells["gap"].verdict == "not enough evidence" and len(s.curves.seeds) < MIN_SEEDS
    ]
    if few:
        notes.append(
            f"Not enough evidence to compare with {reference} (fewer than {MIN_SEEDS} paired seeds): {', '.join(few)}."
        )
    notes += dict.fromkeys(note for summary in summaries for note in summary.curves.notes)
    return list(dict.fromkeys(notes))


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
        }
        for column in COLUMNS:
            record |= _cell_record(column, summary.cells[column])
        records.append(record | fit_record(fits[curves.pool, curves.variant]))
    return records


def _cell_record(column: str, cell: Cell) -> dict[str, Any]:
    record: dict[str, Any] = {
        column: cell.estimate.mean,
        f"{column}_low": cell.estimate.low,
        f"{column}_high": cell.estimate.high,
    }
    difference = cell.difference
    return record | {
        f"{column}_difference": difference.estimate.mean if difference else math.nan,
        f"{column}_difference_low": difference.estimate.low if difference else math.nan,
        f"{column}_difference_high": difference.estimate.high if difference else math.nan,
        f"{column}_p_holm": cell.p_holm,
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
    stem: str, sections: Sequence[Section], notes: Sequence[str], records: Sequence[Mapping[str, Any]], folder: Path
) -> dict[str, Path]:
    """Write `<stem>.txt`, `.md`, `.tex` and `.csv`; returns them by name."""
    texts = {
        f"{stem}.txt": terminal_text(sections, notes),
        f"{stem}.md": markdown_text(sections, notes),
        f"{stem}.tex": latex_text(sections, notes),
        f"{stem}.csv": csv_text(records),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return {name: folder / name for name in texts}
