"""The findings as terminal text, Markdown and LaTeX (rounded), and all findings as tidy CSV (full precision)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rm_methods.diagnostics.findings import GROUPS, UNDECIDED, Finding, Findings, Place
from rm_methods.diagnostics.position_bins import LATE_STAGES, STAGES
from rm_methods.experiment.diagnosed_runs import MEASURES, MODES
from rm_methods.reporting.tables import MISSING, Section, csv_text
from rm_methods.statistics.bootstrap import LENGTH_BINS, MIN_CLUSTERS, REPLICATES

SHOWN_PERCENTS = (0, 30, 60, 80, 90)
CSV_FIELDS = (
    "benchmark",
    "subset",
    "variant",
    "seed",
    "quantity",
    "measure",
    "version",
    "group",
    "position",
    "value",
    "low",
    "high",
)


def sections(findings: Findings) -> list[Section]:
    """One table for each measure of attention, one for masking."""
    late = f"mass in the last {LATE_STAGES} of {STAGES} stages, misclassified minus correct, in points"
    found = []
    for measure, name in MEASURES.items():
        headings = ("Data", "Method", "Correct / wrong", "Raw", "Controlled", "Seeds above 0", "Dropped")
        rows = tuple(_attention_row(findings, place, measure) for place in findings.places())
        title = f"{name[0].upper()}{name[1:]}: {late}"
        found.append(Section(title, headings, rows, names=2, left_aligned=2, once=True))
    headings = ("Data", "Method", "Hidden", *(f"{percent}%" for percent in SHOWN_PERCENTS))
    rows = tuple(_masking_row(findings, place, mode) for place in findings.places() for mode in MODES)
    title = "Pair accuracy with the first part of the text hidden, in percent"
    return [*found, Section(title, headings, rows, names=3, left_aligned=3, once=True)]


def _attention_row(findings: Findings, place: Place, measure: str) -> tuple[str, ...]:
    correct, wrong = (findings.find(place, "pairs", "", group=group)[0].value for group in GROUPS)
    gaps = [findings.find(place, "late_gap", measure, version) for version in ("raw", "controlled")]
    per_seed = [
        gap.value
        for seed in findings.seeds[place.variant]
        for gap in findings.find(
            Place(place.benchmark, place.subset, place.variant, seed), "late_gap", measure, "controlled"
        )
        if not math.isnan(gap.value)
    ]
    dropped = findings.find(place, "dropped_mass", measure)[0].value
    above = f"{sum(value > 0 for value in per_seed)} of {len(per_seed)}"
    counts = f"{correct:.0f} / {wrong:.0f}"
    return (_data(place), place.variant, counts, *(_gap_text(gap) for gap in gaps), above, f"{100 * dropped:.0f}%")


def _masking_row(findings: Findings, place: Place, mode: str) -> tuple[str, ...]:
    by_percent = {f.position: f for f in findings.find(place, "accuracy", mode)}
    return (_data(place), place.variant, mode, *(_accuracy_text(by_percent[percent]) for percent in SHOWN_PERCENTS))


def _data(place: Place) -> str:
    return f"{place.benchmark}: {place.subset}"


def _gap_text(gap: list[Finding]) -> str:
    if not gap or math.isnan(gap[0].value):
        return MISSING
    value, low, high = (_points(x) for x in (gap[0].value, gap[0].low, gap[0].high))
    return value if math.isnan(gap[0].low) else f"{value} [{low}, {high}]"


def _points(fraction: float) -> str:
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _accuracy_text(accuracy: Finding) -> str:
    text = f"{100 * accuracy.value:.1f}"
    return text if math.isnan(accuracy.low) else f"{text} ±{50 * (accuracy.high - accuracy.low):.1f}"


def notes(findings: Findings, left_out: Mapping[str, str]) -> list[str]:
    """What a reader must know, in the order in which it is needed."""
    seeds = sorted({len(own) for own in findings.seeds.values()})
    found = [
        f"Seeds pooled: {' or '.join(map(str, seeds))}. 95% bootstrap intervals ({REPLICATES} replicates) count items, not seeds; "
        "'Seeds above 0' says in how many runs the controlled difference is positive.",
        "Raw: misclassified and correct sequences are compared seed by seed. Controlled: also at the same lengths "
        f"({LENGTH_BINS} quantile bins), and without the first token and the chat template's tokens; 'Dropped' is the mass on those.",
        f"No interval where one of the groups has fewer than {MIN_CLUSTERS} items; {MISSING} where one is empty.",
        "Hidden: the first part of all text (sequence), or of the response only (response). A tie earns 0.5 here.",
    ]
    few = [
        f"{_data(place)}, {place.variant}"
        for place in findings.places()
        if not findings.find(place, "pairs", "", group=GROUPS[1])[0].value
    ]
    if few:
        found.append(f"Nothing misclassified, so nothing to compare: {'; '.join(few)}.")
    tied = [
        f"{_data(place)}, {place.variant} {undecided:.0f}"
        for place in findings.places()
        if (undecided := findings.find(place, "pairs", "", group=UNDECIDED)[0].value)
    ]
    if tied:
        found.append(
            f"Pairs that are tied or could not be scored count as neither correct nor wrong: {'; '.join(tied)}."
        )
    report = next(iter(findings.reports.values()))
    for name, counts in report["benchmarks"].items():
        parts = [f"{counts['n_pairs']} pairs of {counts['n_items']} items"]
        parts += [f"{counts['not_drawn']} left out by diagnostics.limit"] if counts["not_drawn"] else []
        parts += [f"{counts['not_a_pair']} without one best of two responses"] if counts["not_a_pair"] else []
        parts += [f"{counts['n_truncated']} with a text cut to fit the model"] if counts["n_truncated"] else []
        found.append(f"{name}: {', '.join(parts)}.")
    layers = {(tuple(r["layers"]), r["n_layers"]) for r in findings.reports.values()}
    for numbers, count in sorted(layers):
        which = (
            f"all layers ({count})" if len(numbers) == count else f"layers {', '.join(map(str, numbers))} of {count}"
        )
        found.append(f"Attention is averaged over heads and {which}.")
    if left_out:
        found.append(f"Not diagnosed: {'; '.join(f'{variant} ({reason})' for variant, reason in left_out.items())}.")
    return found


def csv_of_findings(findings: Findings) -> str:
    """One line a finding; an empty seed is all seeds pooled, an empty value is undefined."""
    records = []
    for finding in findings.entries:
        place = finding.place
        records.append(
            {
                "benchmark": place.benchmark,
                "subset": place.subset,
                "variant": place.variant,
                "seed": place.seed,
                "quantity": finding.quantity,
                "measure": finding.measure,
                "version": finding.version,
                "group": finding.group,
                "position": finding.position,
                "value": finding.value,
                "low": finding.low,
                "high": finding.high,
            }
        )
    return csv_text(records, CSV_FIELDS)
