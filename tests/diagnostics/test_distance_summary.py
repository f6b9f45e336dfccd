import csv
import io

import pytest

from rm_methods.diagnostics.distance_summary import distance_tables
from rm_methods.diagnostics.records import DISTANCE_COLUMNS
from rm_methods.parquet import write_rows
from tests.conftest import experiment_config

SECTIONS = {"benchmarks": {"heldout": {}}, "diagnostics": {"benchmarks": ["heldout"]}}


def tables(tmp_path, groups, methods=("bradley_terry", "joint_encoder")):
    """Tables of one run with `groups` pairs: before 2.0, after 0, 1, ... each; one more pair without a joint text."""
    config = experiment_config(tmp_path, methods={name: {} for name in methods}, **SECTIONS)
    row = {"benchmark": "heldout", "subset": "all", "teacher": "joint_encoder", "distance": "joint"}
    rows = [row | {"item_id": f"i{k}", "group": f"g{k}", "before": 2.0, "after": float(k)} for k in range(groups)]
    rows.append(row | {"item_id": "none", "group": "none", "before": float("nan"), "after": float("nan")})
    write_rows(rows, DISTANCE_COLUMNS, tmp_path / "diagnostics" / "bradley_terry" / "seed0" / "teacher.parquet")
    return distance_tables(config, tmp_path)


def test_means_before_and_after_with_the_interval_over_prompts(tmp_path):
    text, markdown, table, latex = tables(tmp_path, 21)
    (record,) = csv.DictReader(io.StringIO(table))
    assert (record["rows"], record["before"], record["after"]) == ("21", "2.0", "10.0")
    low, high = float(record["after_low"]), float(record["after_high"])
    # Standard error of the mean of 0 to 20: 6.06 / sqrt(21) = 1.32.
    assert (high - low) / 2 == pytest.approx(1.96 * 1.32, rel=0.1)
    assert low < 10 < high
    half = f"{(high - low) / 2:.2f}"
    assert f"±{half}" in text
    assert f"±{half}" in markdown
    assert half in latex


def test_few_prompts_have_no_interval(tmp_path):
    text, _, table, _ = tables(tmp_path, 3)
    (record,) = csv.DictReader(io.StringIO(table))
    assert (record["after"], record["after_low"], record["after_high"]) == ("1.0", "", "")
    assert "2.00 > 1.00" in text
    assert "nan" not in text


def test_an_experiment_without_joint_models_has_no_table(tmp_path):
    assert tables(tmp_path, 3, methods=("bradley_terry",)) is None
