"""The score stage: one loaded model, any number of data, one score table each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.score_table import write_scores
from rm_methods.errors import UserError, nearest
from rm_methods.files import parquet_columns
from rm_methods.scoring.scorer import ScoringSettings, load_scorer, scoring_settings


def score_files(
    model: Path,
    jobs: Sequence[tuple[str, Path]],
    root: Path | None,
    config_files: Sequence[Path],
    overrides: dict[str, Any],
) -> None:
    """Score data sets with one model.

    Args:
        model: reward-model folder or folder with a scorer description.
        jobs: (data, score table to write); data is what `load_items` takes.
        root: local folder for data named by a card.
        config_files: configuration to take the scoring settings from; none: the defaults.
        overrides: fields of `ScoringSettings` given on the command line.
    """
    settings = ScoringSettings()
    if config_files:
        from rm_methods.config.resolve import load_config

        settings = scoring_settings(load_config(config_files))
    data = [(name, load_items(name, root), out) for name, out in jobs]
    scorer = load_scorer(model, replace(settings, **overrides))
    for name, items, out in data:
        write_scores(scorer.score(items, label=Path(name).stem), out)


def load_items(data: str, root: Path | None = None) -> list[BenchmarkItem]:
    """Items to score from a file of benchmark items, a file of preference pairs, or a card.

    Args:
        data: `.parquet` with benchmark items or prepared pairs; any file in a preference format; the name of a benchmark or data-set
            card.
        root: local folder with the files of a card.

    Raises:
        UserError: nothing of that name is known.
    """
    from rm_methods.benchmarks import cards as benchmark_cards
    from rm_methods.preferences import cards as dataset_cards

    path = Path(data)
    if path.suffix == ".parquet" and path.exists():
        names = parquet_columns(path)
        if "responses" in names:
            return read_items(path)
        if "pair_id" in names:
            return _items_of_pairs(path)
    if data in benchmark_cards.list_cards():
        if benchmark_cards.load_card(data).module == "prepared_splits":
            raise UserError(
                f"--data {data}: this benchmark is made of the prepared pairs of an experiment. Give its file, "
                f"results/<experiment>/benchmarks/{data}.parquet, or the pairs themselves, results/<experiment>/data/pairs.parquet."
            )
        return _items_of_benchmark(data, root)
    if data in dataset_cards.list_cards() or path.exists():
        from rm_methods.preferences.readers import read_dataset

        pairs, _, _ = read_dataset(*dataset_cards.card_for(data, root), {})
        return _unique_items(pairs)
    known = [*benchmark_cards.list_cards(), *dataset_cards.list_cards()]
    raise UserError(f"--data {data}: neither a file nor a card. {nearest(data, known)}")


def _items_of_pairs(path: Path) -> list[BenchmarkItem]:
    from rm_methods.preferences.pair import read_pairs

    return _unique_items(read_pairs(path))


def _unique_items(pairs) -> list[BenchmarkItem]:
    """One item a pair (chosen first, label 0); exact repetitions once."""
    items = {p.pair_id: BenchmarkItem(p.pair_id, p.split, p.prompt, [p.chosen, p.rejected], 0, p.group) for p in pairs}
    return list(items.values())


def _items_of_benchmark(name: str, root: Path | None) -> list[BenchmarkItem]:
    import tempfile

    from rm_methods.benchmarks.evaluation import prepare_items

    with tempfile.TemporaryDirectory() as scratch:
        items = Path(scratch) / "items.parquet"
        prepare_items(
            name,
            {"root": None if root is None else str(root), "options": {}},
            None,
            items,
            Path(scratch) / "report.json",
        )
        return read_items(items)
