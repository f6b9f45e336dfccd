"""PPO on two ranks samples what one rank samples and learns the same, up to rounding; also where ZeRO cuts its
weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rm_methods.policies.policy import load_policy, policy_from_backbone, save_policy
from rm_methods.ppo.learner import filled_configuration
from rm_methods.ppo.records import read_evaluation
from tests.conftest import ppo_settings

pytestmark = pytest.mark.process

# Ten prompts in chunks of three are four chunks, and minibatches of ten rows are cut into 4, 3 and 3: two ranks never
# have alike.
RUN = """
import sys
from pathlib import Path
from rm_methods.config.resolve import section_defaults
from rm_methods.ppo import trainer as ppo
from rm_methods.ppo.rewards import text_reward
from rm_methods.ppo.settings import PPOSettings
from rm_methods.policies.policy import Prompt
from rm_methods.training.launch import end_of_rank

policy, out, deepspeed, updates, dies_after = sys.argv[1:]
colors = ("red", "blue", "black", "white", "pink")
prompts = [Prompt(f"p{k}", [{"role": "user", "content": f"paint it {color}"}]) for k, color in enumerate(colors)]
ppo_section = section_defaults("overoptimization", "ppo") | {
    "updates": int(updates), "batch_size": 10, "rows_per_forward": 3, "learning_rate": 1e-3, "standardize": False,
    "evaluate_every": 2, "checkpoint_every": 1, "minibatches": 3, "value_rate_factor": 5.0, "max_gradient_norm": 0.5,
}
sampling = section_defaults("overoptimization", "sampling") | {"max_new_tokens": 6}
settings = PPOSettings.of_experiment({"overoptimization": {"ppo": ppo_section, "sampling": sampling}})
if int(dies_after):
    save = ppo.PPO._save_checkpoint
    def save_and_die(run, step):
        save(run, step)
        if step == int(dies_after):
            sys.exit("killed")
    ppo.PPO._save_checkpoint = save_and_die
train = ppo.PPO.train
def train_and_count(run):
    train(run)
    if run.ranks.first:
        print(f"held of the policy: {sum(p.numel() for p in run.learner.policy.model.parameters())}", file=sys.stderr)
ppo.PPO.train = train_and_count
reward = text_reward(lambda prompt, response: float(response.count("e")))
work = Path(out) / "work"
ppo.train_ppo(
    settings, policy_folder=policy, reward=reward, gold=reward, prompts=prompts, evaluation_prompts=prompts, seed=0,
    out_folder=out, work_folder=work, threads=1, deepspeed=deepspeed or None,
)
import os
end_of_rank(int(os.environ.get("WORLD_SIZE", 1)))
"""


@pytest.fixture(scope="module")
def policy(prepared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "policy"
    save_policy(policy_from_backbone(prepared[1], prepared[2]["backbone"], seed=0), folder)
    return folder


def run(policy: Path, out: Path, ranks: int, deepspeed: str = "", updates: int = 3, dies_after: int = 0) -> str:
    """Run PPO into `out`; returns what it wrote to stderr."""
    script = policy.parent / "run.py"
    script.write_text(RUN)
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 or deepspeed else []
    )
    command = [sys.executable, *launcher, str(script), str(policy), str(out), deepspeed, str(updates), str(dies_after)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert bool(done.returncode) == bool(dies_after), done.stderr[-6000:]
    return done.stderr


@pytest.fixture(scope="module")
def alone(policy) -> Path:
    """One rank without DeepSpeed."""
    out = policy.parent / "alone"
    run(policy, out, 1)
    return out


def assert_same(ours: Path, theirs: Path, policy: Path) -> None:
    rows = [read_evaluation(folder / "evaluation.parquet") for folder in (ours, theirs)]
    assert [row["response"] for row in rows[0]] == [row["response"] for row in rows[1]]
    assert [row["kl"] for row in rows[0]] == pytest.approx([row["kl"] for row in rows[1]], abs=1e-4)
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (ours, theirs)
    ]
    for one, other in zip(*lines, strict=True):
        for name in ("policy_loss", "value_loss", "clip_fraction", "gradient_norm", "entropy"):
            assert one[name] == pytest.approx(other[name], abs=1e-4), name
    weights = [load_policy(folder / "policy").model.state_dict() for folder in (ours, theirs)]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-4
    start = load_file(policy / "model.safetensors")
    assert max(float((weights[0][name] - start[name]).abs().max()) for name in start) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", ["", "zero1", "zero2", "zero3", "zero3_offload"])
def test_two_ranks_are_one_rank(policy, alone, tmp_path, deepspeed):
    said = run(policy, tmp_path, 2, deepspeed)
    assert json.loads((tmp_path / "summary.json").read_text())["world_size"] == 2
    assert_same(alone, tmp_path, policy)
    held, whole = int(re.search(r"held of the policy: (\d+)", said)[1]), load_policy(policy).model.num_parameters()
    # Between forwards, ZeRO-3 leaves small parameters (norms, biases) and empty stand-ins.
    assert held < 0.1 * whole if deepspeed.startswith("zero3") else held == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deepspeed", "before", "after"), [("", 1, 2), ("zero2", 2, 2), ("zero3", 2, 2), ("zero2", 2, 1), ("zero3", 1, 2)]
)
def test_a_killed_run_goes_on_from_its_checkpoint_with_any_number_of_ranks(
    policy, alone, tmp_path, deepspeed, before, after
):
    run(policy, tmp_path, before, deepspeed, dies_after=2)
    assert "resumes from" in run(policy, tmp_path, after, deepspeed)
    assert_same(alone, tmp_path, policy)


def test_what_a_configuration_leaves_open_comes_from_the_settings(policy):
    filled = filled_configuration("zero3", ppo_settings(max_gradient_norm=0.7), 4, policy)
    assert "auto" not in json.dumps(filled)
    assert filled["train_batch_size"] == 4
    assert filled["gradient_clipping"] == 0.7
    assert filled["zero_optimization"]["reduce_bucket_size"] == 32 * 32  # the width of the tests' policy
