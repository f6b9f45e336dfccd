"""What of a run's files goes to MLflow: legal names, short values, finite numbers, no memory addresses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_methods.config.resolve import resolve
from rm_methods.errors import DataError, UserError
from rm_methods.tracking.records import PARAM_LENGTH, legal_name, params_of, read_run, read_training_log
from rm_methods.tracking.summary_records import experiment_text


def test_params_are_flattened_and_empty_sections_left_out():
    assert params_of(
        {"settings": {"a": {"b": 1}, "c": None}, "training": {"lr": 1e-5, "betas": [0.9, 0.99]}, "backbone": {}}
    ) == {
        "settings.a.b": "1",
        "settings.c": "null",
        "training.lr": "1e-05",
        "training.betas": "[0.9, 0.99]",
    }


def test_long_params_are_cut_and_say_so():
    text = params_of({"prompt": "x" * 10_000})["prompt"]
    assert len(text) == PARAM_LENGTH
    assert text.endswith("... [cut: 10000 characters, all in summary.json]")


def test_params_hold_no_memory_addresses():
    class Collate:
        pass

    texts = params_of({"collate": repr(Collate()), "callback": Collate(), "nested": [repr(Collate())]})
    assert all("0x" not in text and "Collate" in text for text in texts.values())


def test_names_that_become_equal_are_both_kept():
    assert params_of({"a@": 1, "a(": 2}) == {"a_": "1", "a__": "2"}


@given(st.text(min_size=1))
def test_every_name_becomes_one_that_mlflow_takes(name):
    from mlflow.utils.validation import _validate_metric_name

    legal = legal_name("train/" + name)
    _validate_metric_name(legal)
    assert 0 < len(legal) <= 250


def test_training_log_keeps_the_last_value_of_a_step_and_skips_what_is_not_finite(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"step": 1, "time": 0.5, "loss": 0.9}\n{"step": 1, "time": 0.7, "loss": 0.8, "note": "x"}\n\n'
        '{"step": 2, "loss": NaN}\n'
        f'{{"step": 3, "loss": {"9" * 400}}}\n'
    )
    steps, cut_line, not_finite = read_training_log(log)
    assert [(m.name, m.value, m.step, m.seconds) for m in steps] == [("train/loss", 0.8, 1, 0.7)]
    assert (cut_line, not_finite) == (False, 2)


def test_a_last_line_that_was_cut_off_is_left_out_and_reported(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 0.9}\n{"step": 2, "lo')
    steps, cut_line, _ = read_training_log(log)
    assert (len(steps), cut_line) == (1, True)


@pytest.mark.parametrize(
    "bad",
    [
        "not json",
        "[1, 2]",
        '{"loss": 0.5}',
        '{"step": "two", "loss": 0.5}',
        '{"step": true}',
        '{"step": -1}',
        '{"step": 9223372036854775808}',
        '{"step": 2, "time": NaN}',
        f'{{"step": 2, "time": {"9" * 400}}}',
        "[" * 100_000,
    ],
)
def test_a_bad_line_inside_the_log_names_file_and_row(tmp_path, bad):
    log = tmp_path / "metrics.jsonl"
    log.write_text(f'{{"step": 1, "loss": 0.9}}\n{bad}\n{{"step": 3, "loss": 0.7}}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl, row 2: expected an object"):
        read_training_log(log)


def test_a_log_that_is_no_text_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes('{"step": 1, "loss": 0.9}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=r"metrics.jsonl: not UTF-8"):
        read_training_log(tmp_path / "metrics.jsonl")


def test_finals_come_from_evaluation_training_and_cost(finished_run):
    record = read_run(finished_run(), "paper")
    assert record.finals["rm_bench/overall"] == 0.61
    assert record.finals["scoring/rm_bench/n_truncated"] == 3
    assert next(iter(record.finals)) == "rm_bench/overall"  # MLflow lists them in this order
    assert record.finals["train_cost/tokens"] == 1000
    assert all(math.isfinite(value) for value in record.finals.values())
    assert record.skipped_not_finite == 1  # validation_loss is null
    assert record.end_ms - record.start_ms == 12_500
    assert record.dataset == ("hh_rlhf", "0123456789abcdef", 100)
    assert record.tags["mlflow.source.git.commit"] == "c0ffee"


def test_files_of_two_runs_are_refused(finished_run):
    run = finished_run()
    run.metrics.write_text(run.metrics.read_text().replace("key0", "other"))
    with pytest.raises(DataError, match=r"run_key is 'other'.*'key0'"):
        read_run(run, "paper")


def test_missing_and_foreign_files_are_named(finished_run):
    run = finished_run()
    run.metrics.write_text('{"seed": 0}')
    with pytest.raises(
        DataError, match=r"metrics.json: not a metrics.json of a run: .*missing variant, method, run_key"
    ):
        read_run(run, "paper")
    run.summary.unlink()
    with pytest.raises(UserError, match=r"summary.json: no such file"):
        read_run(run, "paper")


def test_the_description_of_an_experiment_names_the_sources_of_a_mixture(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Rock."}\n')
    sources = [{"dataset": str(tmp_path / f"{name}.jsonl"), "weight": weight} for name, weight in (("a", 2), ("b", 1))]
    text = experiment_text(resolve({"experiment": "test", "data": sources, "methods": {"bradley_terry": {}}}))
    assert "trained on 2 a + 1 b." in text
