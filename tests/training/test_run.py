"""A run and its variant: level of label noise, learning rate, and a budget that no method can change."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import Method as BradleyTerry
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training import run as running
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config
from tests.training.test_trainer import log, run_files

pytestmark = pytest.mark.process


def noisy_configuration(folder, *rates):
    return experiment_config(folder, noise_levels=[{"rate": rate} for rate in rates])


def test_noise_changes_what_is_learned_and_is_counted(prepared, tmp_path):
    config = noisy_configuration(tmp_path, 0.0, 0.25)
    runs = [train(config, name, 0, run_files(prepared, tmp_path / name)) for name in config["methods"]]
    assert [run["noise"]["flipped"] for run in runs] == [0, 12]
    assert runs[0]["run_key"] != runs[1]["run_key"]
    assert runs[0]["metrics"]["train_loss"] != runs[1]["metrics"]["train_loss"]


def test_a_variant_may_have_its_own_learning_rate(prepared, tmp_path):
    methods = {"slow": {"method": "bradley_terry", "learning_rate": 1e-5}, "bradley_terry": {}}
    config = experiment_config(tmp_path, methods=methods)
    summary = train(config, "slow", 0, run_files(prepared, tmp_path / "slow"))
    assert summary["training"]["learning_rate"] == 1e-5
    assert max(row["learning_rate"] for row in log(tmp_path / "slow" / "metrics.jsonl")) <= 1e-5
    train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "plain"))
    assert max(row["learning_rate"] for row in log(tmp_path / "plain" / "metrics.jsonl")) == pytest.approx(3e-3)


def test_one_model_under_several_seeds_has_one_hash_of_its_weights(prepared, tmp_path):
    """A teacher that was trained elsewhere and is not trained here is the same model under every seed."""
    trained_elsewhere = {"method": "joint_encoder", "masked_language_epochs": 0, "epochs": 1}
    given = {**trained_elsewhere, "source": str(tmp_path / "joint" / "model"), "epochs": 0}
    methods = {"joint": trained_elsewhere, "given": given, "bradley_terry": {}, "longest": {}}
    config = experiment_config(tmp_path, methods=methods)

    def hashes(variant, *seeds):
        summaries = [train(config, variant, seed, run_files(prepared, tmp_path / f"{variant}{seed}")) for seed in seeds]
        return [summary.get("weights_hash") for summary in summaries]

    train(config, "joint", 0, run_files(prepared, tmp_path / "joint"))
    assert len(set(hashes("given", 0, 1, 2))) == 1
    assert len(set(hashes("joint", 0, 1))) == 2
    first, second = hashes("bradley_terry", 0, 1)
    assert first != second
    assert hashes("bradley_terry", 0) == [first]
    assert hashes("longest", 0) == [None]


@pytest.mark.parametrize("copies", [0.5, 3])
def test_the_number_of_steps_is_that_of_the_pairs_given(prepared, tmp_path, monkeypatch, copies):
    def some_or_more(self, pairs, inputs):
        if copies < 1:
            return pairs[: int(len(pairs) * copies)]
        return [replace(pair, pair_id=f"{pair.pair_id}-{k}") for pair in pairs for k in range(copies)]

    monkeypatch.setattr(BradleyTerry, "transform_pairs", some_or_more)
    summary = train(
        experiment_config(tmp_path, training={"epochs": 2}), "bradley_terry", 0, run_files(prepared, tmp_path)
    )
    # 48 pairs, 8 in a step, 2 epochs.
    assert summary["cost"]["optimizer_steps"] == 12
    assert summary["cost"]["pairs_seen"] == 96


def test_a_model_that_changed_since_its_training_is_refused(prepared, tmp_path):
    files = run_files(prepared, tmp_path)
    train(experiment_config(tmp_path), "bradley_terry", 0, files)
    load_scorer(files.model, ScoringSettings(max_length=256))
    weights = files.model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000:] = bytes(1000)
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors changed since the folder was written"):
        load_scorer(files.model, ScoringSettings(max_length=256))


def test_a_missing_run_of_another_variant_is_named(prepared, tmp_path):
    config = experiment_config(tmp_path, methods={"joint_encoder": {}, "interaction_distillation": {}})
    files = run_files(prepared, tmp_path)
    gone = RunFiles(**(vars(files) | {"required": {"teacher": [tmp_path / "nowhere" / "model"]}}))
    for wrong in (replace(files, required={"teacher": []}), files):
        with pytest.raises(UserError, match=r"teacher: needs model folders of 1 or more runs of 'joint_encoder'; 0"):
            train(config, "interaction_distillation", 0, wrong)
    with pytest.raises((UserError, OSError), match="nowhere"):
        train(config, "interaction_distillation", 0, gone)


def test_the_cost_counts_every_pass(prepared, tmp_path):
    methods = {"bradley_terry": {}, "contrastive": {}}
    costs = [
        train(experiment_config(tmp_path, methods=methods), name, 0, run_files(prepared, tmp_path / name))["cost"]
        for name in methods
    ]
    assert [costs[1][key] for key in ("tokens", "forwards")] == [2 * costs[0][key] for key in ("tokens", "forwards")]
    assert costs[1]["optimizer_steps"] == costs[0]["optimizer_steps"]


@pytest.mark.parametrize("method", ["bradley_terry", "inform"])
def test_the_trained_model_is_gone_before_the_saved_one_is_loaded(prepared, tmp_path, monkeypatch, method):
    held, fit, validation = {}, running.fit, running._validation

    def watched_fit(method, model, steps, **options):
        trainer = fit(method, model, steps, **options)
        held["before"] = {
            "model": weakref.ref(model),
            "trainer": weakref.ref(trainer),
            "optimizer": weakref.ref(trainer.optimizer),
        }
        return trainer

    def watched_validation(*args):
        held["then"] = [name for name, reference in held["before"].items() if reference() is not None]
        return validation(*args)

    monkeypatch.setattr(running, "fit", watched_fit)
    monkeypatch.setattr(running, "_validation", watched_validation)
    training = {"checkpoint_every_steps": 2, "lora": {"rank": 2, "alpha": 4}}
    summary = train(
        experiment_config(tmp_path, methods={method: {}}, training=training), method, 0, run_files(prepared, tmp_path)
    )
    assert held["then"] == []
    assert summary["metrics"]["validation_pairs"] == 12
