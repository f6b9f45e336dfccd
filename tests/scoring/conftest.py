from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def longest(tmp_path) -> Path:
    """Model folder of the scorer whose reward is the number of characters."""
    folder = tmp_path / "longest"
    folder.mkdir()
    (folder / "scorer.json").write_text(json.dumps({"method": "longest", "settings": {}, "seed": 0}))
    return folder


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as JSON lines."""

    def write(name: str, *rows: dict) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
