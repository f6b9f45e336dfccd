"""The footnotes of a comparison: how intervals, marks and ties are to be read, and everything that makes a number less
than it seems."""

from __future__ import annotations

from collections.abc import Sequence

from rm_methods.comparison.result import Column, Comparison, Cost, VariantRow
from rm_methods.comparison.runs import Run
from rm_methods.statistics.cell import POWER
from rm_methods.statistics.column import MIN_SEEDS
from rm_methods.statistics.corrections import ALPHA


def footnotes(runs: Sequence[Run], comparison: Comparison) -> tuple[str, ...]:
    """The footnotes, in the order in which a reader needs them."""
    rows = comparison.rows
    notes = _interval_notes(rows)
    if comparison.reference_row is not None:
        notes += _reference_notes(comparison, comparison.reference_row)
    if comparison.ranks is not None:
        notes.append(
            "Mean rank: each seed ranks the trained methods on every column, 1 is the best. Its interval and the "
            "critical difference (Tukey, 95%) count seeds, not items."
        )
    notes += _shared_model_notes(runs, rows)
    notes += _scoring_notes(runs, rows, comparison.columns)
    if any(not row.scalar_reward for row in rows):
        notes.append(
            "†: no scalar reward. It reads both responses together, so it cannot rank a response alone."
            + _many_responses(runs)
        )
    if any(row.cost != Cost() for row in rows):
        notes.append(f"Cost of training one run, mean over seeds: tokens seen, wall time, peak memory{_without(runs)}.")
    # Combinations of runs were trained on no device.
    costs = [run.cost for run in runs if run.cost.get("device") != "none"]
    measured_on = {
        "devices": {str(cost["device"]) for cost in costs if cost.get("device") is not None},
        "numbers of processes": {str(cost["world_size"]) for cost in costs if cost.get("world_size") is not None},
    }
    for noun, names in measured_on.items():
        values = sorted(names)
        if len(values) > 1:
            notes.append(f"Wall time and memory were measured on different {noun}: {', '.join(values)}.")
    hashes = {run.data_hash for run in runs if run.data_hash and not run.content_blind}
    if len(hashes) > 1:
        notes.append(
            f"Not an equal comparison: the variants were trained on {len(hashes)} different prepared data sets."
        )
    return tuple(notes)


def _many_responses(runs: Sequence[Run]) -> str:
    """The benchmarks where a joint model, which judges pairs, scores more than two responses of an item."""
    names = []
    for run in runs:
        if not run.scalar_reward:
            names += [name for name, report in run.benchmarks.items() if (report.get("most_responses") or 0) > 2]
    names = list(dict.fromkeys(names))
    if not names:
        return ""
    return (
        f" On {', '.join(names)} a response's score is its mean preference over all other responses of the item, so "
        "each comparison uses more than its two responses. Scalar rewards do not have this advantage."
    )


def _without(runs: Sequence[Run]) -> str:
    """What the costs leave out: the runs that a variant is taught by or made of."""
    needs: dict[str, dict[str, None]] = {}
    for run in runs:
        for name in run.made_of:
            needs.setdefault(name, {})[run.variant] = None
    listed = "; ".join(f"{name} before {', '.join(variants)}" for name, variants in needs.items())
    return f". This leaves out runs that others need first: {listed}" if needs else ""


def _interval_notes(rows: Sequence[VariantRow]) -> list[str]:
    estimates = [(row, cell.estimate) for row in rows for cell in row.cells if cell is not None]
    bases = {estimate.basis for _, estimate in estimates}
    notes = []
    if "seeds and items" in bases:
        notes.append(
            "Percent, mean over seeds ± half of a 95% interval that counts both seeds and items. The variance between "
            "the seeds of a method is averaged with that of all trained methods of the column."
        )
    if any(row.counts_items_only(estimate) for row, estimate in estimates):
        notes.append("(±): one model only, so the interval counts items. Another training would change it by more.")
    if "members and items" in bases:
        notes.append("A combination of runs is one model. Its interval counts its members (jackknife) and items.")
    if "seeds" in bases:
        notes.append("§: a metric without per-item credits. Its interval counts seeds, not items.")
    if "nothing" in bases:
        notes.append("A mean without ± has no interval: it is a single value, or its values are all equal.")
    return notes


def _reference_notes(comparison: Comparison, reference: VariantRow) -> list[str]:
    rows = comparison.rows
    cells = [(row, cell) for row in rows for cell in row.cells if cell is not None]
    notes = [f"Difference: to {reference.label}, in points, on the same items, paired by seed."]
    if any(cell.tested for _, cell in cells):
        family = "the trained methods of the column" if comparison.correction == "column" else "the whole table"
        notes.append(f"*: the difference is significant at the {ALPHA:.0%} level (Holm's correction over {family}).")
        notes.append(
            f"Detectable difference: a true difference of this size would be significant with {POWER:.0%} probability "
            "(median over the tested methods)."
        )
    untested = [row.label for row in rows if row.role == "combined" and row is not reference]
    if untested:
        notes.append(
            f"Not tested: {', '.join(untested)}. A combination of runs is one model, so its difference to the mean of "
            f"the runs of {reference.label} has no p value."
        )
    few: dict[str, int] = {}
    undefined: dict[str, list[str]] = {}
    for row in rows:
        for column, cell in zip(comparison.columns, row.cells, strict=True):
            if cell is None or cell.difference is None or cell.verdict != "not enough evidence":
                continue
            if cell.difference.tested:
                undefined.setdefault(column.heading, []).append(row.label)
            else:
                few[row.label] = min(row.n_models, reference.n_models)
    if few:
        texts = ", ".join(f"{label} ({n})" for label, n in few.items())
        notes.append(f"Not enough evidence for a test (fewer than {MIN_SEEDS} pairs of runs): {texts}.")
    if undefined:
        texts = "; ".join(f"{heading}: {', '.join(labels)}" for heading, labels in undefined.items())
        notes.append(f"Not tested, because the difference is undefined or without spread: {texts}.")
    in_order = dict.fromkeys(
        row.label for row, cell in cells if cell.difference is not None and cell.difference.pairing == "order of seeds"
    )
    if in_order:
        notes.append(
            f"No seed in common with {reference.label}, so runs were paired in the order of their seeds: "
            f"{', '.join(in_order)}."
        )
    return notes


def _shared_model_notes(runs: Sequence[Run], rows: Sequence[VariantRow]) -> list[str]:
    """Runs that are one model, and seeds that depend on one model."""
    labels = {row.variant: row.label for row in rows}
    notes = []
    equal = [f"{row.label} ({len(row.seeds)} seeds)" for row in rows if row.role == "trained" and row.has_equal_runs]
    if equal:
        notes.append(f"Runs of equal weights count as one model: {', '.join(equal)}.")
    shared: dict[str, dict[str, None]] = {}
    for run in runs:
        for variant in run.shared_with_all_seeds:
            shared.setdefault(labels.get(variant, variant), {})[labels[run.variant]] = None
    for model, users in shared.items():
        notes.append(
            f"All seeds of {', '.join(users)} use the same {model}. Their intervals leave out how another one would "
            "change them."
        )
    return notes


def _scoring_notes(runs: Sequence[Run], rows: Sequence[VariantRow], columns: Sequence[Column]) -> list[str]:
    """What the benchmarks' readers noted, tie rules, tie rates, unscored items, truncated texts: per benchmark, not
    per column."""
    benchmarks = list(dict.fromkeys(column.benchmark for column in columns))
    rules: dict[str, list[str]] = {}
    for benchmark in benchmarks:
        tie_rules = {
            run.benchmarks[benchmark].get("tie_rule") or "not recorded" for run in runs if benchmark in run.benchmarks
        }
        rules.setdefault(" / ".join(sorted(tie_rules)), []).append(benchmark)
    noted = [
        (name, note) for name in benchmarks for run in runs for note in run.benchmarks.get(name, {}).get("notes", ())
    ]
    notes = [
        *dict.fromkeys(f"{name}: {note}" for name, note in noted),
        "Ties: " + "; ".join(f"{rule} ({', '.join(names)})" for rule, names in rules.items()) + ".",
    ]
    ties: list[str] = []
    unscored: list[str] = []
    truncated: dict[str, set[int]] = {}
    for benchmark in benchmarks:
        for row in rows:
            present = [
                c
                for c, column in zip(row.cells, columns, strict=True)
                if column.benchmark == benchmark and c is not None
            ]
            if not present:
                continue
            cell = present[0]
            if cell.tie_rate is not None and cell.tie_rate > 0.005:
                ties.append(f"{row.label} on {benchmark} {cell.tie_rate:.1%}")
            if cell.n_scored != cell.n_total:
                unscored.append(f"{row.label} on {benchmark} {cell.n_scored}/{cell.n_total}")
            if cell.n_truncated is not None:
                truncated.setdefault(benchmark, set()).add(cell.n_truncated)
    if ties:
        notes.append(f"Tie rate above 0.5%: {', '.join(ties)}.")
    if unscored:
        notes.append(
            f"Not all items could be scored (n_scored/n_total, all seeds): {', '.join(unscored)}; the rest stays in "
            "the metric."
        )
    cut = [f"{b} {_span(counts)}" for b, counts in truncated.items() if max(counts) > 0]
    if cut:
        notes.append(f"Items with a text cut to fit the model, per run: {', '.join(cut)}.")
    return notes


def _span(counts: set[int]) -> str:
    return str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
