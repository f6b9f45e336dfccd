"""PPO on two ranks samples what one rank samples and learns the same, up to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rm_methods.overoptimization.ppo_records import read_evaluation
from rm_methods.policies.policy import policy_from_backbone, save_policy

RUN = """
import sys
from pathlib import Path
from rm_methods.overoptimization.ppo import train_ppo
from rm_methods.overoptimization.ppo_rewards import text_reward
from rm_methods.policies.policy import Prompt

policy, out = sys.argv[1:]
prompts = [Prompt(f"p{k}", [{"role": "user", "content": f"paint it {c}"}]) for k, c in enumerate(("red", "blue", "black", "white"))]
settings = {
    "updates": 3, "batch_size": 10, "rows_per_forward": 3, "max_new_tokens": 6, "learning_rate": 1e-3, "standardise": False,
    "evaluate_every": 2, "checkpoint_every": 2, "minibatches": 3,
}
reward = text_reward(lambda prompt, response: float(response.count("e")))
train_ppo(settings, policy, reward, reward, prompts, prompts, 0, out, Path(out) / "work", threads=1)
"""


def run(policy: Path, out: Path, ranks: int) -> Path:
    script = policy.parent / "run.py"
    script.write_text(RUN)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(script), str(policy), str(out)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.slow
def test_two_ranks_are_one_rank(prepared, tmp_path):
    policy = tmp_path / "policy"
    save_policy(policy_from_backbone(prepared[1], prepared[2]["backbone"], seed=0), policy)
    one, two = (run(policy, tmp_path / str(ranks), ranks) for ranks in (1, 2))
    assert json.loads((two / "summary.json").read_text())["world_size"] == 2
    rows = [read_evaluation(folder / "evaluation.parquet") for folder in (one, two)]
    assert [row["response"] for row in rows[0]] == [row["response"] for row in rows[1]]
    assert [row["kl"] for row in rows[0]] == pytest.approx([row["kl"] for row in rows[1]], abs=1e-4)
    ours, theirs = (load_file(folder / "policy" / "model.safetensors") for folder in (one, two))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    start = load_file(policy / "model.safetensors")
    assert max(float((ours[name] - start[name]).abs().max()) for name in ours) > 1e-3
