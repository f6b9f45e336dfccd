"""The runs in MLflow that sum up others: one parent for each variant, and one for the comparison of an experiment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.files import content_hash
from rm_methods.methods.registry import MethodCard, load_method_card
from rm_methods.preferences.data_sources import dataset_name
from rm_methods.reporting.sentences import listed, points
from rm_methods.reporting.tables import markdown_escape
from rm_methods.tracking.artifacts import LEFT_OUT, MAX_BYTES, configuration_text
from rm_methods.tracking.comparison_table import ColumnResult, ComparisonTable
from rm_methods.tracking.records import CONFIGURED, FORMAT, KIND, NOTE, SOURCE, TAG_LENGTH, RunRecord

_CUT = "\n\n... cut; the whole text is in table.md among the artifacts"
_NAMED = 3  # columns that a sentence names; of more, it gives the number
_KINDS = {
    "content_blind": "A content-blind rule: it scores without a model and without reading what a response says.",
    "computed": "Computed, not trained: it knows how the data was made.",
    "external": "A model from elsewhere, scored here and not trained.",
    "combined": "A combination of the runs of another variant.",
}


def split_params(records: Sequence[RunRecord]) -> tuple[list[RunRecord], dict[str, dict[str, str]], dict[str, str]]:
    """Move each parameter to the one place that it belongs to.

    Returns:
        The records with the parameters that differ within the experiment; for each variant those of them that are
        equal for all its seeds; and those that are equal for all runs, which only the comparison has.
    """
    common: dict[str, str] = {}
    for kind in dict.fromkeys(record.kind for record in records):
        of_kind = [record for record in records if record.kind == kind]
        for name in dict.fromkeys(name for record in of_kind for name in record.params):
            values = [record.params[name] for record in of_kind if name in record.params]
            # A setting of one method says nothing on the others; one of training is missing where nothing is trained.
            is_general = len(values) == len(of_kind) or not name.startswith("settings.")
            if len(set(values)) == 1 and is_general:
                common[name] = values[0]
    split = []
    for record in records:
        own_params = {name: value for name, value in record.params.items() if name not in common}
        split.append(replace(record, params=own_params))
    by_variant: dict[str, dict[str, str]] = {}
    for record in split:
        if record.kind == "seed":
            params = by_variant.setdefault(str(record.variant), dict(record.params))
            by_variant[str(record.variant)] = dict(params.items() & record.params.items())
    return split, {variant: dict(sorted(params.items())) for variant, params in by_variant.items()}, common


def metrics_by_variant(records: Sequence[RunRecord]) -> dict[str, dict[str, list[float]]]:
    """Variant -> metric -> value of each seed."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record.kind == "seed":
            of_variant = values.setdefault(str(record.variant), {})
            for name, value in record.finals.items():
                of_variant.setdefault(name, []).append(value)
    return values


def variant_records(
    records: Sequence[RunRecord], params: Mapping[str, Mapping[str, str]], table: ComparisonTable | None
) -> list[RunRecord]:
    """One record for each variant, in the order of the table.

    Args:
        records: of all runs; params: of each variant, from `split_params`.
        table: None if no comparison can be shown.
    """
    methods = {str(record.variant): record.tags["method"] for record in records}
    order = list(table.rows) if table is not None else []
    names = sorted(methods, key=lambda variant: order.index(variant) if variant in order else len(order))
    last_ms = max(record.end_ms for record in records)
    variants = []
    for number, name in enumerate(names):
        runs = [record for record in records if record.variant == name and record.kind == "seed"]
        columns = table.rows.get(name, ()) if table is not None else ()
        tags = {
            KIND: "variant",
            CONFIGURED: runs[0].tags[CONFIGURED],
            "variant": name,
            "method": methods[name],
            SOURCE: "rm-methods",
            NOTE: _shortened(_variant_text(name, methods[name], len(runs), columns, table)),
        }
        if columns:
            tags["verdict"] = _verdict_tag(columns)
        finals: dict[str, float] = {}
        for values in (column.values() for column in columns):
            finals |= values
        # MLflow lists the latest start first, and so the rows in the order of the table.
        start_ms = last_ms + 1000 * (len(names) - number)
        record = _summary_record("variant", name, name, dict(params.get(name, {})), tags, start_ms)
        duration_ms = sum(run.end_ms - run.start_ms for run in runs)
        # The mean of each column first: in the order of the table, MLflow's page of a run shows them so.
        finals = dict(sorted(finals.items(), key=lambda item: item[0] not in {column.metric for column in columns}))
        variants.append(replace(record, finals=finals, end_ms=start_ms + duration_ms))
    return variants


def comparison_record(
    config: Mapping[str, Any],
    records: Sequence[RunRecord],
    common_params: Mapping[str, str],
    table: ComparisonTable | None,
    *,
    problem: str | None,
) -> RunRecord:
    """The record of an experiment's comparison, without the files.

    Args:
        common_params: those that are equal for all runs.
        problem: why no comparison is shown, None if it is.
    """
    configured = config["experiment"]
    tags = {
        KIND: "comparison",
        CONFIGURED: configured,
        SOURCE: "rm-methods",
        NOTE: _shortened(_comparison_text(table, problem)),
    }
    time_ms = max(record.end_ms for record in records) + 1000 * (len(records) + 1)
    is_shared = config["tracking"]["experiment"] not in (None, configured)
    name = f"comparison {configured}" if is_shared else "comparison"
    params = dict(common_params) | {"seeds": ", ".join(map(str, config["seeds"]))}
    record = _summary_record("comparison", None, name, params, tags, time_ms)
    return replace(record, artifacts={"configuration.yaml": configuration_text(config)})


def _summary_record(
    kind: str,
    variant: str | None,
    name: str,
    params: dict[str, str],
    tags: dict[str, str],
    time_ms: int,
) -> RunRecord:
    return RunRecord(
        kind=kind,
        variant=variant,
        seed=None,
        run_key="",
        name=name,
        params=params,
        tags=tags,
        steps=[],
        finals={},
        training_digest=content_hash([FORMAT, params]),
        start_ms=time_ms,
        end_ms=time_ms,
    )


def experiment_text(config: Mapping[str, Any]) -> str:
    """The description of an experiment in MLflow."""
    if config["tracking"]["experiment"] not in (None, config["experiment"]):
        head = "Several experiments of rm-methods. `configured_experiment` says which one a run belongs to."
    else:
        dataset = Path(dataset_name(config["data"]))
        head = (
            f"Experiment **{config['experiment']}** of rm-methods: {len(config['methods'])} variants on "
            f"{listed(list(config['benchmarks']))}, trained on {dataset.name if dataset.is_absolute() else dataset}."
        )
    return (
        f"{head}\n\n"
        "* The run `comparison` has verdict, table, figures, `report.html` and the configuration.\n"
        "* Each variant is a run with means over its seeds, intervals and differences; below it is a run for each "
        "seed, with curves.\n"
        '* `tags.superseded = "false"` shows current runs only, `tags.kind = "variant"` one run for each method: '
        "select them and click Compare."
    )


def _comparison_text(table: ComparisonTable | None, problem: str | None) -> str:
    if table is None:
        return f"No comparison is shown: {problem}. Run the compare stage, then track again."
    files = (
        "Among the artifacts: `report.html`, `table.md`, figures, `configuration.yaml`. "
        f"Files of more than {MAX_BYTES / 1e6:.0f} MB are left out (`{LEFT_OUT}` names them)."
    )
    return f"{table.verdict or 'No reference, so no tests.'}\n\n{files}\n\n{table.markdown}"


def _variant_text(
    name: str, method: str, n_runs: int, columns: Sequence[ColumnResult], table: ComparisonTable | None
) -> str:
    """What was found, the table of the variant, and what the method is."""
    card = load_method_card(method)
    parts = []
    if table is not None and columns:
        parts.append(_finding(card, columns, table))
        parts.append("\n".join(_column_lines(columns, table)))
    else:
        parts.append("Not compared yet.")
    facts = [f"**{markdown_escape(card.title)}** (`{method}`). {markdown_escape(card.citation.strip())}."]
    if card.kind in _KINDS:
        facts.append(_KINDS[card.kind])
    if card.targets:
        facts.append(f"Aims at {listed(card.targets)}.")
    facts.append(f"Cost: {markdown_escape(card.cost)}.")
    facts.append(f"{n_runs} run{'s' if n_runs != 1 else ''} of variant `{name}`.")
    parts.append(" ".join(facts))
    return "\n\n".join(parts)


def _finding(card: MethodCard, columns: Sequence[ColumnResult], table: ComparisonTable) -> str:
    """One sentence on the difference from the reference."""
    reference = markdown_escape(table.labels.get(table.reference, table.reference))
    words = Counter(column.verdict for column in columns)
    if words["reference"]:
        return "The reference: the other variants are compared with it."
    if not table.reference:
        return "The experiment has no reference, so nothing is tested."
    parts = []
    for word, start in (("better", "better than"), ("worse", "worse than")):
        if words[word]:
            named = [f"{column.heading} ({points(column.difference)})" for column in columns if column.verdict == word]
            where = listed(named) if len(named) <= _NAMED else f"{len(named)} columns"
            parts.append(f"{start} {reference} on {markdown_escape(where)}")
    if words["not told apart"]:
        parts.append(f"not told apart from {reference} on {_counted(words['not told apart'])}")
    if words["too few runs"]:
        parts.append(f"too few runs to tell on {_counted(words['too few runs'])}")
    if not parts:
        return "Not tested: a line to read the others against." if card.kind in _KINDS else "Not tested."
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _counted(count: int) -> str:
    return f"{count} column{'s' if count != 1 else ''}"


def _column_lines(columns: Sequence[ColumnResult], table: ComparisonTable) -> list[str]:
    reference = markdown_escape(table.labels.get(table.reference, table.reference) or "the reference")
    lines = [
        f"| column | % | 95% interval | points from {reference} | 95% interval | verdict | seeds |",
        "|:---|---:|---:|---:|---:|:---|---:|",
    ]
    for column in columns:
        texts = (
            markdown_escape(column.heading),
            _percent(column.mean),
            _interval(column.low, column.high, _percent),
            "" if math.isnan(column.difference) else points(column.difference),
            _interval(column.difference_low, column.difference_high, points),
            column.verdict,
            str(column.n_seeds),
        )
        lines.append(f"| {' | '.join(texts)} |")
    return lines


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def _interval(low: float, high: float, number) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"{number(low)} to {number(high)}"


def _verdict_tag(columns: Sequence[ColumnResult]) -> str:
    """The verdict in words: of several columns, how often each word is said."""
    words = Counter(column.verdict for column in columns)
    if len(words) == 1:
        return columns[0].verdict
    order = ("better", "worse", "not told apart", "too few runs")
    ordered = sorted(words, key=lambda word: order.index(word) if word in order else len(order))
    return ", ".join(f"{word} {words[word]}" for word in ordered)


def _shortened(text: str) -> str:
    return text if len(text) <= TAG_LENGTH else text[: TAG_LENGTH - len(_CUT)] + _CUT
