"""Score tables are written in groups of rows."""

from __future__ import annotations

import json

import pytest

from rm_methods.benchmarks.score_table import ScoredResponse, read_scores, write_row_scores, write_scores

COLUMNS = ["item_id", "response_index", "response_hash", "score", "n_tokens", "truncated"]


def rows(count, read=None):
    """Scored responses; each is noted in `read` when it is asked for."""
    for number in range(count):
        if read is not None:
            read.append(number)
        score = float("nan") if number == 1 else 0.5 * number
        yield ScoredResponse(f"i{number}", 0, f"{number:016x}", score, number, number == 2)


@pytest.fixture
def groups_of_two(monkeypatch):
    monkeypatch.setattr("rm_methods.parquet._ROWS_PER_GROUP", 2)


def test_an_iterator_is_read_group_by_group(tmp_path, groups_of_two, monkeypatch):
    read: list[int] = []
    read_at_writing = []
    from pyarrow.parquet import ParquetWriter

    write_table = ParquetWriter.write_table

    def watched(self, *arguments, **keywords):
        read_at_writing.append(len(read))
        write_table(self, *arguments, **keywords)

    monkeypatch.setattr(ParquetWriter, "write_table", watched)
    write_scores(rows(5, read), tmp_path / "s.parquet")
    assert read_at_writing == [2, 4, 5]


def test_the_table_does_not_depend_on_the_groups(tmp_path, monkeypatch):
    for folder, size in (("a", 2), ("b", 100)):
        monkeypatch.setattr("rm_methods.parquet._ROWS_PER_GROUP", size)
        for suffix in ("parquet", "csv", "jsonl"):
            write_scores(rows(5), tmp_path / folder / f"s.{suffix}")
            write_row_scores(
                [("f", number, row) for number, row in enumerate(rows(5))], tmp_path / folder / f"r.{suffix}"
            )
    for name in ("s.csv", "s.jsonl", "r.csv", "r.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert read_scores(tmp_path / "a/s.parquet").equals(read_scores(tmp_path / "b/s.parquet"))
    lines = [json.loads(line) for line in (tmp_path / "a/s.jsonl").read_text().splitlines()]
    assert list(lines[0]) == COLUMNS
    assert [line["score"] for line in lines] == [0.0, None, 1.0, 1.5, 2.0]


def test_a_table_without_rows_has_its_columns(tmp_path):
    for suffix in ("parquet", "csv", "jsonl"):
        write_scores([], tmp_path / f"s.{suffix}")
    read = read_scores(tmp_path / "s.parquet")
    assert (list(read.columns), len(read)) == (COLUMNS, 0)
    assert (tmp_path / "s.csv").read_text() == ",".join(f'"{name}"' for name in COLUMNS) + "\n"
    assert (tmp_path / "s.jsonl").read_text() == ""
