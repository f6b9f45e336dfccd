"""Items to score from a user's rows of judged responses: ranked, scored, rated or pointwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError
from rm_methods.files import content_hash
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.pair import prompt_group
from rm_methods.preferences.pairing import EMPTY
from rm_methods.preferences.read_report import ReadReport
from rm_methods.preferences.readers import preference_rows
from rm_methods.scoring.data import Comparison, Reading, ScoringData, SourceRow


def judged_data(name: str, card: DatasetCard, root: Path | None, options: dict[str, Any]) -> ScoringData | None:
    """Items of a file whose rows are judged responses; None if its rows are pairs.

    Every response of a row is scored, also where the row has no judgment. The judgments give the comparisons.

    Args:
        name: as the user gave the data.
        options: resolved options of the reader `preference_rows`.

    Raises:
        ConfigError, DataError: as the reader.
    """
    without_judgments = ""
    try:
        form = preference_rows.form_of(card, root, options)
    except DataError as error:
        form = preference_rows.form_of(card, root, options, judged=False)
        without_judgments = str(error)
    if form == preference_rows.PAIRS:
        return None
    report = ReadReport()
    items: list[BenchmarkItem] = []
    position: dict[str, int] = {}
    rows = []
    for row in preference_rows.judged_rows(card, root, form, options, report, judged=False):
        texts = [response.text for response in row.responses]
        if not texts or not all(text.strip() for text in texts):
            report.drop(EMPTY if texts else "no response", row.row.file, row.row.number)
            continue
        item_id = content_hash([row.prompt, texts])
        if item_id not in position:
            position[item_id] = len(items)
            items.append(BenchmarkItem(item_id, row.split, row.prompt, texts, None, prompt_group(row.prompt)))
        rows.append(SourceRow(row.row.file, row.row.number, position[item_id]))
    comparisons: list[Comparison] = []
    if without_judgments:
        report.note(f"No accuracy, because no judgment was read. {without_judgments}")
    else:
        comparisons = _comparisons(card, root, options | {"form": form}, items, report)
    read = report.to_json()
    reading = Reading(read["files"], read["rows"], read["dropped"], read["changed"], read["unread"], read["notes"])
    return ScoringData(name, "rows", items, rows, reading, comparisons=comparisons)


def _comparisons(
    card: DatasetCard, root: Path | None, options: dict[str, Any], items: Sequence[BenchmarkItem], report: ReadReport
) -> list[Comparison]:
    """The pairs that the judgments make, as places in the items; how many is noted in the report."""
    places: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)  # position of a text in each item that has it
    for item in items:
        prompt = content_hash(item.prompt)
        for index, text in enumerate(item.responses):
            places[prompt, text].setdefault(item.item_id, index)
    judged = ReadReport()
    comparisons = {}
    for pair in preference_rows.read(card, root, options, judged):
        prompt = content_hash(pair.prompt)
        better, worse = places[prompt, pair.chosen], places[prompt, pair.rejected]
        if not better or not worse:
            continue  # of a row that is refused
        # One item with both, if possible: a joint model compares the responses of an item.
        both = [item_id for item_id in better if item_id in worse]
        first, second = (both[0], both[0]) if both else (next(iter(better)), next(iter(worse)))
        entry = Comparison((first, better[first]), (second, worse[second]), pair.group, pair.split)
        comparisons[entry.better, entry.worse] = entry
    counts = judged.pairing
    assert counts is not None
    left_out = sum(counts.left_out.values())
    report.note(
        f"Different pairs of responses that the judgments tell apart, for the accuracy: {len(comparisons):,}. Possible "
        f"pairs: {counts.possible:,}; ties: {counts.ties:,}; left out for other reasons: {left_out:,}."
    )
    # The columns of the judgments are read here, so they are not reported as unread.
    for file, columns in judged.columns.items():
        report.columns[file].read |= columns.read
    return list(comparisons.values())
