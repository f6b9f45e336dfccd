"""PPO on toys: it finds known optima, keeps what it has no reason to change, resumes exactly, and stops with a
reason."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import UserError
from rm_methods.policies.log_probabilities import read_responses
from rm_methods.policies.policy import Prompt, load_policy, policy_from_backbone, save_policy
from rm_methods.policies.sentences import completed_sentences
from rm_methods.ppo.records import read_evaluation
from rm_methods.ppo.rewards import rewards_of, scorer_reward, text_reward
from rm_methods.ppo.trainer import batch_members, rate_factor, train_ppo
from rm_methods.reward_models.backbones import WORLD_MODEL
from tests.conftest import ppo_settings

pytestmark = pytest.mark.process

QUICK = {
    "updates": 4,
    "batch_size": 8,
    "rows_per_forward": 8,
    "max_new_tokens": 6,
    "learning_rate": 1e-3,
    "standardize": False,
    "evaluate_every": 2,
    "checkpoint_every": None,
}
BANDIT = QUICK | {
    "batch_size": 64,
    "rows_per_forward": 64,
    "max_new_tokens": 1,
    "learning_rate": 3e-3,
    "evaluate_every": 1000,
}
PROMPTS = [
    Prompt(f"p{k}", [{"role": "user", "content": f"paint it {color}"}])
    for k, color in enumerate(("red", "blue", "black"))
]
no_reward = text_reward(lambda prompt, response: 0.0)
count_of_e = text_reward(lambda prompt, response: float(response.count("e")))


def is_rewarded(prompt, response) -> float:
    """About one token in five of the untrained policy."""
    return float(response.strip()[:1] in tuple("abcdefghijklm"))


@pytest.fixture(scope="module")
def policy_folder(prepared, tmp_path_factory):
    policy = policy_from_backbone(prepared[1], prepared[2]["backbone"], seed=0)
    with torch.no_grad():
        # Responses of different lengths, some of them finished before six tokens.
        policy.model.lm_head.weight.mul_(20)
        policy.model.lm_head.weight[policy.end_ids[0]] *= 3
    folder = tmp_path_factory.mktemp("ppo") / "policy"
    save_policy(policy, folder)
    return folder


def run(policy_folder, folder, reward=count_of_e, gold=no_reward, seed=0, prompts=PROMPTS, references=None, **settings):
    return train_ppo(
        ppo_settings(**(QUICK | settings)),
        policy_folder=policy_folder,
        reward=reward,
        gold=gold,
        prompts=prompts,
        evaluation_prompts=PROMPTS,
        seed=seed,
        out_folder=folder,
        work_folder=folder / "work",
        references=references,
        threads=1,
    )


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(first, second) -> bool:
    first, second = weights(first), weights(second)
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def chance_of_reward(folder) -> float:
    """Exact probability that a response of one token is rewarded, after the first prompt."""
    policy = load_policy(folder)
    ids = policy.encode_prompts([PROMPTS[0].messages], 100)[0]
    with torch.no_grad():
        logits, _ = read_responses(policy.model, ids, torch.tensor([[1]]), torch.tensor([[True]]), policy.pad_id)
    chances = logits[0, 0].softmax(-1)
    return sum(float(chances[k]) for k in range(len(chances)) if is_rewarded(None, policy.decode([k])))


def test_a_bandit_without_kl_penalty_reaches_the_best_arm(policy_folder, tmp_path):
    before = chance_of_reward(policy_folder)
    run(
        policy_folder,
        tmp_path,
        text_reward(is_rewarded),
        prompts=PROMPTS[:1],
        **(BANDIT | {"updates": 25, "kl_coefficient": 0.0}),
    )
    assert before < 0.5
    assert chance_of_reward(tmp_path / "policy") > 0.97


def test_no_response_is_longer_than_the_limit_of_sentences(tmp_path):
    folder = tmp_path / "run"
    policy = {"prompts": PROMPTS, "max_new_tokens": 40, "updates": 1, "evaluate_every": 1}
    run(WORLD_MODEL, folder, count_of_e, **policy, max_sentences=2)
    responses = [row["response"] for row in read_evaluation(folder / "evaluation.parquet")]
    assert max(map(completed_sentences, responses)) == 2
    run(WORLD_MODEL, tmp_path / "free", count_of_e, **policy)
    free = [row["response"] for row in read_evaluation(tmp_path / "free" / "evaluation.parquet")]
    assert max(map(completed_sentences, free)) > 2


def test_a_bandit_with_kl_penalty_reaches_the_known_optimum(policy_folder, tmp_path):
    """The optimum of E[r] - beta KL is pi_ref exp(r / beta) / Z: for a reward of 0 or 1, q = p e / (p e + 1 - p), e =
    exp(1 / beta)."""
    beta = 0.6
    before = chance_of_reward(policy_folder)
    optimum = before * math.exp(1 / beta) / (before * math.exp(1 / beta) + 1 - before)
    settings = BANDIT | {
        "updates": 50,
        "kl_coefficient": beta,
        "schedule": "linear",
        "batch_size": 128,
        "rows_per_forward": 128,
    }
    run(policy_folder, tmp_path, text_reward(is_rewarded), prompts=PROMPTS[:1], **settings)
    assert before + 0.1 < optimum < 0.9
    assert chance_of_reward(tmp_path / "policy") == pytest.approx(optimum, abs=0.06)


def test_no_reward_leaves_the_policy_as_it_is(policy_folder, tmp_path):
    summary = run(policy_folder, tmp_path, no_reward)
    assert same_weights(policy_folder, tmp_path / "policy")
    assert max(abs(line["kl"]) for line in lines(tmp_path)) == 0
    assert summary["evaluation"]["first"] | {"step": 4} == summary["evaluation"]["last"]


def test_every_update_and_every_seed_samples_anew(policy_folder, tmp_path):
    """Without a reward the policy never changes, so equal responses in two updates could only come from an equal
    seed."""
    responses = []

    def noted(prompts, texts):
        if len(texts) == QUICK["batch_size"]:  # an evaluation has three prompts
            responses.append(tuple(texts))
        return np.zeros(len(texts))

    for seed in (0, 1):
        run(policy_folder, tmp_path / str(seed), noted, prompts=PROMPTS[:1], seed=seed)
    assert len(responses) == len(set(responses)) == 2 * QUICK["updates"]


def test_a_seed_gives_the_same_run_bit_for_bit_and_another_seed_does_not(policy_folder, tmp_path):
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        torch.rand(3)
        run(policy_folder, tmp_path / name, seed=seed)
    assert same_weights(tmp_path / "first" / "policy", tmp_path / "second" / "policy")
    assert not same_weights(tmp_path / "first" / "policy", tmp_path / "other" / "policy")
    assert not same_weights(tmp_path / "first" / "policy", policy_folder)
    evaluations = [(tmp_path / name / "evaluation.parquet").read_bytes() for name in ("first", "second", "other")]
    assert evaluations[0] == evaluations[1] != evaluations[2]


@pytest.mark.parametrize("killed_in", [3, 5])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(policy_folder, tmp_path, killed_in):
    """Checkpoints after updates 2 and 4, evaluations after 3; running moments and an adaptive coefficient are states
    too."""
    settings = {
        "updates": 6,
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "kl_target": 0.5,
        "kl_horizon": 50,
        "transform": "running",
    }
    run(policy_folder, tmp_path / "whole", **settings)
    calls = []

    def killed(prompts, responses):
        calls.append(len(prompts))
        # Batches have eight prompts, evaluations three.
        if calls.count(8) == killed_in + 1:
            raise KeyboardInterrupt
        return count_of_e(prompts, responses)

    with pytest.raises(KeyboardInterrupt):
        run(policy_folder, tmp_path / "killed", killed, **settings)
    calls.extend([8])
    summary = run(policy_folder, tmp_path / "killed", killed, **settings)
    assert calls.count(8) == killed_in + 2 + 6 - (killed_in - killed_in % 2)
    assert same_weights(tmp_path / "whole" / "policy", tmp_path / "killed" / "policy")
    whole, again = ([line | {"time": None} for line in lines(tmp_path / name)] for name in ("whole", "killed"))
    assert whole == again
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 5, 6]
    assert read_evaluation(tmp_path / "whole" / "evaluation.parquet") == read_evaluation(
        tmp_path / "killed" / "evaluation.parquet"
    )
    assert summary["kl_coefficient"] != ppo_settings().kl_coefficient
    assert not (tmp_path / "killed" / "work").exists()


def test_a_checkpoint_of_another_run_is_refused(policy_folder, tmp_path):
    seen: list[int] = []

    def killed_late(prompts, responses):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return count_of_e(prompts, responses)

    with pytest.raises(KeyboardInterrupt):
        run(policy_folder, tmp_path, killed_late, checkpoint_every=1)
    with pytest.raises(UserError, match="a checkpoint of another run"):
        run(policy_folder, tmp_path, checkpoint_every=1, learning_rate=2e-3)


def test_files_hold_what_is_promised(policy_folder, tmp_path):
    summary = run(policy_folder, tmp_path, gold=text_reward(lambda prompt, response: float(len(response))))
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    expected = {
        "step",
        "time",
        "proxy",
        "gold",
        "kl",
        "kl_coefficient",
        "length",
        "end_rate",
        "distinct_1",
        "distinct_2",
        "policy_loss",
        "value_loss",
        "clip_fraction",
        "entropy",
        "gradient_norm",
        "reward",
    }
    assert all(set(line) == expected for line in lines(tmp_path))
    rows = read_evaluation(tmp_path / "evaluation.parquet")
    assert [(row["step"], row["prompt_id"]) for row in rows] == [
        (step, f"p{k}") for step in (0, 2, 4) for k in range(3)
    ]
    assert all(row["proxy"] == row["response"].count("e") and row["gold"] == len(row["response"]) for row in rows)
    assert all(row["kl"] == 0 for row in rows[:3])
    assert any(row["kl"] != 0 for row in rows[3:])
    assert set(summary["seconds"]) == {"evaluation", "generate", "read", "proxy", "gold", "learn"}
    load_policy(tmp_path / "policy")


def test_responses_without_end_token_cost_the_penalty(policy_folder, tmp_path):
    run(policy_folder, tmp_path, missing_end_penalty=3.0, updates=2, batch_size=32)
    found = lines(tmp_path)
    assert 0 < found[0]["end_rate"] < 1
    for line in found:
        assert line["reward"] == pytest.approx(line["proxy"] - 3.0 * (1 - line["end_rate"]))


def test_the_penalty_teaches_to_end(policy_folder, tmp_path):
    summary = run(
        policy_folder, tmp_path, no_reward, updates=20, batch_size=32, missing_end_penalty=1.0, kl_coefficient=0.0
    )
    assert lines(tmp_path)[-1]["end_rate"] > lines(tmp_path)[0]["end_rate"] + 0.3
    assert summary["evaluation"]["last"]["kl"] > 0


def test_a_gold_that_is_not_a_number_names_prompt_and_response(policy_folder, tmp_path):
    with pytest.raises(
        UserError, match=r"3 of 3 rewards of the gold reward are not finite.*nan for prompt .paint it red., response"
    ):
        run(policy_folder, tmp_path, gold=text_reward(lambda prompt, response: float("nan")))


def test_rewards_of_the_wrong_shape_are_refused():
    with pytest.raises(UserError, match=r"proxy returned an array of shape \(2,\) for 3 responses"):
        rewards_of(lambda prompts, responses: np.zeros(2), "proxy", PROMPTS, ["a", "b", "c"])


def test_a_diverging_kl_stops_the_run_and_keeps_the_last_good_policy(policy_folder, tmp_path, capsys):
    summary = run(policy_folder, tmp_path, learning_rate=0.5, kl_limit=1.0, updates=6)
    assert summary["stopped"]["step"] in (1, 2)
    assert "kl_limit is 1.0" in summary["stopped"]["reason"]
    assert summary["policy_step"] == 0
    assert same_weights(policy_folder, tmp_path / "policy")
    assert "The policy of step 0 is kept" in capsys.readouterr().err


def test_weights_that_overflow_stop_the_run_too(policy_folder, tmp_path):
    summary = run(policy_folder, tmp_path, learning_rate=1e30, max_gradient_norm=1e30, updates=4)
    assert summary["stopped"] is not None
    assert same_weights(policy_folder, tmp_path / "policy")


def test_a_policy_that_is_broken_from_the_start_is_an_error(policy_folder, tmp_path):
    policy = load_policy(policy_folder)
    with torch.no_grad():
        policy.model.lm_head.weight[0] = float("nan")
    save_policy(policy, tmp_path / "broken")
    with pytest.raises(UserError, match="weights are broken"):
        run(tmp_path / "broken", tmp_path)


def test_a_loss_that_is_not_finite_is_never_stepped_on(policy_folder, tmp_path):
    summary = run(policy_folder, tmp_path, text_reward(lambda prompt, response: 1e38 * len(response)), updates=4)
    assert "not finite" in summary["stopped"]["reason"]
    assert summary["stopped"]["step"] == 0
    assert lines(tmp_path)[0]["policy_loss"] is None


def test_standardized_rewards_need_stored_responses(policy_folder, tmp_path):
    with pytest.raises(UserError, match="needs the scores of stored SFT responses"):
        run(policy_folder, tmp_path, standardize=True)
    references = {"p0": ["e", "ee"], "p1": ["", "eee"], "p2": ["e", "e"]}
    summary = run(policy_folder, tmp_path, standardize=True, transform="contrastive", references=references)
    scores = np.array([1, 2, 0, 3, 1, 1])
    assert (summary["proxy_center"], summary["proxy_scale"]) == pytest.approx((scores.mean(), scores.std()))


def test_the_contrastive_reward_is_what_is_learned_from(policy_folder, tmp_path):
    references = {"p0": ["ee"], "p1": [""], "p2": [""]}
    run(policy_folder, tmp_path, transform="contrastive", references=references, updates=1, batch_size=3)
    line = lines(tmp_path)[0]
    assert line["reward"] == pytest.approx(line["proxy"] - 2 / 3)


def test_a_reward_model_can_be_the_proxy(reward_model, tokenizer):
    from rm_methods.benchmarks.item import BenchmarkItem
    from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings

    scorer = RewardModelScorer(reward_model, tokenizer, ScoringSettings(max_length=256, threads=1))
    responses = ["It is now red.", "It is now blue.", ""]
    rewards = scorer_reward(scorer)([prompt.messages for prompt in PROMPTS], responses)
    for prompt, response, reward in zip(PROMPTS, responses, rewards, strict=True):
        alone = scorer.score([BenchmarkItem("x", "x", prompt.messages, [response], 0)])[0].score
        assert reward == pytest.approx(alone, abs=1e-5)
    assert rewards.dtype == np.float64


def test_a_joint_model_is_refused_as_proxy():
    from rm_methods.scoring.scorer import JointScorer, ScoringSettings

    with pytest.raises(UserError, match="joint model compares two responses"):
        scorer_reward(JointScorer(SimpleNamespace(layout=lambda asked: "plain"), None, ScoringSettings()))


def test_every_pass_goes_through_all_prompts_once():
    members = [member for step in range(10) for member in batch_members(prompts=7, batch_size=3, step=step, seed=0)]
    passes = [members[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1]
    assert len(batch_members(prompts=2, batch_size=5, step=0, seed=0)) == 5


def test_learning_rate_schedules():
    assert [rate_factor(name, 0.0) for name in ("constant", "linear", "cosine")] == [1, 1, 1]
    assert [rate_factor(name, 0.5) for name in ("constant", "linear", "cosine")] == pytest.approx([1, 0.5, 0.5])
    assert rate_factor("cosine", 1.0) == pytest.approx(0)
