from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.benchmarks.item import read_items, write_items
from rm_methods.errors import DataError, UserError
from rm_methods.overoptimization.best_of_n import pool_counts, pool_curves
from rm_methods.overoptimization.pools import pool_from_samples

PROMPTS = {"p0": [{"role": "user", "content": "zero"}], "p1": [{"role": "user", "content": "one"}]}


def sample(prompt_id, index, response, **changes):
    row = {
        "prompt_id": prompt_id,
        "sample_index": index,
        "response": response,
        "n_tokens": 3,
        "log_probability": -1.5,
        "finished": True,
    }
    return row | changes


ROWS = [
    sample("p1", 1, "late"),
    sample("p0", 0, "a"),
    sample("p1", 0, ""),
    sample("p0", 1, "a", log_probability=-2.5, finished=False),
]


def length_gold(prompts, responses):
    return np.array(
        [len(prompt[-1]["content"]) + len(response) for prompt, response in zip(prompts, responses, strict=True)],
        dtype=float,
    )


@pytest.fixture
def written(tmp_path):
    def write(rows):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "samples.parquet")
        return tmp_path / "samples.parquet"

    return write


def test_samples_become_items_with_gold_as_label(written, tmp_path):
    items = pool_from_samples(written(ROWS), PROMPTS, length_gold, plain_sampling=True)
    assert [(item.item_id, item.responses, item.label) for item in items] == [
        ("p0", ["a", "a"], [5.0, 5.0]),
        ("p1", ["", "late"], [3.0, 7.0]),
    ]
    assert items[0].meta == {
        "plain_sampling": True,
        "log_probabilities": [-1.5, -2.5],
        "n_tokens": [3, 3],
        "finished": [True, False],
    }
    assert items[0].prompt == PROMPTS["p0"]
    assert pool_counts(items) == {"prompts": 2, "responses": 4, "duplicates": 1, "empty": 1}
    write_items(items, tmp_path / "pool.parquet")
    assert read_items(tmp_path / "pool.parquet") == items
    assert pool_curves(items, [np.array([1.0, 1.0]), np.array([0.0, 1.0])]).gold[:, -1].tolist() == [5.0, 7.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, sample("p9", 0, "x")], "row 5: prompt id 'p9' is not one of the 2 prompts"),
        ([*ROWS, ROWS[0]], "row 5: sample 1 of prompt 'p1' occurs twice"),
        ([*ROWS, sample("p0", 2, None)], "row 5: 'response' is None; expected text"),
        (
            [*ROWS, sample("p0", 2, "x", log_probability=math.nan)],
            "row 5: 'log_probability' is nan; expected a finite number",
        ),
        (
            [*ROWS, sample("p0", 2, "x", log_probability=0.5)],
            "row 5: 'log_probability' is .*; expected at most 0",
        ),
        ([{"prompt_id": "p0"}], "columns"),
    ],
)
def test_bad_samples_are_errors_that_name_the_row(written, rows, message):
    with pytest.raises(DataError, match=message):
        pool_from_samples(written(rows), PROMPTS, length_gold)


def test_a_file_without_rows_is_an_error(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "samples.parquet")
    with pytest.raises(DataError, match="has no samples"):
        pool_from_samples(tmp_path / "samples.parquet", PROMPTS, length_gold)


def test_prompts_without_samples_are_named(written):
    with pytest.raises(DataError, match="1 of 3 prompts have no sample, such as 'p2'"):
        pool_from_samples(written(ROWS), {**PROMPTS, "p2": PROMPTS["p0"]}, length_gold)


def test_gold_that_is_not_finite_or_too_short_is_an_error(written):
    with pytest.raises(UserError, match="response 'late'"):
        pool_from_samples(written(ROWS), PROMPTS, lambda prompts, responses: np.array([1.0, 1.0, 1.0, math.nan]))
    with pytest.raises(DataError, match=r"\(3,\) values for 4 responses"):
        pool_from_samples(written(ROWS), PROMPTS, lambda prompts, responses: np.zeros(3))
