"""The findings as terminal text, Markdown and LaTeX (rounded), and all findings as tidy CSV (full precision)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from rm_methods.diagnostics.findings import GROUPS, UNDECIDED, Finding, Findings, Scope
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
    attention_headings = ("Data", "Method", "Correct / wrong", "Raw", "Controlled", "Seeds above 0", "Dropped")
    result = []
    for measure, name in MEASURES.items():
        rows = tuple(_attention_row(findings, scope, measure) for scope in findings.scopes())
        title = f"{name[0].upper()}{name[1:]}: {late}"
        result.append(Section(title, attention_headings, rows, names=2, left_aligned=2, once=True))
    masking_headings = ("Data", "Method", "Hidden", *(f"{percent}%" for percent in SHOWN_PERCENTS))
    rows = tuple(_masking_row(findings, scope, mode) for scope in findings.scopes() for mode in MODES)
    title = "Pair accuracy with the first part of the text hidden, in percent"
    result.append(Section(title, masking_headings, rows, names=3, left_aligned=3, once=True))
    return result


def _attention_row(findings: Findings, scope: Scope, measure: str) -> tuple[str, ...]:
    correct, wrong = (findings.find(scope, "pairs", "", group=group)[0].value for group in GROUPS)
    gaps = [findings.find(scope, "late_gap", measure, version) for version in ("raw", "controlled")]
    gaps_of_seeds = []
    for seed in findings.seeds[scope.variant]:
        for gap in findings.find(replace(scope, seed=seed), "late_gap", measure, "controlled"):
            if not math.isnan(gap.value):
                gaps_of_seeds.append(gap.value)
    dropped = findings.find(scope, "dropped_mass", measure)[0].value
    above = f"{sum(value > 0 for value in gaps_of_seeds)} of {len(gaps_of_seeds)}"
    counts = f"{correct:.0f} / {wrong:.0f}"
    return (_data(scope), scope.variant, counts, *(_gap_text(gap) for gap in gaps), above, f"{100 * dropped:.0f}%")


def _masking_row(findings: Findings, scope: Scope, mode: str) -> tuple[str, ...]:
    by_percent = {f.position: f for f in findings.find(scope, "accuracy", mode)}
    return (_data(scope), scope.variant, mode, *(_accuracy_text(by_percent[percent]) for percent in SHOWN_PERCENTS))


def _data(scope: Scope) -> str:
    return f"{scope.benchmark}: {scope.subset}"


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
    """Footnotes for the readers of the tables."""
    seeds = sorted({len(seeds_of_variant) for seeds_of_variant in findings.seeds.values()})
    footnotes = [
        f"Seeds pooled: {' or '.join(map(str, seeds))}. 95% bootstrap intervals ({REPLICATES} replicates) count items, "
        "not seeds; 'Seeds above 0' says in how many runs the controlled difference is positive.",
        "Raw: misclassified and correct sequences are compared seed by seed. Controlled: also at the same lengths "
        f"({LENGTH_BINS} quantile bins), and without the first token and the chat template's tokens; 'Dropped' is the "
        "mass on those.",
        f"No interval where one of the groups has fewer than {MIN_CLUSTERS} items; {MISSING} where one is empty.",
        "Hidden: the first part of all text (sequence), or of the response only (response). A tie earns 0.5 here.",
    ]
    without_errors = []
    undecided = []
    for scope in findings.scopes():
        name = f"{_data(scope)}, {scope.variant}"
        if not findings.find(scope, "pairs", "", group=GROUPS[1])[0].value:
            without_errors.append(name)
        if count := findings.find(scope, "pairs", "", group=UNDECIDED)[0].value:
            undecided.append(f"{name} {count:.0f}")
    if without_errors:
        footnotes.append(f"Nothing misclassified, so nothing to compare: {'; '.join(without_errors)}.")
    if undecided:
        footnotes.append(
            f"Pairs that are tied or could not be scored count as neither correct nor wrong: {'; '.join(undecided)}."
        )
    report = next(iter(findings.reports.values()))
    footnotes += [_counts_of_benchmark(name, counts) for name, counts in report["benchmarks"].items()]
    layers = {(tuple(report["layers"]), report["n_layers"]) for report in findings.reports.values()}
    for numbers, n_layers in sorted(layers):
        names = f"all layers ({n_layers})"
        if len(numbers) < n_layers:
            names = f"layers {', '.join(map(str, numbers))} of {n_layers}"
        footnotes.append(f"Attention is averaged over heads and {names}.")
    if left_out:
        reasons = [f"{variant} ({reason})" for variant, reason in left_out.items()]
        footnotes.append(f"Not diagnosed: {'; '.join(reasons)}.")
    return footnotes


def _counts_of_benchmark(name: str, counts: Mapping[str, int]) -> str:
    parts = [f"{counts['n_pairs']} pairs of {counts['n_items']} items"]
    if counts["not_drawn"]:
        parts.append(f"{counts['not_drawn']} left out by diagnostics.limit")
    if counts["not_a_pair"]:
        parts.append(f"{counts['not_a_pair']} without one best of two responses, or with tools")
    if counts["n_truncated"]:
        parts.append(f"{counts['n_truncated']} with a text cut to fit the model")
    return f"{name}: {', '.join(parts)}."


def csv_of_findings(findings: Findings) -> str:
    """One line per finding. An empty seed means all seeds pooled, an empty value undefined."""
    records = []
    for finding in findings.entries:
        scope = finding.scope
        records.append(
            {
                "benchmark": scope.benchmark,
                "subset": scope.subset,
                "variant": scope.variant,
                "seed": scope.seed,
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
