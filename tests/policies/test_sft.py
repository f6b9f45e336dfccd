"""Supervised fine-tuning: what is learned from, that it is learned, resume, bad settings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import DataError
from rm_methods.policies import sft
from rm_methods.policies.policy import load_policy, policy_from_backbone
from rm_methods.policies.sampling import SamplingSettings, generate
from rm_methods.policies.sft import IGNORED, collate, mean_loss, sft_examples, train_sft
from tests.conftest import made_up_pairs, sft_settings

QUICK = {
    "epochs": 1,
    "examples_per_step": 16,
    "examples_per_microbatch": 8,
    "learning_rate": 1e-2,
    "log_every_steps": 1,
}


@pytest.fixture(scope="module")
def policy(prepared):
    return policy_from_backbone(prepared[1], prepared[2]["backbone"], seed=0)


def run(prepared, pairs, folder, **settings):
    settings = {"responses": "both", "checkpoint_every_steps": None} | QUICK | settings
    return train_sft(
        sft_settings(**settings),
        pairs,
        backbone_folder=prepared[1],
        backbone=prepared[2]["backbone"],
        seed=0,
        out_folder=folder,
        work_folder=folder / "work",
        threads=1,
    )


def test_the_loss_is_on_the_response_and_its_end_token(policy, pairs):
    examples, counts = sft_examples(policy, pairs[:2], sft_settings(responses="both"))
    assert len(examples) == 4
    assert counts == {"prompts_cut": 0, "responses_cut": 0, "boundary_merges": 0}
    first = examples[0]
    learned = [i for i, label in zip(first["input_ids"], first["labels"], strict=True) if label != IGNORED]
    assert policy.tokenizer.decode(learned) == pairs[0].chosen + "<eos>"
    conversation = [*pairs[0].prompt, {"role": "assistant", "content": pairs[0].chosen}]
    assert first["input_ids"] == policy.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
    assert examples[1]["input_ids"] != first["input_ids"]


def test_mixed_responses_are_written_for_the_prompts_within_the_budget(policy, pairs):
    settings = sft_settings(responses="mixed", max_sentences=3)
    examples, _ = sft_examples(policy, pairs[:3], settings)
    assert len(examples) == 6
    assert examples == sft_examples(policy, pairs[:3], settings)[0]
    for example in examples:
        learned = [i for i, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORED]
        text = policy.tokenizer.decode(learned)
        assert text.endswith("<eos>")
        assert 2 <= text.count(".") + text.count("!") + text.count("**Summary**") <= 3


def test_only_chosen_responses_if_asked(policy, pairs):
    examples, _ = sft_examples(policy, pairs[:3], sft_settings(responses="chosen"))
    assert len(examples) == 3


def test_what_does_not_fit_is_cut_and_counted(policy, pairs):
    examples, counts = sft_examples(
        policy, pairs[:2], sft_settings(responses="both", max_response_tokens=3, max_prompt_tokens=12)
    )
    assert counts["responses_cut"] == counts["prompts_cut"] == 4
    assert all(len(e["input_ids"]) <= 15 and e["labels"][-1] != policy.end_ids[0] for e in examples)


def test_a_batch_is_as_wide_as_its_longest_example():
    batch = collate([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_mean_loss_counts_tokens_not_batches(policy, pairs):
    examples, _ = sft_examples(policy, pairs[:4], sft_settings(responses="both"))
    assert mean_loss(policy, examples, 3) == pytest.approx(mean_loss(policy, examples, 8), abs=1e-5)
    assert mean_loss(policy, examples, 3) == pytest.approx(np.log(policy.model.config.vocab_size), abs=0.3)
    assert mean_loss(policy, [], 3) is None


def test_fine_tuning_teaches_the_form_of_the_responses(prepared, pairs, tmp_path):
    more = [*made_up_pairs(120, seed=5), *made_up_pairs(12, seed=1, split="validation")]
    summary = run(prepared, more, tmp_path, epochs=3)
    assert summary["validation_loss"] < 1.5
    assert summary["examples"] == 240
    assert summary["optimizer_steps"] == 45
    assert json.loads((tmp_path / "summary.json").read_text())["validation_examples"] == 24
    assert not (tmp_path / "work").exists()
    policy = load_policy(tmp_path / "policy")
    ids = policy.encode_prompts([pair.prompt for pair in pairs[:16]], 100)[0]
    drawn = generate(policy, ids, SamplingSettings(40), seed=0)
    texts = [policy.decode(row) for row in drawn.response_ids.tolist()]
    assert np.mean([text.startswith("It is now") for text in texts]) > 0.7
    assert float(drawn.finished.float().mean()) > 0.7


def test_no_epochs_leave_the_policy_as_it_is(prepared, policy, pairs, tmp_path):
    summary = run(prepared, pairs, tmp_path, epochs=0)
    assert summary["optimizer_steps"] == 0
    assert summary["train_loss"] is None
    saved = load_policy(tmp_path / "policy").model.state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in policy.model.state_dict().items())


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(prepared, pairs, tmp_path, monkeypatch):
    run(prepared, pairs, tmp_path / "whole", checkpoint_every_steps=4)
    original = sft.save_policy

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "save_policy", killed)
    with pytest.raises(KeyboardInterrupt):
        run(prepared, pairs, tmp_path / "killed", checkpoint_every_steps=4)
    assert [f.name for f in (tmp_path / "killed" / "work").glob("checkpoint-*")]
    # Of the checkpoints at steps 4 and 6 (the last), the run must go on from the earlier one.
    import shutil

    shutil.rmtree(tmp_path / "killed" / "work" / "checkpoint-6", ignore_errors=True)
    monkeypatch.setattr(sft, "save_policy", original)
    run(prepared, pairs, tmp_path / "killed", checkpoint_every_steps=4)
    weights = [load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert len(lines[0]) == 6


def test_without_training_pairs_there_is_an_error(prepared, pairs, tmp_path):
    with pytest.raises(DataError, match="no pairs of split 'train'"):
        run(prepared, made_up_pairs(3, split="validation"), tmp_path)
