"""Too little memory in training: smaller micro-batches, the same result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_methods.errors import UserError
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.reward_models.activations import attention_weights
from rm_methods.reward_models.layouts import launched_tokens, lay_out
from rm_methods.reward_models.model import RewardModel
from rm_methods.reward_models.tokenization import TokenizedItem
from rm_methods.training import trainer as trainer_module
from rm_methods.training.micro_batches import cannot_reduce, needed_bytes, smaller_limit
from rm_methods.training.run import train
from rm_methods.training.trainer import RewardTrainer
from tests.conftest import experiment_config
from tests.training.commands import losses, run, train_command
from tests.training.test_trainer import killed_after, run_files

pytestmark = pytest.mark.process

TORCH_SAYS = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."


def with_little_memory(monkeypatch, fails, method: str = "bradley_terry") -> list[int]:
    """Let the loss of a method run out of memory, after its forward pass, where `fails(calls before, batch)` says so.

    Returns:
        The tokens of the micro-batches so far.
    """
    method_class = type(load_method(method, load_method_card(method).defaults()))
    right = method_class.loss
    launched: list[int] = []

    def loss(self, model, batch):
        result = right(self, model, batch)
        launched.append(batch.launched_tokens)
        if fails(len(launched) - 1, batch):
            raise RuntimeError(TORCH_SAYS)
        return result

    monkeypatch.setattr(method_class, "loss", loss)
    return launched


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def rows(folder: Path) -> list[dict]:
    """The log without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def assert_equal_runs(one: Path, two: Path) -> None:
    assert rows(one) == rows(two)
    first, second = weights(one), weights(two)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("lora", [None, {"dropout": 0.2}])
def test_a_run_short_of_memory_equals_one_with_small_micro_batches(prepared, tmp_path, monkeypatch, capsys, lora):
    """With dropout, too: the random states are those before the step."""
    small = experiment_config(tmp_path, training={"tokens_per_microbatch": 250, "lora": lora})
    large = experiment_config(tmp_path, training={"tokens_per_microbatch": 1000, "lora": lora})
    train(small, "bradley_terry", 0, run_files(prepared, tmp_path / "small"))
    with monkeypatch.context() as patch:
        with_little_memory(patch, lambda _, batch: batch.launched_tokens > 250)
        summary = train(large, "bradley_terry", 0, run_files(prepared, tmp_path / "large"))
    assert_equal_runs(tmp_path / "small", tmp_path / "large")
    assert [entry["tokens_per_microbatch"] for entry in summary["reductions"]][-1] == 250
    assert {entry["step"] for entry in summary["reductions"]} == {0}
    said = capsys.readouterr().err
    assert said.count("From step 1 on, micro-batches have at most 250 tokens") == 1
    assert "can't allocate memory" in said
    small_summary = json.loads((tmp_path / "small" / "summary.json").read_text())
    assert "reductions" not in small_summary
    for key in ("forwards", "launched_tokens", "pairs_seen"):
        assert summary["cost"][key] == small_summary["cost"][key]


@pytest.mark.parametrize("method", ["bradley_terry", "odin"])
def test_a_step_that_was_half_done_counts_once(prepared, tmp_path, monkeypatch, method):
    """The second micro-batch of step 3 fails: its first one has left gradients, counts, and rows in odin's memory."""
    config = experiment_config(tmp_path, methods={method: {}}, training={"tokens_per_microbatch": 150})
    whole = with_little_memory(monkeypatch, lambda *_: False, method)
    train(config, method, 0, run_files(prepared, tmp_path / "whole"))
    monkeypatch.undo()
    per_step = len(whole) // 6
    with_little_memory(monkeypatch, lambda calls, _: calls == 2 * per_step + 1, method)
    summary = train(config, method, 0, run_files(prepared, tmp_path / "short"))
    assert [entry["step"] for entry in summary["reductions"]] == [2]
    for expected, row in zip(rows(tmp_path / "whole"), rows(tmp_path / "short"), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    expected_weights = weights(tmp_path / "whole")
    for name, weight in weights(tmp_path / "short").items():
        torch.testing.assert_close(weight, expected_weights[name], atol=1e-3, rtol=1e-3)
    assert summary["report"] == pytest.approx(json.loads((tmp_path / "whole/summary.json").read_text())["report"], 1e-2)


def test_a_resumed_run_cuts_the_same_steps_the_same_way(prepared, tmp_path, monkeypatch):
    """Memory is short in step 3 only, so the resumed part does not run out of it again."""
    config = experiment_config(tmp_path, training={"epochs": 2, "checkpoint_every_steps": 4})
    for name in ("whole", "killed"):
        with monkeypatch.context() as patch:
            with_little_memory(patch, lambda _, batch: 2 / 12 <= batch.progress < 3 / 12 and len(batch.pair_ids) > 2)
            if name == "killed":
                killed_after(patch, 9)
                with pytest.raises(KeyboardInterrupt):
                    train(config, "bradley_terry", 0, run_files(prepared, tmp_path / name))
            else:
                train(config, "bradley_terry", 0, run_files(prepared, tmp_path / name))
    summary = train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "killed"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert summary["reductions"]


def test_a_single_pair_gets_recomputed_activations(prepared, tmp_path, monkeypatch, capsys):
    config = experiment_config(tmp_path, training={"tokens_per_microbatch": 32})
    train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        with_little_memory(patch, lambda calls, _: calls == 0)
        summary = train(config, "bradley_terry", 0, run_files(prepared, tmp_path / "short"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "short")
    assert [entry["gradient_checkpointing"] for entry in summary["reductions"]] == [True]
    assert "activations are recomputed" in capsys.readouterr().err


def test_a_pair_that_does_not_fit_at_all_is_named(prepared, pairs, tmp_path, monkeypatch):
    config = experiment_config(tmp_path)
    with_little_memory(monkeypatch, lambda *_: True)
    with pytest.raises(UserError, match="out of memory with the single pair") as failure:
        train(config, "bradley_terry", 0, run_files(prepared, tmp_path))
    assert any(pair.pair_id in str(failure.value) for pair in pairs)
    for words in ("tokens", "training.max_length", "training.lora", "can't allocate memory"):
        assert words in str(failure.value)


def test_a_loss_that_depends_on_the_cut_is_not_cut_silently(prepared, tmp_path, monkeypatch):
    config = experiment_config(tmp_path, methods={"contrastive": {}}, training={"tokens_per_microbatch": 400})
    with_little_memory(monkeypatch, lambda *_: True, "contrastive")
    with pytest.raises(UserError, match=r"contrastive\.py depends on which pairs share") as failure:
        train(config, "contrastive", 0, run_files(prepared, tmp_path))
    assert "training.tokens_per_microbatch: 200 for all runs" in str(failure.value)


def test_other_errors_are_not_taken_for_too_little_memory(prepared, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(RewardTrainer, "_backward", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(experiment_config(tmp_path), "bradley_terry", 0, run_files(prepared, tmp_path))


def test_the_limit_is_halved_until_the_failed_micro_batch_is_above_it():
    assert smaller_limit(4096, 4096) == 2048
    assert smaller_limit(4096, 700) == 512
    assert smaller_limit(40, 33) == 32
    # Micro-batches below the smallest limit are divided, too: otherwise the step would be tried forever.
    assert smaller_limit(32, 30) < 30


def test_on_a_cpu_the_need_is_estimated_before_the_first_step(prepared, tmp_path, monkeypatch, capsys):
    """A killed process could not react.  The estimate takes what `unused_memory` says."""
    small = experiment_config(tmp_path, training={"tokens_per_microbatch": 500, "pairs_per_step": 16})
    large = experiment_config(tmp_path, training={"tokens_per_microbatch": 1000, "pairs_per_step": 16})
    train(small, "bradley_terry", 0, run_files(prepared, tmp_path / "small"))
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "unused_memory", lambda: ("free on the machine", 1000))
        patch.setattr(trainer_module, "needed_bytes", lambda model, tokens, **_: 2 * tokens)
        summary = train(large, "bradley_terry", 0, run_files(prepared, tmp_path / "large"))
    assert_equal_runs(tmp_path / "small", tmp_path / "large")
    (reduction,) = summary["reductions"]
    assert (reduction["step"], reduction["tokens_per_microbatch"]) == (0, 500)
    assert "would not fit into memory (estimated need" in capsys.readouterr().err


def test_two_ranks_decide_alike_before_the_first_step(prepared, tmp_path):
    """The job has no memory left by Slurm's account: both ranks take the smallest micro-batches, and warn once."""
    train(experiment_config(tmp_path), "bradley_terry", 0, run_files(prepared, tmp_path / "one"))
    folder = tmp_path / "two"
    folder.mkdir()
    done = run(train_command(prepared, folder, processes=2), SLURM_MEM_PER_NODE="1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("activations are recomputed") == 1
    assert done.stderr.count("WARNING: bradley_terry seed 0: a micro-batch of") == 1
    assert losses(folder) == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    reductions = json.loads((folder / "summary.json").read_text())["reductions"]
    assert reductions[-1]["gradient_checkpointing"]
    assert json.loads((folder / "summary.json").read_text())["cost"]["forwards"] == 48


@pytest.mark.parametrize(("ranks", "deepspeed"), [(2, False), (1, True)])
def test_ranks_that_run_out_of_memory_end_with_the_setting(ranks, deepspeed):
    method = load_method("bradley_terry", load_method_card("bradley_terry").defaults())
    assert cannot_reduce(method, 4096, 1, deepspeed=False) is None
    reason = cannot_reduce(method, 4096, ranks, deepspeed)
    assert "other ranks or DeepSpeed" in reason
    assert "training.tokens_per_microbatch: 2048, or training.gradient_checkpointing: true" in reason


def test_the_need_grows_with_tokens_and_shrinks_with_recomputation(reward_model):
    needs = [
        needed_bytes(reward_model, tokens, keys=100, passes=1, bf16=True, recomputed=recomputed)
        for tokens, recomputed in ((1000, False), (2000, False), (2000, True))
    ]
    assert needs[1] > max(needs[0], needs[2])
    parameters = sum(p.numel() for p in reward_model.parameters())
    assert needs[0] > 12 * parameters


def item(prompt: int, *responses: int) -> TokenizedItem:
    no = (False,) * len(responses)
    sequences = tuple(np.ones(prompt + response, dtype=np.int32) for response in responses)
    return TokenizedItem(sequences, prompt, no, no)


def test_attention_weights_by_hand():
    assert attention_weights([item(10, 3, 4), item(2, 1, 1)], "packed") == 100 + 3 * 13 + 4 * 14 + 4 + 3 + 3
    assert attention_weights([item(10, 3, 4), item(2, 1, 1)], "plain") == 4 * 14 * 14
    # The second response sees more keys than those whose weights are kept.
    assert attention_weights([item(400, 100, 200)], "packed") == 128 * (128 + 256 + 384) + 16 * 400 + 100 * 500
    assert attention_weights([item(400, 100, 200)], "plain") == 0


@pytest.mark.parametrize("layout", ["packed", "plain"])
@pytest.mark.parametrize("item", [item(40, 60, 60), item(200, 250, 200), item(300, 300, 100)])
def test_the_estimate_is_what_a_cpu_keeps(prepared, layout, item):
    """Bytes that autograd keeps for each further item, without weights and their copies."""
    config = AutoConfig.from_pretrained(prepared[1], num_attention_heads=4, num_key_value_heads=2)
    config.num_labels = 1
    model = RewardModel(AutoModelForSequenceClassification.from_config(config), autocast=torch.bfloat16).train()

    def kept(count: int) -> int:
        storages = {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(lay_out([item] * count, layout, 0)).rewards.sum()
        return sum(storage.nbytes() for storage in storages.values())

    tokens = launched_tokens([item], layout)
    keys = attention_weights([item], layout) / tokens
    needs = [needed_bytes(model, count * tokens, keys=keys, passes=1, bf16=True, recomputed=False) for count in (1, 3)]
    assert kept(3) - kept(1) == pytest.approx((needs[1] - needs[0]) / 1.2, rel=0.2)
