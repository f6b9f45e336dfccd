"""Curves of training and validation, the best checkpoint, and early stopping."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import UserError
from rm_methods.preferences.pair import write_pairs
from rm_methods.training.pair_statistics import PairStatistics
from rm_methods.training.run import run_key, train
from rm_methods.training.trainer import RewardTrainer
from rm_methods.training.validation import History, steps_to_validate
from tests.conftest import experiment_config, made_up_pairs
from tests.training.commands import run_to_the_end, train_command
from tests.training.test_trainer import configuration, killed_after, log, make_trainer, run_files

ALL = {"every_steps": 2, "max_pairs": None}


def curve(folder: Path, name: str) -> dict[int, float]:
    """Values of a metric by step."""
    return {row["step"]: row[name] for row in log(folder / "metrics.jsonl") if name in row}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- pieces


@pytest.mark.parametrize(
    ("settings", "planned", "expected"),
    [
        ({"every_steps": None, "times": None}, 10, []),
        ({"every_steps": 4, "times": None}, 10, [4, 8, 10]),
        ({"every_steps": 5, "times": None}, 10, [5, 10]),
        ({"every_steps": 20, "times": None}, 10, [10]),
        ({"every_steps": None, "times": 1}, 10, [10]),
        ({"every_steps": None, "times": 4}, 10, [3, 5, 8, 10]),
        ({"every_steps": None, "times": 20}, 3, [1, 2, 3]),
    ],
)
def test_the_steps_to_validate(settings, planned, expected):
    assert sorted(steps_to_validate(settings, planned)) == expected


def test_the_first_of_equally_good_validations_is_the_best():
    values = {2: 0.5, 4: 0.75, 6: math.nan, 8: 0.75, 10: 0.25}
    accuracy = History("accuracy", values)
    assert (accuracy.best, accuracy.without_gain) == (4, 3)
    loss = History("loss", values)
    assert (loss.best, loss.without_gain) == (10, 0)
    assert History("loss", {2: math.nan}).best is None
    assert History("loss", {2: math.nan}).without_gain == 1


def test_statistics_of_pairs_by_hand():
    """Three pairs with rewards (2, 1), (0, 3), (1, 1), the last of weight 2, and a pair that does not count."""
    rewards = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [math.nan, 99.0]])
    weight = torch.tensor([1.0, 1.0, 2.0, 0.0])
    expected = {
        "accuracy": 1 / 4,
        "margin": (1 - 3 + 0) / 4,
        "loss": (math.log1p(math.exp(-1)) + math.log1p(math.exp(3)) + 2 * math.log(2)) / 4,
        "reward_mean": (1.5 + 1.5 + 2 * 1) / 4,
        "reward_min": 0.0,
        "reward_max": 3.0,
    }
    whole = PairStatistics()
    whole.add(rewards[:, 0] - rewards[:, 1], rewards, weight)
    parts = PairStatistics()
    for part in (slice(0, 1), slice(1, 4)):
        parts.add(rewards[part, 0] - rewards[part, 1], rewards[part], weight[part])
    assert whole.reduced() == pytest.approx(expected)
    assert parts.reduced() == pytest.approx(expected)
    joint = PairStatistics()
    joint.add(torch.tensor([1.0, -1.0]), None, torch.ones(2))
    assert joint.reduced().keys() == {"accuracy", "margin", "loss"}
    filler = PairStatistics()
    filler.add(torch.ones(2), None, torch.zeros(2))
    assert filler.reduced() == PairStatistics().reduced() == {}


# --- the training log


def test_the_log_has_the_rewards_of_the_pairs_of_the_step(prepared, tmp_path, tokenizer, pairs):
    trainer, steps, model = make_trainer(prepared, tmp_path, pairs[:7], tokenizer, 120)
    with torch.no_grad():
        rewards = torch.cat([model(batch).rewards for batch in steps[0]["micro_batches"]]).double()
    trainer.training_step(model, steps[0])
    metrics = trainer.pair_statistics.reduced()
    margins = rewards[:, 0] - rewards[:, 1]
    assert metrics == pytest.approx(
        {
            "accuracy": (margins > 0).double().mean().item(),
            "margin": margins.mean().item(),
            "loss": torch.nn.functional.softplus(-margins).mean().item(),
            "reward_mean": rewards.mean().item(),
            "reward_min": rewards.min().item(),
            "reward_max": rewards.max().item(),
        },
        abs=1e-6,
    )


@pytest.mark.process
def test_micro_batches_and_the_interval_do_not_change_the_logged_rewards(prepared, tmp_path):
    """48 pairs, 8 a step; logs of single steps average to the log of several, and their extremes are its extremes."""
    for name, change in (("every", {}), ("small", {"tokens_per_microbatch": 100}), ("some", {"log_every_steps": 5})):
        train(configuration(tmp_path, **change), "bradley_terry", 0, run_files(prepared, tmp_path / name))
    names = ("accuracy", "margin", "reward_mean", "reward_min", "reward_max")
    for name in names:
        every = curve(tmp_path / "every", name)
        assert curve(tmp_path / "small", name) == pytest.approx(every, abs=1e-4)
        some = curve(tmp_path / "some", name)
        assert sorted(some) == [1, 5, 6]
        reduce = {"reward_min": min, "reward_max": max}.get(name, lambda values: sum(values) / len(values))
        assert some[5] == pytest.approx(reduce([every[step] for step in (2, 3, 4, 5)]), abs=1e-6)


@pytest.mark.process
def test_the_log_of_a_joint_model_has_no_rewards_of_single_responses(prepared, tmp_path):
    methods = {"joint_encoder": {"masked_language_epochs": 1, "epochs": 1}}
    config = experiment_config(tmp_path, methods=methods, training={"validation": ALL})
    summary = train(config, "joint_encoder", 0, run_files(prepared, tmp_path))
    first = log(tmp_path / "metrics.jsonl")[0]
    assert {"accuracy", "margin"} <= first.keys()
    assert "reward_mean" not in first
    last = curve(tmp_path, "validation/validation/accuracy")
    assert last[max(last)] == pytest.approx(summary["metrics"]["validation_accuracy"])
    assert curve(tmp_path, "validation/validation/loss")[max(last)] == pytest.approx(
        summary["metrics"]["validation_loss"], abs=1e-5
    )


# --- validation


@pytest.mark.process
@pytest.mark.parametrize(
    ("method", "training"),
    [
        ("bradley_terry", {"lora": {"rank": 2, "dropout": 0.3}}),
        ("contrastive", {}),
        ("odin", {}),
        ("inform", {}),
        ("attn_rm", {}),
        ("product_of_experts", {}),
    ],
)
def test_validation_changes_no_weight_and_measures_the_exported_model(prepared, tmp_path, method, training):
    """Also with dropout, with a memory of earlier responses, and with rewards of another head."""
    summaries = {}
    for name, change in (("off", {}), ("on", {"validation": ALL})):
        config = experiment_config(tmp_path, methods={method: {}}, training=training | change)
        summaries[name] = train(config, method, 0, run_files(prepared, tmp_path / name))
    assert equal(weights_of(tmp_path / "off"), weights_of(tmp_path / "on"))
    losses = [curve(tmp_path / name, "loss") for name in ("off", "on")]
    assert losses[0] == losses[1]
    assert summaries["on"]["run_key"] == summaries["off"]["run_key"]
    measured = {m: curve(tmp_path / "on", f"validation/validation/{m}") for m in ("accuracy", "loss", "margin")}
    assert list(measured["accuracy"]) == [2, 4, 6]
    final = summaries["on"]["metrics"]
    assert measured["accuracy"][6] == pytest.approx(final["validation_accuracy"])
    assert measured["loss"][6] == pytest.approx(final["validation_loss"], abs=1e-5)


@pytest.mark.process
def test_several_sets_are_validated_and_a_sample_is_always_the_same(prepared, tmp_path):
    file = tmp_path / "more.jsonl"
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in made_up_pairs(9, seed=5)]
    rows = [{"prompt": row["prompt"][0]["content"], **{k: row[k] for k in ("chosen", "rejected")}} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    validation = {"times": 2, "sets": ["validation", "train", str(file)], "max_pairs": 5}
    for name in ("one", "two"):
        config = configuration(tmp_path, validation=validation)
        train(config, "bradley_terry", 0, run_files(prepared, tmp_path / name))
    for title in ("validation", "train", "more"):
        accuracy = curve(tmp_path / "one", f"validation/{title}/accuracy")
        assert list(accuracy) == [3, 6]
        assert all((5 * value) % 1 == pytest.approx(0) for value in accuracy.values())
        assert accuracy == curve(tmp_path / "two", f"validation/{title}/accuracy")


def test_a_split_that_the_pairs_lack_is_named_before_training(prepared, tmp_path):
    """For data whose splits only the prepared pairs tell; for other data the configuration is refused."""
    config = configuration(tmp_path, validation={"times": 1})
    config["training"]["validation"]["sets"] = ["validatoin"]
    with pytest.raises(UserError, match=r"'validatoin' is not a split .* Did you mean 'validation'\?"):
        train(config, "bradley_terry", 0, run_files(prepared, tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


# --- the best checkpoint, early stopping

OVERFIT = {"epochs": 8, "validation": ALL, "best": {"metric": "loss"}, "schedule": "constant"}


@pytest.fixture(scope="module")
def contradicted(prepared, pairs, tmp_path_factory):
    """Like `prepared`, but a quarter of the validation labels are wrong.

    The validation loss is smallest while the model is 75% sure, and rises when it gets surer.
    """
    file = tmp_path_factory.mktemp("contradicted") / "pairs.parquet"
    validation = made_up_pairs(24, seed=1, split="validation")
    wrong = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in validation[:6]]
    write_pairs([*pairs, *wrong, *validation[6:]], file)
    return file, *prepared[1:]


@pytest.fixture(scope="module")
def overfitted(contradicted, tmp_path_factory):
    """Folder with the runs "last", "best" and "stopped" of one training."""
    folder = tmp_path_factory.mktemp("overfitted")
    changes = {"last": {}, "best": {"keep": "best"}, "stopped": {"keep": "best", "early_stopping": {"patience": 2}}}
    for name, change in changes.items():
        train(configuration(folder, **OVERFIT, **change), "bradley_terry", 0, run_files(contradicted, folder / name))
    return folder


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.process
def test_the_best_checkpoint_is_exported(overfitted):
    losses = curve(overfitted / "best", "validation/validation/loss")
    assert losses == curve(overfitted / "last", "validation/validation/loss")
    best = min(losses, key=losses.get)
    assert best < 48, "the test needs a training that ends worse than its best"
    summary = summary_of(overfitted / "best")
    expected = {"planned": 48, "made": 48, "kept": best, "stopped_because": None}
    assert summary["steps"] == expected | {
        "kept_because": f"best loss on validation ({losses[best]:.4f}) of 24 validations"
    }
    assert summary["metrics"]["validation_loss"] == pytest.approx(losses[best], abs=1e-5)
    last = summary_of(overfitted / "last")
    assert last["steps"] == {
        "planned": 48, "made": 48, "kept": 48, "kept_because": "the last step", "stopped_because": None,
    }  # fmt: skip
    assert last["metrics"]["validation_loss"] == pytest.approx(losses[48], abs=1e-5)
    assert not list((overfitted / "best" / "work").glob("*"))


@pytest.mark.process
def test_a_training_without_gain_stops_and_counts_only_the_steps_that_it_made(overfitted):
    losses = curve(overfitted / "best", "validation/validation/loss")
    steps = list(losses)
    # The first validation with two before it that were not better than the best.
    ends = [k for k in range(2, len(steps)) if min(steps[: k + 1], key=losses.get) == steps[k - 2]]
    step = steps[ends[0]]
    best = losses[steps[ends[0] - 2]]
    assert step < 48
    summary = summary_of(overfitted / "stopped")
    assert (summary["steps"]["planned"], summary["steps"]["made"]) == (48, step)
    assert summary["steps"]["stopped_because"] == "no better loss on validation in 2 validations"
    assert summary["cost"]["optimizer_steps"] == step
    assert summary["cost"]["pairs_seen"] == 8 * step
    stopped = curve(overfitted / "stopped", "loss")
    assert max(stopped) == step
    assert stopped == {k: v for k, v in curve(overfitted / "best", "loss").items() if k <= step}
    assert summary["metrics"]["validation_loss"] == pytest.approx(best, abs=1e-5)


@pytest.mark.process
@pytest.mark.parametrize("stop_after", [8, 30])
def test_a_resumed_run_keeps_the_same_best_as_the_uninterrupted_one(contradicted, tmp_path, monkeypatch, stop_after):
    """Interrupted before and after its best validation; the best weights of before the checkpoint are still known."""
    change = {"keep": "best", "checkpoint_every_steps": 5, "early_stopping": {"patience": 15}}
    config = configuration(tmp_path, **OVERFIT, **change)
    train(config, "bradley_terry", 0, run_files(contradicted, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        killed_after(patch, stop_after)
        with pytest.raises(KeyboardInterrupt):
            train(config, "bradley_terry", 0, run_files(contradicted, tmp_path / "killed"))
    files = list((tmp_path / "killed" / "work").glob("*/best-*.safetensors"))
    assert 1 <= len(files) <= 3, "weights that no checkpoint needs are removed"
    train(config, "bradley_terry", 0, run_files(contradicted, tmp_path / "killed"))
    summaries = [summary_of(tmp_path / name) for name in ("whole", "killed")]
    assert summaries[0]["steps"] == summaries[1]["steps"]
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed"))
    rows = [[row | {"time": 0} for row in log(tmp_path / name / "metrics.jsonl")] for name in ("whole", "killed")]
    assert rows[0] == rows[1]


@pytest.mark.process
def test_best_weights_that_were_damaged_are_reported(contradicted, tmp_path, monkeypatch):
    config = configuration(tmp_path, **OVERFIT, keep="best")
    original = RewardTrainer.training_step

    def damaging(self, *args, **kwargs):
        if self.state.global_step == 47:
            for file in Path(self.args.output_dir).glob("best-*.safetensors"):
                file.write_bytes(b"damaged")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RewardTrainer, "training_step", damaging)
    with pytest.raises(UserError, match=r"weights of the best validation \(step \d+\) are missing or damaged"):
        train(config, "bradley_terry", 0, run_files(contradicted, tmp_path))


def assert_best_is_exported(folder: Path) -> None:
    """The exported model has the smallest validation loss of the curve, which is not the last one."""
    losses = curve(folder, "validation/validation/loss")
    best = min(losses, key=losses.get)
    summary = summary_of(folder)
    assert summary["steps"]["kept"] == best < max(losses)
    assert summary["metrics"]["validation_loss"] == pytest.approx(losses[best], abs=1e-4)


@pytest.mark.process
def test_the_best_adapters_are_merged(contradicted, tmp_path):
    """The frozen weights are not stored a second time; the exported model has both."""
    config = configuration(tmp_path, **OVERFIT | {"lora": {"rank": 4}, "learning_rate": 2e-2}, keep="best")
    train(config, "bradley_terry", 0, run_files(contradicted, tmp_path))
    assert_best_is_exported(tmp_path)


@pytest.mark.process
def test_two_ranks_measure_what_one_measures(contradicted, tmp_path, overfitted):
    run_to_the_end(train_command(contradicted, tmp_path, **OVERFIT, processes=2, keep="best"))
    assert_best_is_exported(tmp_path)
    names = ("accuracy", "margin", "reward_mean", "reward_min", "reward_max")
    for name in (*names, *(f"validation/validation/{name}" for name in names)):
        expected = curve(overfitted / "best", name)
        measured = curve(tmp_path, name)
        assert measured.keys() == expected.keys()
        # Rounding grows with the steps; the first ones show whether the ranks add up.
        early = {step: value for step, value in measured.items() if step <= 6}
        assert early == pytest.approx({step: expected[step] for step in early}, abs=2e-3)


@pytest.mark.process
def test_shards_are_gathered_for_the_best_checkpoint(contradicted, tmp_path):
    pytest.importorskip("deepspeed")
    short = OVERFIT | {"epochs": 3, "learning_rate": 1e-2}
    run_to_the_end(train_command(contradicted, tmp_path, **short, processes=2, deepspeed="zero3", keep="best"))
    assert_best_is_exported(tmp_path)


# --- the run key


def test_validation_is_part_of_the_run_key_only_where_it_chooses(tmp_path):
    file = tmp_path / "choice.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')

    def key(**training):
        return run_key(configuration(tmp_path, **training), "bradley_terry", 0, "pairs")

    every = {"validation": {"every_steps": 2}}
    assert key() == key(**every) == key(validation={"times": 3, "sets": ["train"]}) == key(best={"metric": "loss"})
    best = key(**every, keep="best")
    keys = {
        key(),
        best,
        key(validation={"every_steps": 3}, keep="best"),
        key(**every, keep="best", best={"metric": "loss"}),
        key(**every, early_stopping={"patience": 3}),
        key(**every, keep="best", early_stopping={"patience": 3}),
        key(validation={"every_steps": 2, "max_pairs": 7}, keep="best"),
        key(validation={"every_steps": 2, "sets": [str(file)]}, keep="best"),
    }
    assert len(keys) == 8
    more = {"every_steps": 2, "sets": ["validation", "train"]}
    assert key(validation=more, keep="best") == best, "a further set does not choose"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "d"}\n')
    assert key(validation={"every_steps": 2, "sets": [str(file)]}, keep="best") not in keys
