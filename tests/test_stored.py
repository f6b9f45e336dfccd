"""JSON files of results are checked where they are read."""

import json

import pytest

from rm_methods.errors import DataError
from rm_methods.stored import read_record, read_summary, with_checksum

RUN = {"variant": "a", "method": "b", "seed": 0, "run_key": "k"}
METRICS = RUN | {"benchmarks": {"world": {"metrics": {"mean": 0.5, "hard": None}}}}


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def test_an_edited_file_is_noticed(tmp_path):
    whole = with_checksum(METRICS)
    assert read_record(written(tmp_path / "m.json", whole), "a metrics.json of a run", "evaluate") == whole
    whole["benchmarks"]["world"]["metrics"]["mean"] = 0.9
    with pytest.raises(DataError, match=r"m\.json: 'checksum' does not fit the rest"):
        read_record(written(tmp_path / "m.json", whole), "a metrics.json of a run", "evaluate")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a mapping"),
        ({}, "missing variant, method, seed, run_key"),
        (RUN | {"seed": "0"}, 'seed: is "0"; expected a whole number'),
        (RUN | {"cost": {"tokens": "many"}}, "cost.tokens"),
        (RUN | {"metrics": None}, "metrics: is null"),
        (RUN | {"weights_hash": 5}, "weights_hash: is 5"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_summary(written(tmp_path / "summary.json", content))
    assert "summary.json: not a summary.json of a run" in str(caught.value)


def test_a_key_that_was_renamed_is_named_with_its_new_name(tmp_path):
    file = written(tmp_path / "scorer.json", {"members": ["../a"], "centres": [0.5]})
    with pytest.raises(DataError, match=r"'centres' is now called 'centers'.*Run the train stage again"):
        read_record(file, "a description of an ensemble", "train")
