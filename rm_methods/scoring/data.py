"""The input of `rm-methods score`: items to score, and an account of every row that was read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.errors import DataError, UserError, nearest, nearest_path
from rm_methods.parquet import parquet_columns
from rm_methods.preferences.pair import PAIR_COLUMNS, PreferencePair, read_pairs
from rm_methods.preferences.read_report import ReadReport


@dataclass(frozen=True)
class SourceRow:
    """The row of the user's file that a pair comes from.

    Attributes:
        file: path (or hub name); "" for pairs that a reader makes up.
        row: counted from 1; None for pairs that a reader makes up.
        item: position of the pair in the items.
    """

    file: str
    row: int | None
    item: int


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt of which the data says which is better.

    Attributes:
        better, worse: id of an item, and position of the response in it.
        group: of the prompt.
        split: of the row.
    """

    better: tuple[str, int]
    worse: tuple[str, int]
    group: str
    split: str


@dataclass(frozen=True)
class Reading:
    """Counts of the rows that were read, scored and refused.

    Attributes:
        files: rows by file; None where a reader does not count them by file.
        rows: rows read.
        refused: rows that are not scored, by reason: {"count": int, "examples": ["file, row N: why", ...]}.
        noticed: unusual rows that are scored, in the same form.
        unread: columns that hold something and are not read, by file, with the number of their rows.
        notes: further facts that a reader of the scores must know.
    """

    files: dict[str, int | None]
    rows: int
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)
    noticed: dict[str, dict[str, Any]] = field(default_factory=dict)
    unread: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def n_refused(self) -> int:
        """Rows that are not scored."""
        return sum(entry["count"] for entry in self.refused.values())


@dataclass(frozen=True)
class ScoringData:
    """Items to score.

    Attributes:
        name: as the user gave it: a path or the name of a card.
        unit: "pairs" (the first response is the chosen one), "rows" (of judged responses) or "items".
        items: each different item once.
        rows: for pairs and rows, the rows of the file they come from, repetitions included, in the order of the file;
            None for benchmark items.
        reading: counts of the rows that were read.
        benchmark: name of the benchmark's card, so that its metrics can be computed; None for other data.
        comparisons: for rows, the pairs of responses that their judgments tell apart.
    """

    name: str
    unit: str
    items: Sequence[BenchmarkItem]
    rows: Sequence[SourceRow] | None
    reading: Reading
    benchmark: str | None = None
    comparisons: Sequence[Comparison] = ()

    def without(self, reasons: Mapping[str, str], reason: str) -> ScoringData:
        """The data without some items, whose rows are refused.

        Args:
            reasons: by item id, the reason for refusing it.
            reason: the reason that all have in common; the report counts the rows under it.
        """
        kept = [position for position, item in enumerate(self.items) if item.item_id not in reasons]
        new_position = {position: number for number, position in enumerate(kept)}
        report = ReadReport(dropped=copy.deepcopy(self.reading.refused))
        kept_rows = []
        for row in self.rows or ():
            if row.item in new_position:
                kept_rows.append(replace(row, item=new_position[row.item]))
            else:
                report.drop(reason, row.file, row.row, reasons[self.items[row.item].item_id])
        return replace(
            self,
            items=[self.items[position] for position in kept],
            rows=kept_rows,
            reading=replace(self.reading, refused=report.dropped),
        )


def load_data(
    data: str,
    root: Path | None = None,
    options: Mapping[str, Any] | None = None,
    configured_options: Mapping[str, Any] | None = None,
) -> ScoringData:
    """Items to score from a file of benchmark items, a file of preference data, or a card.

    Args:
        data: `.parquet` with benchmark items or prepared pairs; any file in a preference format; or the name of the
            card of a benchmark or a data set.
        root: local folder with the files of a card.
        options: of the reader of preference data.
        configured_options: those of a configuration, for a file of preference data without `options`; the notes of the
            reading name them.

    Raises:
        UserError: nothing has that name, it cannot be read, or it has no reader with options.
    """
    from rm_methods.benchmarks import cards as benchmark_cards
    from rm_methods.preferences import cards as dataset_cards

    path = Path(data)
    columns = set(parquet_columns(path)) if path.suffix == ".parquet" and path.is_file() else set()
    if {"item_id", "responses", "meta"} <= columns and not {"chosen", "rejected"} <= columns:
        _refuse_options(data, options)
        items = read_items(path)
        return ScoringData(data, "items", items, None, Reading({data: len(items)}, len(items)))
    if set(PAIR_COLUMNS) <= columns:
        _refuse_options(data, options)
        prepared = [replace(pair, file=data, row=row) for row, pair in enumerate(read_pairs(path), start=1)]
        return _pairs(data, prepared, Reading({data: len(prepared)}, len(prepared)))
    if data in benchmark_cards.list_benchmark_cards():
        _refuse_options(data, options)
        if benchmark_cards.load_benchmark_card(data).module == "prepared_splits":
            raise UserError(
                f"--data {data}: this benchmark is made of the prepared pairs of an experiment. Give its file, "
                f"results/<experiment>/benchmarks/{data}.parquet, or the pairs themselves, "
                "results/<experiment>/data/pairs.parquet."
            )
        scored = _benchmark(data, root)
        if data in dataset_cards.list_dataset_cards():
            note = (
                f"{data} is the name of a benchmark and of a data set: the benchmark's items are scored. To score the "
                "pairs of the data set, prepare them and give the file of pairs."
            )
            reading = replace(scored.reading, notes=[note, *scored.reading.notes])
            return replace(scored, reading=reading)
        return scored
    if data in dataset_cards.list_dataset_cards() or path.exists():
        from rm_methods.preferences.readers import read_dataset, resolve_reader_options

        card, source_root = dataset_cards.card_for(data, root)
        if configured_options and not options and card.reader == "preference_rows":
            scored = load_data(data, root, configured_options)
            named = ", ".join(f"{name}={value}" for name, value in configured_options.items())
            note = f"The options of the reader are those of --config: {named}."
            return replace(scored, reading=replace(scored.reading, notes=[note, *scored.reading.notes]))
        if card.reader == "preference_rows":
            from rm_methods.scoring.judged import judged_data

            judged = judged_data(data, card, source_root, resolve_reader_options(card, dict(options or {})))
            if judged is not None:
                return judged
        pairs, _, report = read_dataset(card, source_root, dict(options or {}))
        read = report.to_json()
        counted = {
            "refused": read["dropped"],
            "noticed": read["changed"],
            "unread": read["unread"],
            "notes": read["notes"],
        }
        return _pairs(data, pairs, Reading(read["files"], read["rows"], **counted))
    card_names = {*benchmark_cards.list_benchmark_cards(), *dataset_cards.list_dataset_cards()}
    hint = nearest_path(path).lstrip() or nearest(data, card_names)
    raise UserError(f"--data {data}: no such file, benchmark or data set. {hint}")


def _refuse_options(data: str, options: Mapping[str, Any] | None) -> None:
    if options:
        raise UserError(
            f"--option {next(iter(options))}: --data {data} holds benchmark items or prepared pairs, which no option "
            "changes. Leave --option out; it is for files of preference data."
        )


def _pairs(name: str, pairs: Sequence[PreferencePair], reading: Reading) -> ScoringData:
    """One item for each different pair, with the chosen response first (label 0), and the item of every row."""
    items: list[BenchmarkItem] = []
    position: dict[str, int] = {}
    rows = []
    for pair in pairs:
        item = BenchmarkItem(pair.pair_id, pair.split, pair.prompt, [pair.chosen, pair.rejected], 0, pair.group)
        if pair.pair_id not in position:
            position[pair.pair_id] = len(items)
            items.append(item)
        first = items[position[pair.pair_id]]
        if (item.prompt, item.responses) != (first.prompt, first.responses):
            raise DataError(
                f"{pair.file}, row {pair.row}: pair_id {pair.pair_id!r} occurs with two texts. Prepare the pairs again."
            )
        rows.append(SourceRow(pair.file, pair.row, position[pair.pair_id]))
    notes = [*reading.notes]
    if contradicted := _contradicted(items):
        notes.append(f"Contradictory: {contradicted} pairs are also in the data with chosen and rejected exchanged.")
    if flipped := sum(bool(pair.meta.get("flipped")) for pair in pairs):
        notes.append(f"{flipped} pairs have injected label noise; accuracy counts their flipped labels.")
    return ScoringData(name, "pairs", items, rows, replace(reading, notes=notes))


def _contradicted(items: Sequence[BenchmarkItem]) -> int:
    """Number of pairs that the data also holds with chosen and rejected exchanged."""
    texts = set()
    for item in items:
        prompt = tuple(tuple(message.items()) for message in item.prompt)
        texts.add((prompt, *item.responses))
    return sum((prompt, rejected, chosen) in texts for prompt, chosen, rejected in texts)


def _benchmark(name: str, root: Path | None) -> ScoringData:
    import tempfile

    from rm_methods.benchmarks.evaluation import prepare_items

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "items.parquet"
        summary = prepare_items(
            name,
            {"root": None if root is None else str(root), "options": {}},
            None,
            path,
            Path(scratch) / "report.json",
        )
        items = read_items(path)
    files: dict[str, int | None] = {}
    for source in summary["sources"]:
        files[source.get("file") or str(source.get("hub"))] = None
    counted = {
        "refused": summary["excluded"],
        "noticed": summary["counted"],
        "unread": summary["unread"],
        "notes": summary["notes"],
    }
    reading = Reading(files, summary["n_rows"], **counted)
    return ScoringData(name, "items", items, None, reading, benchmark=name)
