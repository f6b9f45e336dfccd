"""The TRL example: what TRL scores is what we score, the policy learns and can be loaded, and mistakes get a
sentence."""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import pytest
import torch

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError, UserError
from rm_methods.preferences.pair import make_pair, read_pairs, write_pairs
from rm_methods.scoring.scorer import ScoringSettings, load_scorer

pytestmark = pytest.mark.process

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL: pip install -r performance/requirements.txt"
)


def command(folders, output, *more, **replaced):
    arguments = {
        "reward-model": folders.reward_model,
        "policy": folders.policy,
        "pairs": folders.pairs,
        "output": output,
        "steps": 3,
        "prompts-per-step": 2,
        "completions": 4,
        "max-prompt-tokens": 200,
        "max-completion-tokens": 16,
        "learning-rate": 1e-3,
    }
    arguments |= {name.replace("_", "-"): value for name, value in replaced.items()}
    return [text for name, value in arguments.items() for text in (f"--{name}", str(value))] + list(more)


def made_trainer(example, folders, tmp_path, *more):
    return example.make_trainer(
        example.parse_arguments(command(folders, tmp_path / "policy", *more)), tmp_path / "work"
    )


def rewards_of_trl(trainer, conversations) -> torch.Tensor:
    """What the trainer's own reward step gives for (prompt, response) pairs."""
    prompts = [prompt for prompt, _ in conversations]
    completions = [[{"role": "assistant", "content": response}] for _, response in conversations]
    return trainer._calculate_rewards(
        [{"prompt": prompt} for prompt in prompts], prompts, completions, [[0]] * len(prompts)
    )[:, 0].cpu()


def our_scores(folder, conversations) -> torch.Tensor:
    items = [BenchmarkItem(str(k), "s", prompt, [response], 0) for k, (prompt, response) in enumerate(conversations)]
    return torch.tensor([row.score for row in load_scorer(folder, ScoringSettings(max_length=512)).score(items)])


@pytest.fixture
def conversations(folders):
    """Chosen and rejected responses of unequal lengths, a system turn, several turns, and an empty response."""
    found = [
        (list(pair.prompt), text) for pair in read_pairs(folders.pairs)[:12] for text in (pair.chosen, pair.rejected)
    ]
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Paint it red."}]
    turns = [*system, {"role": "assistant", "content": "It is red."}, {"role": "user", "content": "Now blue, please."}]
    return [*found, (system, "It is now red."), (turns, "It is now blue. " * 8), (system, "")]


@needs_trl
@pytest.mark.parametrize("more", [(), ("--scorer",), ("--trainer", "rloo")])
def test_the_reward_in_trl_is_the_score_of_the_score_stage(example, folders, conversations, tmp_path, more):
    rewards = rewards_of_trl(made_trainer(example, folders, tmp_path, *more), conversations)
    expected = our_scores(folders.reward_model, conversations)
    assert expected.std() > 0.1
    torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=0)


@needs_trl
def test_in_bf16_our_scorer_keeps_the_head_in_fp32(example, folders, conversations, tmp_path):
    ours = rewards_of_trl(made_trainer(example, folders, tmp_path, "--precision", "bf16", "--scorer"), conversations)
    theirs = rewards_of_trl(made_trainer(example, folders, tmp_path, "--precision", "bf16"), conversations)
    assert torch.equal(theirs, theirs.bfloat16().float())
    assert not torch.equal(ours, ours.bfloat16().float())
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0)


@needs_trl
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_the_policy_is_trained_and_saved_as_a_causal_language_model(example, folders, tmp_path, trainer, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert example.main(command(folders, tmp_path / "trained", "--trainer", trainer)) == 0
    assert "3 steps, mean reward" in capsys.readouterr().out
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (folders.policy, tmp_path / "trained")
    )
    assert before.keys() == after.keys()
    assert all(torch.isfinite(weight).all() for weight in after.values())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == len(before)
    assert AutoTokenizer.from_pretrained(tmp_path / "trained").chat_template
    assert not [path.name for path in (tmp_path / "trained").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


@needs_trl
def test_the_policy_learns_to_please_the_reward_model(example, folders, tmp_path):
    options = ["--kl", "0", "--scorer"]
    small = command(
        folders, tmp_path / "trained", *options, steps=20, prompts_per_step=4, completions=8, learning_rate=1e-2
    )
    rewards = example.train_policy(example.parse_arguments(small))
    assert len(rewards) == 20
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3


@needs_trl
def test_an_ensemble_serves_as_reward_through_our_scorer(example, folders, conversations, tmp_path):
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    description = {
        "method": "ensemble",
        "settings": {"aggregate": "mean", "weight": 0.5},
        "members": [str(folders.reward_model)] * 2,
        "centers": [0, 1.0],
    }
    (ensemble / "scorer.json").write_text(json.dumps(description))
    served = folders._replace(reward_model=ensemble)
    rewards = rewards_of_trl(made_trainer(example, served, tmp_path, "--scorer"), conversations)
    torch.testing.assert_close(rewards, our_scores(folders.reward_model, conversations) - 0.5, atol=1e-5, rtol=0)


def test_prompts_are_taken_once_and_only_of_the_split(example, tmp_path):
    prompts = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
    pairs = [
        make_pair(prompt, f"good {k}", f"bad {k}", split="train", source="s")
        for k in range(2)
        for prompt in prompts[:2]
    ]
    write_pairs([*pairs, make_pair(prompts[2], "good", "bad", split="test", source="s")], tmp_path / "pairs.parquet")
    assert example.read_prompts(tmp_path / "pairs.parquet", "train") == prompts[:2]
    with pytest.raises(DataError, match=r"no pair of split 'validaton'. Splits of the file: test, train"):
        example.read_prompts(tmp_path / "pairs.parquet", "validaton")


def test_prompts_that_are_too_long_are_counted(example, tokenizer, capsys):
    prompts = [[{"role": "user", "content": "red " * count}] for count in (1, 2, 300)]
    assert example.prompts_that_fit(prompts, [tokenizer.tokenizer], 50) == prompts[:2]
    assert "2 of 3 prompts; 1 have more than 50 tokens" in capsys.readouterr().err
    with pytest.raises(DataError, match="Raise --max-prompt-tokens"):
        example.prompts_that_fit(prompts[2:], [tokenizer.tokenizer], 50)


def refused(example, capsys, arguments) -> str:
    assert example.main(arguments) == 2
    return capsys.readouterr().err


def test_models_that_have_no_score_for_trl_are_refused(example, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", types.ModuleType("trl"))
    assert "no such folder" in refused(
        example, capsys, command(folders, tmp_path / "out", reward_model=tmp_path / "absent")
    )
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "joint.json").write_text("{}")
    assert "a joint model" in refused(
        example, capsys, command(folders, tmp_path / "out", reward_model=tmp_path / "joint")
    )
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "scorer.json").write_text("{}")
    assert "Add --scorer" in refused(
        example, capsys, command(folders, tmp_path / "out", reward_model=tmp_path / "ensemble")
    )
    assert "2 or more" in refused(example, capsys, command(folders, tmp_path / "out", completions=1))


def test_without_trl_the_message_says_how_to_install_it(example, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    assert "pip install -r performance/requirements.txt" in refused(example, capsys, command(folders, tmp_path / "out"))


def test_lengths_beyond_a_models_positions_are_refused(example, folders, tmp_path):
    options = example.parse_arguments(command(folders, tmp_path, max_prompt_tokens=400, max_completion_tokens=100))
    with pytest.raises(UserError, match=r"--reward-model takes 512 tokens, .* make 516"):
        example.longest_sequence(options, {"--reward-model": types.SimpleNamespace(max_position_embeddings=512)})
    assert example.longest_sequence(options, {"--policy": types.SimpleNamespace(max_position_embeddings=516)}) == 516
