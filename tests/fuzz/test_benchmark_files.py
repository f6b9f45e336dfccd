"""Wrong files of every benchmark: each is refused with a message that names the file, or its rows are counted.

Unlike the random changes of `test_fuzz.py`, these are all combinations of a benchmark with a fault: a field that is
missing, a row that is repeated or lost, a list with one answer less, and the file of every other benchmark.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.benchmarks.cards import list_benchmark_cards, load_benchmark_card
from rm_methods.benchmarks.evaluation import prepare_items
from rm_methods.benchmarks.item import read_items
from rm_methods.errors import UserError
from tests.benchmarks.conftest import EXAMPLES, example_options

# Those with public files; the others are made of prepared pairs.
BENCHMARKS = [name for name in list_benchmark_cards() if load_benchmark_card(name).module != "prepared_splits"]
Rows = list[dict[str, Any]]

# Fields that a reader may do without; any other one must be missed by name.
OPTIONAL = {
    "alpaca_eval_pool": {"generator"},
    "auto_j": set(),
    "helpsteer3": {"language", "overall_reason", "individual_preference"},
    "hh_rlhf": set(),
    "judge_bench": {"original_id", "response_model"},
    "llmbar": set(),
    "ppe_correctness": {"mean_score"},
    "ppe_preference": {"hard_prompt", "easy_prompt", "if_prompt", "math_prompt", "is_code", "model_a", "model_b"},
    "rewardbench": {"chosen_model", "rejected_model"},
    "rewardbench2": {
        "num_correct",
        "num_incorrect",
        "num_rejected",
        "total_completions",
        "models",
        "additional_metadata",
    },
    "rm_bench": {"subset", "error", "error_key", "language", "task_id"},
    "rmb": {"category_path"},
    "tldr": {"worker", "batch", "extra"},
    "ultrafeedback": {"prompt", "messages"},
}


def rows_of(file: Path) -> Rows:
    """The rows of an example file: Parquet, a JSON array, or JSON lines."""
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pylist()
    text = file.read_text(encoding="utf-8")
    return (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line]
    )


def write_rows(rows: Rows, file: Path) -> None:
    """Write rows in the format of the file's suffix."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def data_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in (".json", ".jsonl", ".parquet"))


class Answer:
    """What the reader makes of changed files.

    Attributes:
        refusal: its message, or "".
        report: of the items, if they are accepted.
    """

    def __init__(self, name: str, root: Path, folder: Path):
        self.refusal = ""
        self.report: dict[str, Any] = {}
        config = {"root": root, "options": example_options(load_benchmark_card(name))}
        items = folder / "items.parquet"
        items.unlink(missing_ok=True)
        try:
            self.report = prepare_items(name, config, None, items, folder / "report.json")
        except UserError as error:  # anything else is a traceback, and fails the test
            self.refusal = str(error)
            assert not items.exists()
            return
        assert self.report["n_rows"] == len(read_items(items)) + self.excluded

    @property
    def excluded(self) -> int:
        return sum(entry["count"] for entry in self.report["excluded"].values())


@pytest.fixture
def answer(tmp_path) -> Callable[[str, Callable[[Path], None]], Answer]:
    """The answer to the example files of a benchmark after a change of their copy."""

    def ask(name: str, change: Callable[[Path], None]) -> Answer:
        root = tmp_path / name
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(EXAMPLES / name, root, ignore=shutil.ignore_patterns("options.yaml"))
        change(root)
        return Answer(name, root, tmp_path)

    return ask


def files_read(root: Path) -> list[Path]:
    """The files that are read with the example options: of JudgeBench, those of the default response model."""
    return [file for file in data_files(root) if "claude" not in file.name]


def first_file(root: Path) -> Path:
    """The first file that is read; of RewardBench, that of the 23 subsets."""
    return next((file for file in files_read(root) if file.name.startswith("filtered")), files_read(root)[0])


def edit(change: Callable[[Rows], None], number: int | None = None) -> Callable[[Path], None]:
    """A change of the rows of one file: the first one, or that with the number."""

    def edit_file(root: Path) -> None:
        file = first_file(root) if number is None else files_read(root)[number]
        rows = rows_of(file)
        change(rows)
        write_rows(rows, file)

    return edit_file


def fields() -> Iterator[tuple[str, str]]:
    for name in BENCHMARKS:
        for key in rows_of(first_file(EXAMPLES / name))[0]:
            yield name, key


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_example_files_are_accepted(answer, name):
    assert not answer(name, lambda root: None).refusal


@pytest.mark.parametrize(("name", "key"), list(fields()))
def test_a_missing_field_is_refused_by_name_or_is_one_that_no_metric_needs(answer, name, key):
    def without(rows: Rows) -> None:
        for row in rows:
            row.pop(key, None)

    result = answer(name, edit(without))
    if key in OPTIONAL[name]:
        assert not result.refusal
    else:
        assert f"`{key}`" in result.refusal or f"{key} " in result.refusal, result.report.get("excluded")
        assert "row 1" in result.refusal


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_row_that_is_there_twice_is_refused_or_counted(answer, name):
    whole = answer(name, lambda root: None)
    for number, file in enumerate(files_read(EXAMPLES / name)):
        result = answer(name, edit(lambda rows: rows.append(rows[0]), number))
        remarks = [remark for remark in result.report.get("counted", ()) if "more than once" in remark]
        is_excluded = result.report and result.excluded > whole.excluded
        assert remarks or is_excluded or "occurs twice" in result.refusal, (file, result.report)


SIZES_KNOWN = sorted(set(BENCHMARKS) - {"alpaca_eval_pool", "helpsteer3", "tldr"})


@pytest.mark.parametrize("name", SIZES_KNOWN)
def test_a_lost_row_changes_the_note_of_the_size(answer, name):
    def expected(result: Answer) -> list[str]:
        return [note for note in result.report["notes"] if note.startswith("Expected ")]

    (whole,) = expected(answer(name, lambda root: None))
    (less,) = expected(answer(name, edit(lambda rows: rows.pop())))
    assert whole != less
    assert "rows, got " in less


@pytest.mark.parametrize(
    ("name", "key", "length"),
    [
        *[("rm_bench", key, length) for key in ("chosen", "rejected") for length in (0, 1)],
        *[("rewardbench2", "chosen", length) for length in (0, 1)],
        ("rewardbench2", "rejected", 0),
        *[("tldr", "summaries", length) for length in (0, 1)],
        *[("ppe_correctness", "scores", length) for length in (0, 1)],
        ("rmb", "loser_list", 0),  # a list of one loser is as good as a pair
        *[("alpaca_eval_pool", "candidates", length) for length in (0, 1)],
    ],
)
def test_a_wrong_number_of_responses_is_refused(answer, name, key, length):
    def cut(root: Path) -> None:
        for file in data_files(root):
            rows = rows_of(file)
            for row in rows:
                if key in row:
                    row[key] = row[key][:length]
            write_rows(rows, file)

    result = answer(name, cut)
    assert f"`{key}`" in result.refusal or "several right answers in `chosen`" in result.refusal, result.report


@pytest.mark.parametrize("other", BENCHMARKS)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_file_of_another_benchmark_is_refused(answer, name, other):
    if name == other:
        return

    def exchange(root: Path) -> None:
        foreign = rows_of(first_file(EXAMPLES / other))
        for file in data_files(root):
            write_rows(foreign, file)

    result = answer(name, exchange)
    assert result.refusal, f"accepted: {result.report}"
    assert "row 1" in result.refusal
    assert any(path.name in result.refusal for path in data_files(EXAMPLES / name))
