"""The footnotes of a comparison: how intervals, marks and ties are to be read, and everything that makes a number less
than it seems."""

from __future__ import annotations

from collections.abc import Sequence

from rm_methods.comparison.contamination import contamination_notes
from rm_methods.comparison.result import Column, Comparison, Cost, VariantRow
from rm_methods.comparison.runs import Run
from rm_methods.comparison.trained_pairs import count_range, trained_pairs_note
from rm_methods.reporting.footnotes import NotedRow, TableWords, difference_notes, interval_notes

# Budgets that differ by less are equal: methods drop different pairs that do not fit, and the last step may be smaller.
_SAME_BUDGET = 0.02


def footnotes(runs: Sequence[Run], comparison: Comparison) -> tuple[str, ...]:
    """The footnotes, in the order in which a reader needs them."""
    rows = comparison.rows
    noted = [NotedRow(row.label, row.role, row.n_models, row.is_line, row.cells) for row in rows]
    words = TableWords()
    notes = interval_notes(noted, words)
    for row, noted_row in zip(rows, noted, strict=True):
        if row is comparison.reference_row:
            family = "the trained methods of the column" if comparison.correction == "column" else "the whole table"
            headings = [column.heading for column in comparison.columns]
            notes += difference_notes(noted, noted_row, headings, family, words)
    if comparison.ranks is not None:
        notes.append(
            "Mean rank: each seed ranks the trained methods on every column, 1 is the best. Its interval and the "
            "critical difference (Tukey, 95%) count seeds, not items."
        )
    notes += _shared_model_notes(runs, rows)
    notes += _scoring_notes(runs, rows, comparison.columns)
    notes += contamination_notes(comparison.contamination)
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
    notes += _step_notes(runs, rows)
    notes += _budget_notes(runs, rows, comparison.reference_row)
    # Before everything else if it changes what the table is about.
    losses, is_strong = trained_pairs_note(runs, rows)
    notes = [*losses, *notes] if is_strong else [*notes, *losses]
    hashes = {run.data_hash for run in runs if run.data_hash and not run.is_line}
    if len(hashes) > 1:
        notes.append(
            f"Not an equal comparison: the variants were trained on {len(hashes)} different prepared data sets."
        )
    return tuple(notes)


def _step_notes(runs: Sequence[Run], rows: Sequence[VariantRow]) -> list[str]:
    """Trainings that made fewer steps than the budget, and models that are not from the last step."""
    stopped = []
    earlier = []
    for row in rows:
        steps = [run.steps for run in runs if run.variant == row.variant and run.steps is not None]
        early = [record for record in steps if record["made"] < record["planned"]]
        if early:
            made = count_range({record["made"] for record in early})
            stopped.append(f"{row.label} ({made} of {early[0]['planned']} steps, {len(early)} of {len(steps)} runs)")
        best = [record for record in steps if record["kept"] < record["made"]]
        if best:
            kept = count_range({record["kept"] for record in best})
            earlier.append(f"{row.label} (step {kept} of {best[0]['planned']}, {len(best)} of {len(steps)} runs)")
    notes = []
    if stopped:
        notes.append(f"Not the same budget: these trainings stopped early: {', '.join(stopped)}.")
    if earlier:
        notes.append(
            "The model of the best validation was kept, not the one of the last step: " + ", ".join(earlier) + "."
        )
    return notes


def _budget_notes(runs: Sequence[Run], rows: Sequence[VariantRow], reference: VariantRow | None) -> list[str]:
    """Trainings whose budget is not that of the reference.  A training that stopped early counts with its whole budget,
    because another note names it."""
    budgets = [(row, budget) for row in rows if row.role == "trained" and (budget := _budget(runs, row))]
    if not budgets:
        return []
    first, usual = next((entry for entry in budgets if entry[0] is reference), budgets[0])
    others = [
        f"{row.label} {_budget_text(budget)}"
        for row, budget in budgets
        if any(abs(value - other) > _SAME_BUDGET * other for value, other in zip(budget, usual, strict=True))
    ]
    if not others:
        return []
    return [f"Not the training budget of {first.label} {_budget_text(usual)}: {', '.join(others)}."]


def _budget_text(budget: tuple[float, float]) -> str:
    pairs, steps = budget
    return f"({pairs:,.0f} pairs, {steps:,.0f} steps)"


def _budget(runs: Sequence[Run], row: VariantRow) -> tuple[float, float] | None:
    """Pairs seen (each once an epoch) and optimizer steps of a run's whole budget, mean over seeds; None if no run
    recorded them."""
    recorded = []
    for run in runs:
        pairs = run.cost.get("pairs_seen")
        made = run.cost.get("optimizer_steps")
        if run.variant == row.variant and pairs and made:
            left_out = run.steps["planned"] - run.steps["made"] if run.steps else 0
            recorded.append((pairs * (made + left_out) / made, float(made + left_out)))
    if not recorded:
        return None
    pairs_seen, steps = (sum(values) / len(recorded) for values in zip(*recorded, strict=True))
    return pairs_seen, steps


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
    cut = [f"{b} {count_range(counts)}" for b, counts in truncated.items() if max(counts) > 0]
    if cut:
        notes.append(f"Items with a text cut to fit the model, per run: {', '.join(cut)}.")
    return notes
