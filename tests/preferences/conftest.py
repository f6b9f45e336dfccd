"""What the tests of preference data share: small files, and the real ones where they are at hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rm_methods.preferences.cards import card_for
from rm_methods.preferences.readers import read_dataset

REAL_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def write_lines(tmp_path):
    """Write rows as JSON lines (gzip by suffix); a row given as text is written as it is."""

    def write(name: str, rows: list) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.fixture
def read():
    """Read a data set by card name or path: the pairs and the report as JSON."""

    def read_by_name(dataset: str | Path, root: Path | None = None, **options) -> tuple[list, dict]:
        card, folder = card_for(str(dataset), root)
        pairs, _, report = read_dataset(card, folder, options)
        return pairs, report.to_json()

    return read_by_name


@pytest.fixture
def real_data():
    """A folder of the real data, or a skip."""

    def folder(name: str) -> Path:
        path = REAL_DATA / name
        if not path.is_dir():
            pytest.skip(f"the real data {name} is not beside this repository (expected in ../shared/data)")
        return path

    return folder
