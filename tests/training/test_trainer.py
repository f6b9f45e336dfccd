"""Training end to end on a tiny backbone: budgets, weights, resume, failures."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState, TrainingArguments

from rm_methods.errors import UserError
from rm_methods.files import seal
from rm_methods.methods.contract import Inputs, Loss
from rm_methods.methods.contrastive import add_dropout
from rm_methods.methods.registry import load_method
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.reward_models.batching import plan_steps
from rm_methods.reward_models.model import RewardModel
from rm_methods.training.fitting import training_arguments
from rm_methods.training.run import RunFiles, run_key, train
from rm_methods.training.trainer import PlannedSteps, RewardTrainer, RunLog, last_complete_checkpoint
from tests.conftest import experiment_config

pytestmark = pytest.mark.process


def run_files(prepared, out: Path) -> RunFiles:
    return RunFiles(prepared[0], prepared[1], out / "model", out / "metrics.jsonl", out / "summary.json", out / "work")


def configuration(tmp_path, **training):
    return experiment_config(tmp_path, training=training)


def log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_learns_and_writes_its_artifacts(prepared, tmp_path):
    config = configuration(tmp_path, epochs=12)
    summary = train(config, "bradley_terry", 0, run_files(prepared, tmp_path))
    assert (summary["data"]["pairs_offered"], summary["data"]["pairs_used"]) == (48, 48)
    exported = json.loads((tmp_path / "model" / "config.json").read_text())
    assert exported["rm_methods_max_length"] == config["backbone"]["max_length"]
    rows = log(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 12 * 6 + 1))
    assert rows[-1]["loss"] < 0.3 < rows[0]["loss"]
    assert summary["metrics"]["validation_accuracy"] > 0.65
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["cost"]["pairs_seen"] == 12 * 48
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not list((tmp_path / "work").glob("*")), "checkpoints of a finished run are removed"


def test_the_last_step_is_logged_whatever_the_interval(prepared, tmp_path):
    """48 pairs, 8 a step: 6 steps; the loss of a run is not that of its first step."""
    every, some = (tmp_path / name for name in ("every", "some"))
    train(configuration(tmp_path), "bradley_terry", 0, run_files(prepared, every))
    summary = train(configuration(tmp_path, log_every_steps=10), "bradley_terry", 0, run_files(prepared, some))
    rows = log(some / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 6]
    losses = [row["loss"] for row in log(every / "metrics.jsonl")]
    assert rows[1]["loss"] == summary["metrics"]["train_loss"] == pytest.approx(sum(losses[1:]) / 5, rel=1e-6)


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not(prepared, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(configuration(tmp_path), "bradley_terry", seed, run_files(prepared, tmp_path / name))
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not all(torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


@pytest.mark.parametrize(
    "change",
    [{"tokens_per_microbatch": 100}, {"tokens_per_microbatch": 4000}, {"layout": "plain"}, {"layout": "packed"}],
)
def test_how_a_step_is_cut_does_not_change_what_is_learned(prepared, tmp_path, change):
    losses = []
    for name, training in (("reference", {}), ("changed", change)):
        train(configuration(tmp_path, **training), "bradley_terry", 0, run_files(prepared, tmp_path / name))
        losses.append([row["loss"] for row in log(tmp_path / name / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


BRADLEY_TERRY = ("bradley_terry", {"margin_scale": 0.0, "centering": 0.0})


def make_trainer(prepared, tmp_path, pairs, tokenizer, budget, method=BRADLEY_TERRY, seed=0):
    config = configuration(tmp_path)
    items = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    model = RewardModel(load_classifier(prepared[1], config["backbone"], 0))
    plan = plan_steps(
        items, steps=1, pairs_per_step=len(pairs), tokens_per_microbatch=budget, seed=0, ranks=1, layout="packed"
    )
    arguments = training_arguments(config["training"], seed, tmp_path / "work", len(plan))
    steps = PlannedSteps(plan, pairs, items, layout="packed", rank=0, pad_id=tokenizer.pad_id)
    return RewardTrainer(method=load_method(*method), steps=steps, model=model, args=arguments), steps, model


def test_pair_weights_are_right_whatever_the_micro_batches(prepared, tmp_path, tokenizer, pairs):
    """A pair of weight 2 counts as the pair given twice, and a pair of weight 0 as a pair left out."""
    weighted = [replace(pairs[0], weight=2.0), pairs[1], replace(pairs[2], weight=0.0), *pairs[3:6]]
    spelled_out = [pairs[0], pairs[0], pairs[1], *pairs[3:6]]
    gradients = []
    for chosen, budget in ((weighted, 100), (weighted, 5000), (spelled_out, 5000)):
        trainer, steps, model = make_trainer(prepared, tmp_path, chosen, tokenizer, budget)
        loss = trainer.training_step(model, steps[0])
        gradients.append(torch.cat([loss[None], *(p.grad.flatten() for p in model.parameters())]))
    torch.testing.assert_close(gradients[0], gradients[2], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[2], atol=1e-6, rtol=1e-4)


def test_the_step_loss_is_the_weighted_mean_of_the_pair_losses(prepared, tmp_path, tokenizer, pairs):
    trainer, steps, model = make_trainer(prepared, tmp_path, pairs[:5], tokenizer, 120)
    batches = steps[0]["micro_batches"]
    assert len(batches) > 1
    with torch.no_grad():
        expected = torch.cat([trainer.method.loss(model, batch).per_pair for batch in batches]).mean()
    torch.testing.assert_close(trainer.training_step(model, steps[0]), expected)


def killed_after(monkeypatch, step: int):
    """Make the process die when the checkpoint of `step` is complete and one more step was computed."""
    original = RewardTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step > step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RewardTrainer, "training_step", training_step)


def test_a_resumed_run_equals_the_uninterrupted_one(prepared, tmp_path, monkeypatch):
    config = configuration(tmp_path, epochs=2, checkpoint_every_steps=4)
    train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        killed_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "killed"))
    work = next((tmp_path / "killed" / "work").iterdir())
    assert last_complete_checkpoint(work).name == "checkpoint-8"
    assert not (tmp_path / "killed" / "model").exists()
    train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "killed"))
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    one, two = (log(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert [row["loss"] for row in two] == [row["loss"] for row in one]


def test_a_resumed_log_keeps_whole_lines_up_to_the_checkpoint_and_refuses_a_broken_one(tmp_path):
    log_file = tmp_path / "metrics.jsonl"
    log_file.write_text(
        "".join(f'{{"step": {k}, "time": {k}.5, "loss": 0.{k}}}\n' for k in (1, 2, 3)) + '{"step": 2, "time": 9'
    )
    resumed = RunLog([], log_file, "run")
    begin = (TrainingArguments(output_dir=str(tmp_path), report_to=[]), TrainerState(global_step=2), None)
    resumed.on_train_begin(*begin)
    assert [row["step"] for row in log(log_file)] == [1, 2]
    assert (resumed.seconds_before, resumed.last_loss) == (2.5, 0.2)
    log_file.write_text('{"st\n{"step": 2, "time": 2.5, "loss": 0.2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: a line is not valid JSON"):
        resumed.on_train_begin(*begin)


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path):
    for step, complete in ((4, True), (8, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            seal(tmp_path / f"checkpoint-{step}")
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-4"
    assert not (tmp_path / "checkpoint-8").exists()


@pytest.mark.parametrize(("every", "checkpoints"), [(20, "one is made every 20 steps"), (None, "none is made")])
def test_a_training_that_was_stopped_before_its_first_checkpoint_says_so(
    prepared, tmp_path, monkeypatch, capsys, every, checkpoints
):
    config = configuration(tmp_path, checkpoint_every_steps=every)
    sentence = f"starts from the beginning, because an earlier attempt left no checkpoint ({checkpoints})"
    with monkeypatch.context() as patch:
        killed_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(config, "bradley_terry", 0, run_files(prepared, tmp_path))
    assert "starts from the beginning" not in capsys.readouterr().err
    train(config, "bradley_terry", 0, run_files(prepared, tmp_path))
    assert sentence in capsys.readouterr().err


def test_a_cut_checkpoint_gives_way_to_the_older_whole_one(prepared, tmp_path, monkeypatch, capsys):
    """The rerun says so, and its weights are those of a run that was never interrupted."""
    config = configuration(tmp_path, epochs=2, checkpoint_every_steps=4)
    train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        killed_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "killed"))
    work = next((tmp_path / "killed" / "work").iterdir())
    os.truncate(work / "checkpoint-8" / "optimizer.pt", 100)
    capsys.readouterr()
    train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "killed"))
    said = capsys.readouterr().err
    assert "checkpoint-8 has 100 bytes in optimizer.pt" in said
    assert f"resumes from {work / 'checkpoint-4'}" in said
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_nan_stops_the_run_and_names_the_pairs(prepared, tmp_path, tokenizer, pairs):
    trainer, steps, model = make_trainer(prepared, tmp_path, pairs[:4], tokenizer, 5000)
    bad = trainer.train_dataset.items[2].sequences[0][-2]
    others = {int(t) for k in (0, 1, 3) for s in trainer.train_dataset.items[k].sequences for t in s}
    token = int(bad)
    if token in others:
        token = next(int(t) for s in trainer.train_dataset.items[2].sequences for t in s if int(t) not in others)
    with torch.no_grad():
        model.backbone.embed_tokens.weight[token] = float("nan")
    with pytest.raises(UserError) as failure:
        trainer.training_step(model, steps[0])
    assert pairs[2].pair_id in str(failure.value)
    assert not any(pairs[k].pair_id in str(failure.value) for k in (0, 1, 3))
    assert "learning_rate" in str(failure.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda loss: Loss(loss.per_pair.mean()), "is a tensor of shape []"),
        (lambda loss: loss.per_pair, "`loss` returned a tensor"),
        (lambda loss: Loss(loss.per_pair.detach()), "has no gradient"),
    ],
)
def test_a_loss_that_is_no_loss_stops_the_run_at_its_first_step(
    prepared, tmp_path, tokenizer, pairs, monkeypatch, change, says
):
    """A scalar would be broadcast over the pairs, and train silently."""
    trainer, _, _ = make_trainer(prepared, tmp_path, pairs[:4], tokenizer, 5000)
    right = trainer.method.loss
    monkeypatch.setattr(trainer.method, "loss", lambda model, batch: change(right(model, batch)))
    with pytest.raises(UserError, match=re.escape(says)) as failure:
        trainer.train()
    assert "methods/bradley_terry.py" in str(failure.value)
    assert trainer.state.global_step == 0


def test_a_logged_term_that_is_not_finite_stops_the_run(prepared, tmp_path, tokenizer, pairs, monkeypatch):
    trainer, _, _ = make_trainer(prepared, tmp_path, pairs[:4], tokenizer, 5000)
    right = trainer.method.loss

    def with_term(model, batch):
        loss = right(model, batch)
        return Loss(loss.per_pair, {"ratio": loss.per_pair.detach() * float("nan")})

    monkeypatch.setattr(trainer.method, "loss", with_term)
    with pytest.raises(UserError, match=r"bradley_terry\.py: `Loss\.terms\['ratio'\]` is nan at step 1"):
        trainer.train()


def test_a_gradient_that_is_not_finite_stops_the_run(prepared, tmp_path, tokenizer, pairs, monkeypatch):
    trainer, _, model = make_trainer(prepared, tmp_path, pairs[:4], tokenizer, 5000)
    next(model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match="gradient is not finite"):
        trainer.train()


def test_margin_without_strength_is_refused_before_training(pairs, tmp_path):
    method = load_method("bradley_terry", {"margin_scale": 0.5, "centering": 0.0})
    inputs = Inputs(0, tmp_path)
    assert [p.margin for p in method.transform_pairs(pairs[:2], inputs)] == [0.5 * p.strength for p in pairs[:2]]
    with pytest.raises(UserError, match="1 of 2 training pairs have none"):
        method.transform_pairs([pairs[0], replace(pairs[1], strength=None)], inputs)


def test_a_content_blind_scorer_needs_no_training(prepared, tmp_path):
    config = experiment_config(tmp_path, methods={"longest": {}})
    summary = train(config, "longest", 0, replace(run_files(prepared, tmp_path), backbone=tmp_path / "absent"))
    assert summary["cost"]["tokens"] == 0
    assert summary["seed_free"]
    assert json.loads((tmp_path / "model" / "scorer.json").read_text())["method"] == "longest"
    shutil.rmtree(tmp_path / "model")


def test_a_resumed_run_logs_a_methods_own_terms_as_the_uninterrupted_one(prepared, tmp_path, monkeypatch):
    methods = {"inform": {}}
    config = experiment_config(
        tmp_path, methods=methods, training={"epochs": 2, "checkpoint_every_steps": 4, "log_every_steps": 2}
    )
    train(config, "inform", 0, run_files(prepared, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        killed_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(config, "inform", 0, run_files(prepared, tmp_path / "killed"))
    train(config, "inform", 0, run_files(prepared, tmp_path / "killed"))
    whole, resumed = (log(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
    assert {"preference_loss", "kl"} <= set(whole[0])
    assert [row | {"time": 0} for row in resumed] == [row | {"time": 0} for row in whole]


def test_a_run_stopped_after_its_last_step_keeps_its_training_loss(prepared, tmp_path, monkeypatch):
    config = configuration(tmp_path, epochs=1, checkpoint_every_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("rm_methods.training.run.add_older_names", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, "bradley_terry", 0, run_files(prepared, tmp_path))
    summary = train(config, "bradley_terry", 0, run_files(prepared, tmp_path))
    assert summary["metrics"]["train_loss"] == log(tmp_path / "metrics.jsonl")[-1]["loss"]


def test_two_variants_of_one_training_do_not_share_checkpoints(prepared, tmp_path, monkeypatch):
    methods = {"bradley_terry": {}, "control": {"method": "bradley_terry"}}
    config = experiment_config(tmp_path, methods=methods, training={"checkpoint_every_steps": 2})
    for variant in methods:
        with monkeypatch.context() as patch:
            killed_after(patch, 3)
            with pytest.raises(KeyboardInterrupt):
                train(config, variant, 0, run_files(prepared, tmp_path))
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_what_the_files_say_that_settings_name_is_part_of_the_run_key(tmp_path):
    template, samples = tmp_path / "template.jinja", tmp_path / "samples.parquet"
    samples.write_text("s")
    keys = []
    for text in ("one", "two", "two"):
        template.write_text(text)
        config = experiment_config(
            tmp_path,
            backbone={"chat_template": str(template)},
            methods={"bradley_terry": {}, "meta_rm": {"samples": str(samples)}},
        )
        keys.append((run_key(config, "bradley_terry", 0, "pairs"), run_key(config, "meta_rm", 0, "pairs")))
        if len(keys) == 2:
            samples.write_text("t")
    assert keys[0][0] != keys[1][0] == keys[2][0]
    assert keys[1][1] != keys[2][1]


def test_what_a_deepspeed_file_of_ones_own_says_is_part_of_the_run_key(tmp_path):
    own = tmp_path / "own.json"
    keys = set()
    for stage in (1, 2):
        own.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        keys.add(run_key(configuration(tmp_path, deepspeed=str(own)), "bradley_terry", 0, "pairs"))
    assert len(keys) == 2


def test_the_run_key_changes_with_everything_that_a_run_depends_on(tmp_path):
    config = configuration(tmp_path)
    changed = [
        experiment_config(tmp_path, methods={"bradley_terry": {"centering": 0.5}}),
        experiment_config(tmp_path, methods={"bradley_terry": {"learning_rate": 1e-5}}),
        experiment_config(tmp_path, backbone={"max_length": 128}),
        configuration(tmp_path, learning_rate=1e-5),
    ]
    keys = [run_key(one, "bradley_terry", 0, "pairs") for one in (config, *changed)]
    keys += [run_key(config, "bradley_terry", 1, "pairs"), run_key(config, "bradley_terry", 0, "other pairs")]
    assert len(set(keys)) == len(keys) == 7
    assert run_key(configuration(tmp_path), "bradley_terry", 0, "pairs") == keys[0]


def test_the_run_key_changes_with_the_runs_that_are_required(tmp_path):
    """A student of a teacher that was trained anew is another run, and so is one whose teachers have changed places."""
    config = experiment_config(tmp_path, methods={"joint_encoder": {}, "interaction_distillation": {}})
    folders = [tmp_path / name / "model" for name in ("first", "second")]
    for folder in folders:
        folder.mkdir(parents=True)

    def key_with(*keys_of_teachers):
        for folder, key in zip(folders, keys_of_teachers, strict=True):
            (folder.parent / "summary.json").write_text(json.dumps({"run_key": key}))
        return run_key(config, "interaction_distillation", 0, "pairs", {"teacher": folders})

    keys = [key_with("a", "b"), key_with("a", "c"), key_with("b", "a"), key_with("a", "b")]
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3
    assert run_key(config, "interaction_distillation", 0, "pairs") not in keys


def test_adam_is_made_with_the_betas_and_weight_decay_that_the_configuration_names(prepared, tmp_path):
    config = configuration(tmp_path, adam_betas=[0.7, 0.6], weight_decay=0.3)
    arguments = training_arguments(config["training"], 0, tmp_path / "work", 1)
    model = RewardModel(load_classifier(prepared[1], config["backbone"], 0))
    steps = PlannedSteps([], [], [], layout="packed", rank=0, pad_id=0)
    trainer = RewardTrainer(method=load_method(*BRADLEY_TERRY), steps=steps, model=model, args=arguments)
    groups = trainer.create_optimizer().param_groups
    assert {group["betas"] for group in groups} == {(0.7, 0.6)}
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}  # norms and biases do not decay


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # Six steps, two of them warm-up; the rate of a step is logged before it: 0, 1/2, then the schedule's share of 4
        # steps.
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_follows_the_schedule(prepared, tmp_path, schedule, rates):
    config = configuration(tmp_path, schedule=schedule, warmup_fraction=1 / 3)
    train(config, "bradley_terry", 0, run_files(prepared, tmp_path))
    logged = [row["learning_rate"] / 3e-3 for row in log(tmp_path / "metrics.jsonl")]
    assert logged == pytest.approx(rates, abs=1e-5)


def test_gradients_are_clipped_to_the_norm_that_the_configuration_names(prepared, tmp_path):
    """Adam divides by sqrt(v) + 1e-8, so a gradient clipped far below 1e-8 changes nothing, and the loss stays."""
    losses = {}
    for norm in (1e-14, 1.0):
        config = configuration(
            tmp_path, max_gradient_norm=norm, weight_decay=0.0, pairs_per_step=48, epochs=3, schedule="constant"
        )
        train(config, "bradley_terry", 0, run_files(prepared, tmp_path / str(norm)))
        losses[norm] = [row["loss"] for row in log(tmp_path / str(norm) / "metrics.jsonl")]
    assert losses[1e-14] == pytest.approx([losses[1e-14][0]] * 3, abs=1e-5)
    assert losses[1.0][0] == pytest.approx(losses[1e-14][0], abs=1e-5)
    assert abs(losses[1.0][2] - losses[1.0][0]) > 1e-2


def test_the_seed_decides_what_dropout_drops(prepared, tmp_path, tokenizer, pairs):
    losses = []
    for seed in (0, 1, 0):
        trainer, steps, model = make_trainer(prepared, tmp_path, pairs[:8], tokenizer, 5000, seed=seed)
        add_dropout(model.backbone, 0.5)
        losses.append(float(trainer.training_step(model, steps[0])))
    assert losses[0] == losses[2] != losses[1]
