"""How many seeds and items a difference needs, from the runs of a finished pilot experiment.

A paired difference of two trained methods over S seeds and n items has the variance

    V(S, n) = 2 sigma_seed^2 / S + sigma_item^2 / n + sigma_residual^2 / (n S)

The pilot gives the three parts.  sigma_seed^2 is the paired seed variance of a single run, pooled over the trained
methods (`moderation.pool_paired`), minus what is due to its items.  sigma_item^2 (methods by items) and
sigma_residual^2 are those of the paired differences, the median over the rivals.  The law of the error and the least
detectable difference are those of the comparison table, so both agree where S and n are the pilot's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rm_methods.comparison.compare import variant_values
from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import Run, common_design, distinct_runs
from rm_methods.errors import UserError, nearest
from rm_methods.files import write_text
from rm_methods.reporting.tables import MISSING, WIDTH, Section, csv_text, markdown_escape, markdown_text, terminal_text
from rm_methods.statistics.cell import POWER, detectable_under
from rm_methods.statistics.column import MIN_SEEDS, VariantValues, seed_pools
from rm_methods.statistics.corrections import ALPHA
from rm_methods.statistics.designs import ItemDesign
from rm_methods.statistics.error_law import CONFIDENCE, ErrorLaw
from rm_methods.statistics.intervals import variance_parts
from rm_methods.statistics.moderation import SeedPool, moderated

SEEDS = (3, 5, 8, 10, 15, 20, 30)
TIMES = (1, 2, 4)  # items, in benchmarks
MOST_SEEDS = 1000
CSV_FIELDS = (
    "benchmark",
    "metric",
    "heading",
    "why_not",
    "n_tests",
    "pilot_seeds",
    "seed_sd",
    "seed_sd_low",
    "seed_sd_high",
    "item_sd",
    "residual_sd",
    "n_items",
    "n_seeds",
    "detectable_difference",
    "wanted_difference",
    "seeds_needed",
    "smallest_with_all_seeds",
)


@dataclass(frozen=True)
class Sources:
    """Where the variance of a paired difference comes from, in squared units of the metric.

    Attributes:
        run: sigma_seed^2 of a single run, not negative.
        run_low, run_high: its 95% interval by the pool's degrees of freedom.
        item: sigma_item^2 / n, of the difference at the items of the benchmark; 0 for a metric without credits.
        item_freedom: its degrees of freedom.
        residual: sigma_residual^2 / n, of the difference of one pair of runs.
        n_items: of the benchmark; 0 for a metric without credits.
    """

    run: float
    run_low: float
    run_high: float
    item: float
    item_freedom: float
    residual: float
    n_items: int

    def law(self, n_seeds: int, times: int, n_variants: int) -> ErrorLaw:
        """The law of the error of a difference in a table of this size.

        Args:
            n_seeds: of each method, at least 2.
            times: how many times the items of the benchmark.
            n_variants: trained methods of the table, whose seed variances are pooled.
        """
        one_pair = 2 * self.run + self.residual / times
        pool = SeedPool(one_pair / 2, (n_variants - 1) * (n_seeds - 1))
        seed_variance, freedom = moderated(one_pair / n_seeds, n_seeds - 1, pool, 2 / n_seeds)
        return ErrorLaw(seed_variance, freedom, self.item / times, self.item_freedom * times)


@dataclass(frozen=True)
class ColumnPower:
    """One column of the benchmark table.

    Attributes:
        sources: None where the pilot does not give them; `why_not` then says why.
        rivals: trained methods that the sources come from.
        n_seeds: pairs of runs of the pilot, the fewest of a rival.
        n_tests: of the family of Holm's correction in the planned table.
        n_variants: trained methods of the planned table, with the reference.
    """

    column: Column
    sources: Sources | None
    why_not: str = ""
    rivals: tuple[str, ...] = ()
    n_seeds: int = 0
    n_tests: int = 0
    n_variants: int = 0

    @property
    def times(self) -> tuple[int, ...]:
        """Multiples of the items to plan with; a metric without credits has no items to add."""
        return TIMES if self.sources is not None and self.sources.n_items else (1,)

    def detectable(self, n_seeds: int, times: int = 1) -> float:
        """The least detectable difference; NaN without sources."""
        if self.sources is None:
            return math.nan
        return detectable_under(self.sources.law(n_seeds, times, self.n_variants), self.n_tests)

    def floor(self, times: int = 1) -> float:
        """The least detectable difference of endless seeds: what the items alone leave; NaN without sources."""
        if self.sources is None:
            return math.nan
        law = ErrorLaw(0.0, 1, self.sources.item / times, self.sources.item_freedom * times)
        return detectable_under(law, self.n_tests) if law.defined else 0.0

    def seeds_for(self, difference: float, times: int = 1) -> int | None:
        """The fewest seeds that show a difference; None if `MOST_SEEDS` do not."""
        if self.sources is None or not self.detectable(MOST_SEEDS, times) <= difference:
            return None
        low, high = MIN_SEEDS, MOST_SEEDS
        while low < high:
            middle = (low + high) // 2
            if self.detectable(middle, times) <= difference:
                high = middle
            else:
                low = middle + 1
        return low

    def seeds_interval(self, difference: float, times: int = 1) -> tuple[int | None, int | None]:
        """`seeds_for` at both limits of the seed variance."""
        if self.sources is None:
            return None, None
        low = replace(self, sources=replace(self.sources, run=self.sources.run_low))
        high = replace(self, sources=replace(self.sources, run=self.sources.run_high))
        return low.seeds_for(difference, times), high.seeds_for(difference, times)


@dataclass(frozen=True)
class PowerResult:
    """The columns, the files written (by name), and the text for the terminal."""

    columns: tuple[ColumnPower, ...]
    files: dict[str, Path]
    text: str


def power(
    runs: Sequence[Run],
    columns: Sequence[Column],
    reference: str,
    out_folder: Path,
    *,
    difference: float = 0.05,
    rivals: int | None = None,
    correction: str = "column",
) -> PowerResult:
    """Plan a study from a pilot and write power.txt, power.md, power.csv, power.png and power.svg.

    Args:
        runs: of the pilot, from `read_runs`.
        difference: to see, as a share (0.05 is 5 points).
        rivals: trained methods to compare with the reference; None for those of the pilot.
        correction: the family of Holm's correction, "column" or "table".

    Raises:
        UserError: the reference is not a trained variant with two models, or no other one has two.
    """
    from rm_methods.comparison.power_figure import write_power_figure

    planned = column_powers(runs, columns, reference, rivals, correction)
    text = power_text(planned, difference)
    texts = {"power.txt": text, "power.md": power_markdown(planned, difference), "power.csv": _csv(planned, difference)}
    for name, content in texts.items():
        write_text(out_folder / name, content)
    figures = [out_folder / "power.png", out_folder / "power.svg"] if any(column.sources for column in planned) else []
    if figures:
        write_power_figure(planned, difference, figures)
    files = {name: out_folder / name for name in texts} | {path.name: path for path in figures}
    return PowerResult(planned, files, text)


def column_powers(
    runs: Sequence[Run],
    columns: Sequence[Column],
    reference: str,
    rivals: int | None = None,
    correction: str = "column",
) -> tuple[ColumnPower, ...]:
    """What the pilot says about each column; arguments and errors as those of `power`."""
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    _check_pilot(by_variant, reference)
    planned = []
    for column in columns:
        design = common_design(runs, column)
        values = {name: variant_values(variant_runs, column, design) for name, variant_runs in by_variant.items()}
        present = {name: value for name, value in values.items() if value is not None}
        planned.append(column_power(column, present, reference, design))
    family = [rivals or len(unsized.rivals) for unsized in planned if unsized.sources is not None]
    sized = []
    for unsized in planned:
        n_rivals = rivals or len(unsized.rivals)
        n_tests = sum(family) if correction == "table" else n_rivals
        sized.append(replace(unsized, n_tests=n_tests, n_variants=n_rivals + 1))
    return tuple(sized)


def _check_pilot(by_variant: Mapping[str, Sequence[Run]], reference: str) -> None:
    if reference not in by_variant:
        raise UserError(f"The reference '{reference}' is not among the variants. {nearest(reference, by_variant)}")
    trained = {name: len(distinct_runs(runs)) for name, runs in by_variant.items() if runs[0].role == "trained"}
    usable = [name for name, n_models in trained.items() if n_models > 1]
    counts = ", ".join(f"{name} {n_models}" for name, n_models in trained.items()) or "none"
    if len(usable) < 2:
        raise UserError(
            "A pilot needs at least two trained variants with two seeds each, because the variance between seeds comes "
            f"from them. Different models of the trained variants here: {counts}. Train more seeds first."
        )
    if reference not in usable:
        raise UserError(
            f"The reference '{reference}' is not a trained variant with at least two seeds. Different models of the "
            f"trained variants: {counts}. Name one of them with --reference."
        )


def column_power(
    column: Column, values: Mapping[str, VariantValues], reference: str, design: ItemDesign | None
) -> ColumnPower:
    """The sources of one column, without the size of the planned table."""
    trained = {name: value for name, value in values.items() if value.role == "trained" and not value.single}
    defined = {name: value for name, value in trained.items() if np.isfinite([*value.metrics(design).values()]).all()}
    if reference not in trained:
        return ColumnPower(column, None, f"{reference} has fewer than two runs with this metric")
    if reference not in defined:
        return ColumnPower(column, None, f"the metric of {reference} is undefined in a run")
    parts = []
    rivals = []
    pairs = []
    for name, value in defined.items():
        seeds = sorted(value.by_seed.keys() & defined[reference].by_seed.keys())
        if name == reference or len(seeds) < 2:
            continue
        rivals.append(name)
        pairs.append(len(seeds))
        if design is not None:
            differences = [value.by_seed[seed] - defined[reference].by_seed[seed] for seed in seeds]
            parts.append((len(seeds), variance_parts(np.column_stack(differences), design)))
    pool = seed_pools(values, design).paired
    if not rivals or pool is None:
        undefined = [name for name in trained if name not in defined]
        why = f"the metric is undefined in a run of {', '.join(undefined)}" if undefined else ""
        return ColumnPower(column, None, why or f"no other trained variant shares two seeds with {reference}")
    residual = float(np.median([n_seeds * part.residual for n_seeds, part in parts])) if parts else 0.0
    low, high = _variance_interval(pool)
    sources = Sources(
        run=max(pool.variance - residual / 2, 0.0),
        run_low=max(low - residual / 2, 0.0),
        run_high=max(high - residual / 2, 0.0),
        item=float(np.median([part.item for _, part in parts])) if parts else 0.0,
        item_freedom=float(np.median([part.item_freedom for _, part in parts])) if parts else 1.0,
        residual=residual,
        n_items=design.n_items if design is not None else 0,
    )
    if not sources.law(MIN_SEEDS, 1, len(rivals) + 1).defined:
        return ColumnPower(column, None, "the differences of the pilot have no spread")
    return ColumnPower(column, sources, rivals=tuple(rivals), n_seeds=min(pairs))


def _variance_interval(pool: SeedPool) -> tuple[float, float]:
    """95% limits of a variance with the pool's degrees of freedom, by the law of chi squared."""
    from scipy.stats import chi2

    tail = (1 - CONFIDENCE) / 2
    total = pool.freedom * pool.variance
    return total / float(chi2.ppf(1 - tail, pool.freedom)), total / float(chi2.ppf(tail, pool.freedom))


# --- words and tables ---------------------------------------------------------------------------------------------


def power_text(columns: Sequence[ColumnPower], difference: float) -> str:
    """The verdict, the tables in at most 80 columns, and notes."""
    import textwrap

    sentences = [textwrap.fill(text, WIDTH, subsequent_indent="   ") for text in verdict(columns, difference)]
    return "\n".join(sentences) + "\n\n" + terminal_text(_sections(columns, difference), _notes(columns))


def power_markdown(columns: Sequence[ColumnPower], difference: float) -> str:
    """The verdict, GitHub tables, and notes."""
    sentences = "\n".join(f"- {markdown_escape(text)}" for text in verdict(columns, difference))
    return sentences + "\n\n" + markdown_text(_sections(columns, difference), _notes(columns))


def verdict(columns: Sequence[ColumnPower], difference: float) -> tuple[str, ...]:
    """The seeds that show a difference on every column, and a sentence for each column."""
    start = f"To see {_points(difference)} points with {POWER:.0%} probability"
    if len(columns) == 1:
        return (f"{start} on {_sentence(columns[0], difference)}",)
    needed = {column.column.heading: column.seeds_for(difference) for column in columns if column.sources is not None}
    reached = {heading: seeds for heading, seeds in needed.items() if seeds is not None}
    if not reached:
        first = f"{start}: the pilot names no number of seeds for any column."
    else:
        hardest = max(reached, key=lambda heading: reached[heading])
        where = "every column" if len(reached) == len(columns) else f"{len(reached)} of {len(columns)} columns"
        first = f"{start} on {where}: {reached[hardest]} seeds ({hardest} needs the most)."
    return (first, *(_sentence(column, difference) for column in columns))


def _sentence(planned: ColumnPower, difference: float) -> str:
    start = f"{planned.column.heading}:"
    sources = planned.sources
    if sources is None:
        return f"{start} the pilot cannot tell, because {planned.why_not}."
    items = f" and {sources.n_items:,} items" if sources.n_items else ""
    seeds = planned.seeds_for(difference)
    more = []
    fewest = seeds
    for times in planned.times[1:]:
        needed = planned.seeds_for(difference, times)
        if needed is not None and (fewest is None or needed < fewest):
            more.append(f"{needed} seeds with {times * sources.n_items:,} items")
            fewest = needed
    helped = f"More items help: {', '.join(more)}." if more else ""
    if seeds is not None:
        low, high = planned.seeds_interval(difference)
        span = f"{low} to {f'more than {MOST_SEEDS}' if high is None else high}"
        return f"{start} {seeds} seeds{items} (pilot's 95% interval: {span} seeds). {helped}".strip()
    floor = planned.floor()
    if floor >= difference:
        reason = f"no number of seeds is enough with {sources.n_items:,} items, which alone allow {_points(floor)}"
    else:
        reason = f"more than {MOST_SEEDS} seeds{items}"
    return f"{start} {reason}. {helped or _items_needed(planned, difference)}".strip()


def _items_needed(planned: ColumnPower, difference: float) -> str:
    """How many items let any number of seeds show a difference; empty where items are not the limit."""
    if planned.sources is None or planned.floor() < difference:
        return ""
    times = planned.times[-1]
    while planned.floor(times) >= difference:
        times *= 2
    return f"At least {TIMES[-1]} times as many items are needed; {times} times as many would do with enough seeds."


def _sections(columns: Sequence[ColumnPower], difference: float) -> list[Section]:
    known = [column for column in columns if column.sources is not None]
    if not known:
        return []
    return [_table(known, difference), _sources_table(known)]


def _table(columns: Sequence[ColumnPower], difference: float) -> Section:
    rows: list[tuple[str, ...]] = []
    rules = []
    for planned in columns:
        if rows:
            rules.append(len(rows))
        for times in planned.times:
            values = [_cell(planned.detectable(n_seeds, times)) for n_seeds in SEEDS]
            n_items = planned.sources.n_items if planned.sources is not None else 0
            needed = planned.seeds_for(difference, times)
            rest = (MISSING if needed is None else str(needed), _cell(planned.floor(times)))
            rows.append((planned.column.heading, f"{times * n_items}" if n_items else MISSING, *values, *rest))
    return Section(
        title="Detectable difference in points, by the number of seeds and items",
        headings=("Column", "Items", *map(str, SEEDS), f"Seeds for {_points(difference)} points", "Endless seeds"),
        rows=tuple(rows),
        names=2,
        together=(len(SEEDS), 2),
        rules=tuple(rules),
        once=True,
    )


def _sources_table(columns: Sequence[ColumnPower]) -> Section:
    rows = []
    for planned in columns:
        sources = planned.sources
        if sources is None:
            continue
        seed = f"{_sd(sources.run)} [{_sd(sources.run_low)}, {_sd(sources.run_high)}]"
        items = [_sd(sources.item), _sd(sources.residual)] if sources.n_items else [MISSING, MISSING]
        rows.append((planned.column.heading, str(planned.n_seeds), str(planned.n_tests), seed, *items))
    return Section(
        title="What the pilot measured, in points",
        headings=("Column", "Pilot seeds", "Tests", "Seed sd of a run", "Item sd", "Residual sd"),
        rows=tuple(rows),
    )


def _notes(columns: Sequence[ColumnPower]) -> list[str]:
    notes = [
        f"Detectable difference: a true difference of this size is significant with {POWER:.0%} probability, at "
        f"{ALPHA:.0%} and in the first step of Holm's correction over the tests. Methods share seeds and items.",
        "V(S, n) = 2 seed^2/S + item^2 n0/n + residual^2 n0/(n S), with S seeds, n items, and n0 items of the "
        "benchmark. The seed sd has its 95% interval in brackets.",
    ]
    measured = [column.sources for column in columns if column.sources is not None]
    if any(sources.n_items and _sd(sources.item) == _sd(0.0) for sources in measured):
        notes.append("An item sd of 0.0 says that the pilot could not see one, not that items never limit.")
    if any(not sources.n_items for sources in measured):
        notes.append("A column without items has no per-item credits: only seeds are counted.")
    notes += [f"{column.column.heading}: left out, because {column.why_not}." for column in columns if column.why_not]
    return notes


def _points(value: float) -> str:
    """For sentences: 5, or 2.5."""
    return f"{100 * value:.1f}".removesuffix(".0")


def _cell(value: float) -> str:
    if math.isnan(value):
        return MISSING
    return f"{100 * value:.1f}" if value < 0.9995 else ">100"


def _sd(variance: float) -> str:
    return f"{100 * math.sqrt(variance):.1f}"


def _csv(columns: Sequence[ColumnPower], difference: float) -> str:
    """A line for each column, number of items and number of seeds; fractions in full precision."""
    records: list[dict[str, object]] = []
    for planned in columns:
        column = planned.column
        about: dict[str, object] = {"benchmark": column.benchmark, "metric": column.metric, "heading": column.heading}
        sources = planned.sources
        if sources is None:
            records.append({**about, "why_not": planned.why_not})
            continue
        about |= {
            "n_tests": planned.n_tests,
            "pilot_seeds": planned.n_seeds,
            "seed_sd": math.sqrt(sources.run),
            "seed_sd_low": math.sqrt(sources.run_low),
            "seed_sd_high": math.sqrt(sources.run_high),
            "item_sd": math.sqrt(sources.item),
            "residual_sd": math.sqrt(sources.residual),
            "wanted_difference": difference,
        }
        for times in planned.times:
            at_items = {
                "n_items": times * sources.n_items,
                "seeds_needed": planned.seeds_for(difference, times),
                "smallest_with_all_seeds": planned.floor(times),
            }
            for n_seeds in SEEDS:
                value = planned.detectable(n_seeds, times)
                records.append({**about, **at_items, "n_seeds": n_seeds, "detectable_difference": value})
    return csv_text(records, CSV_FIELDS)
