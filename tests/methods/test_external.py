"""A reward model from elsewhere as a row of an experiment."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.config.resolve import load_config
from rm_methods.errors import ConfigError, UserError
from rm_methods.files import read_json, write_json
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config

SETTINGS = ScoringSettings(max_length=256, threads=1)


@pytest.fixture
def elsewhere(reward_model, tokenizer, tmp_path) -> Path:
    reward_model.save(tmp_path / "elsewhere")
    tokenizer.tokenizer.save_pretrained(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def described(**settings):
    return load_method("external", load_method_card("external").defaults() | settings).describe()


@pytest.fixture
def run(elsewhere, prepared, tmp_path):
    """(folder of the run's model, summary) of an external row."""
    config = experiment_config(tmp_path, methods={"theirs": {"method": "external", "model": str(elsewhere)}})
    files = RunFiles(
        pairs=prepared[0],
        backbone=prepared[1],
        model=tmp_path / "run" / "model",
        metrics=tmp_path / "run" / "metrics.jsonl",
        summary=tmp_path / "run" / "summary.json",
        work=tmp_path / "work",
    )
    return files.model, train(config, "theirs", 0, files, threads=1)


def test_a_run_holds_no_weights_and_gives_the_scores_of_the_model(run, elsewhere, pairs):
    folder, summary = run
    assert not list(folder.glob("*.safetensors"))
    items = [BenchmarkItem(pair.pair_id, "s", pair.prompt, [pair.chosen, pair.rejected], 0) for pair in pairs[:3]]
    expected = [row.score for row in load_scorer(elsewhere, SETTINGS).score(items)]
    assert [row.score for row in load_scorer(folder, SETTINGS).score(items)] == expected
    assert (summary["kind"], summary["seed_free"]) == ("external", True)
    assert summary["cost"]["tokens"] == 0
    assert 0 <= summary["metrics"]["validation_accuracy"] <= 1


def test_another_model_in_its_place_is_refused(run, elsewhere):
    folder, _ = run
    record = read_json(folder / "scorer.json")
    assert record["model"] == str(elsewhere)
    file = elsewhere / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, metadata={"format": "pt"})  # the same weights, written again
    load_scorer(folder, SETTINGS)
    tensors["score.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors changed since the run was made"):
        load_scorer(folder, SETTINGS)
    shutil.rmtree(elsewhere)
    with pytest.raises(UserError, match="is gone"):
        load_scorer(folder, SETTINGS)


def test_another_reference_or_code_in_its_place_is_refused(elsewhere, tmp_path):
    """As other weights are."""
    reference = tmp_path / "reference"
    shutil.copytree(elsewhere, reference)
    (elsewhere / "code.py").write_text("a = 1\n")
    record = described(model=str(elsewhere), reference=str(reference))
    description = {"method": "external", "settings": {}, "seed": 0}
    write_json(tmp_path / "run" / "scorer.json", description | record)
    (elsewhere / "code.py").write_text("a = 2222\n")
    with pytest.raises(UserError, match=r"code\.py changed since the run was made"):
        load_scorer(tmp_path / "run", SETTINGS)
    (elsewhere / "code.py").write_text("a = 1\n")
    shutil.rmtree(reference)
    with pytest.raises(UserError, match=r"reference: .* is gone"):
        load_scorer(tmp_path / "run", SETTINGS)


def test_the_options_of_a_model_are_kept(elsewhere, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    record = described(model=str(elsewhere), label="0", chat_template=str(tmp_path / "mine.jinja"))
    assert record["label"] == "0"
    assert record["chat_template"] == str(tmp_path / "mine.jinja")
    assert "trust_remote_code" not in record
    with pytest.raises(UserError, match="no such folder"):
        described(model=str(tmp_path / "none"))


def test_a_row_without_a_model_is_refused_before_anything_runs(tmp_path):
    config = tmp_path / "c.yaml"
    text = "experiment: e\ndata: {dataset: world}\nmethods: {theirs: {method: external%s}}\n"
    config.write_text(text % "")
    with pytest.raises(ConfigError, match=r"methods\.theirs: no model is named"):
        load_config([config])
    config.write_text(text % ", model: ./none")
    with pytest.raises(ConfigError, match=r"methods\.theirs\.model: './none': no such folder"):
        load_config([config])


def test_all_methods_leave_it_out(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("experiment: e\ndata: {dataset: world}\nmethods: all\n")
    assert "external" not in load_config([config])["methods"]


def test_its_interval_counts_items_and_it_is_not_tested():
    """Beside three trained runs: the difference counts their seeds."""
    import numpy as np

    from rm_methods.statistics.column import VariantValues, column_cells, role_of
    from rm_methods.statistics.designs import item_design

    generator = np.random.default_rng(0)
    runs = {seed: (generator.random(200) < 0.7).astype(float) for seed in range(3)}
    fixed = (generator.random(200) < 0.8).astype(float)
    variants = {
        "bradley_terry": VariantValues(runs),
        "theirs": VariantValues({0: fixed}, role=role_of("external"), seed_free=True),
        "longest": VariantValues({0: fixed}, role=role_of("content_blind"), seed_free=True),
    }
    cells = column_cells(variants, "bradley_terry", item_design(np.zeros(200), np.ones(200)))
    assert cells["theirs"] == cells["longest"]
    assert cells["theirs"].verdict == "not tested"
    assert math.isfinite(cells["theirs"].difference.estimate.low)


def test_weights_of_half_precision_are_read_in_fp32(elsewhere):
    tensors = {name: tensor.half() for name, tensor in load_file(elsewhere / "model.safetensors").items()}
    save_file(tensors, elsewhere / "model.safetensors", metadata={"format": "pt"})
    scorer = load_scorer(elsewhere, SETTINGS)
    assert {parameter.dtype for parameter in scorer.model.parameters()} == {torch.float32}
