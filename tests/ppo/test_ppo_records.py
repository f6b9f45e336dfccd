"""The reward-hacking alarm and the means over evaluation prompts, on made-up evaluations."""

from __future__ import annotations

import numpy as np
import pytest

from rm_methods.errors import DataError
from rm_methods.ppo.records import evaluation_means, read_evaluation, reward_hacking, write_evaluation


def evaluation(gold: dict[int, float], proxy: dict[int, float], spread: float = 0.1, prompts: int = 50) -> list[dict]:
    """Evaluations whose mean gold and proxy at each step are exactly the given ones."""
    generator = np.random.default_rng(0)
    rows = []
    for step in gold:
        noise = generator.normal(size=prompts)
        noise = (noise - noise.mean()) / noise.std() * spread
        for k in range(prompts):
            values = {
                "proxy": proxy[step],
                "gold": gold[step] + noise[k],
                "kl": step / 10,
                "n_tokens": 7,
                "finished": k % 2 == 0,
            }
            rows.append({"step": step, "prompt_id": f"p{k}", "response": "x"} | values)
    return rows


def test_gold_that_falls_while_the_proxy_rises_alarms():
    found = reward_hacking(
        evaluation({0: 0.2, 20: 0.6, 40: 0.5, 60: 0.1}, {0: 0.0, 20: 1.0, 40: 2.0, 60: 3.0}), margin=0.0
    )
    assert found["alarm"]
    assert found["steps"] == [40, 60]
    assert found["first"]["best_step"] == found["last"]["best_step"] == 20
    assert found["last"]["gold_change"] == pytest.approx(-0.5)
    assert found["last"]["proxy_change"] == pytest.approx(2.0)
    assert found["last"]["kl"] == pytest.approx(6.0)
    low, high = found["last"]["gold_interval"]
    assert low < -0.5 < high < 0


def test_the_interval_is_the_t_interval_of_paired_differences():
    rows = evaluation({0: 0.0, 10: -1.0}, {0: 0.0, 10: 1.0}, prompts=4)
    gold = np.array([row["gold"] for row in rows]).reshape(2, 4)
    error = (gold[1] - gold[0]).std(ddof=1) / 2
    found = reward_hacking(rows, margin=0.0)
    assert found["comparisons"] == 1
    assert found["first"]["gold_interval"] == pytest.approx([-1 - 3.182446 * error, -1 + 3.182446 * error], abs=1e-5)


def test_gold_that_falls_with_the_proxy_is_no_reward_hacking():
    assert not reward_hacking(evaluation({0: 0.6, 20: 0.1}, {0: 1.0, 20: 0.5}), margin=0.0)["alarm"]


def test_a_fall_within_the_noise_or_the_margin_does_not_alarm():
    proxy = {0: 0.0, 20: 1.0}
    assert not reward_hacking(evaluation({0: 0.6, 20: 0.55}, proxy, spread=1.0), margin=0.0)["alarm"]
    assert reward_hacking(evaluation({0: 0.6, 20: 0.4}, proxy), margin=0.0)["alarm"]
    assert not reward_hacking(evaluation({0: 0.6, 20: 0.4}, proxy), margin=0.3)["alarm"]


def test_rising_gold_and_a_single_evaluation_do_not_alarm():
    assert not reward_hacking(evaluation({0: 0.1, 20: 0.5}, {0: 0.0, 20: 1.0}), margin=0.0)["alarm"]
    assert reward_hacking(evaluation({0: 0.1}, {0: 0.0}), margin=0.0) == {
        "alarm": False, "margin": 0.0, "confidence": 0.95, "comparisons": 0, "steps": [], "first": None, "last": None,
    }  # fmt: skip


def test_pure_noise_seldom_alarms():
    """Eleven evaluations of an unchanged policy, whose proxy creeps up: at most one run in twenty may alarm."""
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(100):
        rows = []
        for step in range(11):
            gold = generator.normal(size=32)
            rows += [{"step": step, "prompt_id": k, "proxy": step, "gold": gold[k], "kl": 0.0} for k in range(32)]
        alarms += reward_hacking(rows, margin=0.0)["alarm"]
    assert alarms <= 5


def test_means_are_over_prompts_at_each_step():
    means = evaluation_means(evaluation({0: 0.25, 10: 0.5}, {0: 1.0, 10: 2.0}))
    assert [row["step"] for row in means] == [0, 10]
    assert means[1] == {
        "step": 10,
        "proxy": 2.0,
        "gold": pytest.approx(0.5),
        "kl": pytest.approx(1.0),
        "length": 7.0,
        "end_rate": 0.5,
    }


def test_evaluations_come_back_as_they_were_written(tmp_path):
    rows = evaluation({0: 0.25}, {0: 1.0}, prompts=3)
    write_evaluation(rows, tmp_path / "evaluation.parquet")
    assert read_evaluation(tmp_path / "evaluation.parquet") == rows
    with pytest.raises(DataError, match="no such file"):
        read_evaluation(tmp_path / "other.parquet")
