"""Small data for every benchmark, and the real public files where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.evaluation import prepare_items
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.yaml_files import read_yaml

from .made_up import example_pairs

EXAMPLES = Path(__file__).parent / "examples"
SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Path of a file or folder beside the repository; the test is skipped where it is absent."""

    def find(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"the public data ../shared/{relative} is not on this machine")
        return path

    return find


def example_options(card: BenchmarkCard) -> dict[str, Any]:
    """Options under which the example files give items of every subset; the defaults, unless a file says otherwise."""
    file = EXAMPLES / card.name / "options.yaml"
    if not file.is_file():
        return {}
    options, problems = read_yaml(file)
    assert not problems
    return options


def prepare_example(card: BenchmarkCard, folder: Path) -> list[BenchmarkItem]:
    """Items of a benchmark from its example files, or from pairs made up here for benchmarks of prepared pairs."""
    if card.module == "prepared_splits":
        root, pairs = None, example_pairs(card.subsets, folder / "pairs.parquet")
    else:
        root, pairs = EXAMPLES / card.name, None
        assert root.is_dir(), (
            f"add a few made-up rows in the public format of {card.name} to {root}: the contract is tested on them"
        )
    prepare_items(
        card.name,
        {"root": root, "options": example_options(card)},
        pairs,
        folder / f"{card.name}.parquet",
        folder / f"{card.name}.json",
    )
    return read_items(folder / f"{card.name}.parquet")


@pytest.fixture
def example_items(tmp_path: Path) -> Callable[[BenchmarkCard], list[BenchmarkItem]]:
    """`prepare_example` in a temporary folder."""
    return lambda card: prepare_example(card, tmp_path)
