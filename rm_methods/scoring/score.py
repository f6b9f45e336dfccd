"""The score stage: one loaded model scores any number of data sets, and writes a score table and a report of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.score_table import ScoredResponse, check_table_format, write_row_scores, write_scores
from rm_methods.errors import DataError
from rm_methods.files import check_outputs, file_hash, write_json
from rm_methods.scoring.data import ScoringData, SourceRow, load_data
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.report import describe_model, describe_reading, make_report, report_text
from rm_methods.scoring.scorer import JointScorer, RefusedItems, Scorer, Scoring, ScoringSettings, load_scorer
from rm_methods.stored import score_report


def score_files(
    model: Path,
    jobs: Sequence[tuple[str, Path]],
    root: Path | None,
    settings: ScoringSettings,
    strict: bool = False,
    also_read: Sequence[Path] = (),
    model_options: ModelOptions | None = None,
    reader_options: Mapping[str, Any] | None = None,
    configured_options: Mapping[str, Any] | None = None,
    length_reason: str | None = None,
) -> list[str]:
    """Score data sets with one model and write a table and a report (`rm_methods.stored.score_report`) of each.

    Args:
        model: reward-model folder or folder with a scorer description.
        jobs: (data, score table to write); data is what `load_data` takes.
        root: local folder for data named by a card.
        settings: settings of the scorer.
        strict: refuse data with a row that cannot be scored, before scoring begins.
        also_read: further files that no output may overwrite, such as those of the configuration.
        model_options: what the folder of a model from elsewhere does not say.
        reader_options: of the reader of preference data, such as names of columns.
        configured_options: those of a configuration, for files of preference data without `reader_options`.
        length_reason: why `settings.max_length` is what it is, for the report.

    Returns:
        The reports as texts for a terminal.

    Raises:
        UserError: an output is an input or given twice, data or model cannot be read, or nothing is left to score.
    """
    outputs = [out for _, out in jobs]
    for out in outputs:
        check_table_format(out)
    data = [load_data(name, root, reader_options, configured_options) for name, _ in jobs]
    files = [file for entry in data for file in entry.reading.files]
    reports = [score_report(out) for out in outputs]
    check_outputs({"--out": outputs, "the report of --out": reports}, {"--data": files, "--config": also_read})
    for entry in data:
        _check_scorable(entry, strict)
    scorer = load_scorer(model, settings, options=model_options)
    for entry in data:
        _check_comparable(entry, scorer)
    about = describe_model(model, scorer)
    if length_reason and "max_length" in about:
        about["max_length_reason"] = length_reason
    return [_score(scorer, about, entry, out, strict) for entry, out in zip(data, outputs, strict=True)]


def load_items(data: str, root: Path | None = None) -> Sequence[BenchmarkItem]:
    """The items that `score_files` would score, for programs that compute their scores themselves.

    Args:
        data, root: as for `rm_methods.scoring.data.load_data`.
    """
    return load_data(data, root).items


def _check_scorable(data: ScoringData, strict: bool) -> None:
    if not data.items:
        raise DataError(f"--data {data.name}: nothing is left to score.\n{describe_reading(data)}")
    if strict and data.reading.n_refused:
        raise DataError(
            f"--data {data.name}: {data.reading.n_refused} of {data.reading.rows} rows are refused. Correct them, or "
            f"leave out --strict to score the others.\n{describe_reading(data)}"
        )


def _check_comparable(data: ScoringData, scorer: Scorer) -> None:
    """Refuse rows of one response for a model that compares responses: all would get the score 0."""
    if isinstance(scorer, JointScorer) and any(len(item.responses) == 1 for item in data.items):
        raise DataError(
            f"--data {data.name}: some rows have one response, but the model compares the responses of a row, so it "
            "cannot score one alone. Put all responses to a prompt into one row (docs/datasets.md, scored rows)."
        )


def _score(scorer: Scorer, about: dict[str, Any], data: ScoringData, out: Path, strict: bool) -> str:
    """Score one data set and write its table and report; returns the report as text."""
    started = time.monotonic()
    data, scoring = _scored(scorer, data, strict)
    seconds = time.monotonic() - started
    report = make_report(data, scoring, about, seconds)
    if data.rows is None:
        write_scores(scoring.responses, out, scoring.preferences)
    else:
        write_row_scores(_by_row(data.items, data.rows, scoring.responses), out)
    # The stages that read the table refuse one that was changed since.
    hashes = {"scores": file_hash(out)}
    items = Path(data.name)
    if data.rows is None and items.is_file():
        hashes["items"] = file_hash(items)
    write_json(score_report(out), report | {"hashes": hashes})
    return report_text(report, [out, score_report(out)])


def _scored(scorer: Scorer, data: ScoringData, strict: bool) -> tuple[ScoringData, Scoring]:
    """The data and its scores.  Pairs that the model's chat template refuses are refused rows.

    Raises:
        UserError: the template refuses items of a benchmark, whose metrics would change without them.
    """
    label = Path(data.name).stem
    # The next round may refuse more: what truncation leaves of a conversation is rendered only then.
    while True:
        try:
            return data, scorer.compute(data.items, label)
        except RefusedItems as error:
            if data.rows is None:
                raise
            data = data.without(error.reasons, "the model's chat template refuses the conversation")
        _check_scorable(data, strict)


def _by_row(
    items: Sequence[BenchmarkItem], rows: Sequence[SourceRow], responses: Sequence[ScoredResponse]
) -> list[tuple[str, int | None, ScoredResponse]]:
    """(file, row, scored response) for every row of the data, repetitions included, in the order of the data."""
    by_item: dict[str, list[ScoredResponse]] = {}
    for response in responses:
        by_item.setdefault(response.item_id, []).append(response)
    return [(row.file, row.row, response) for row in rows for response in by_item[items[row.item].item_id]]
