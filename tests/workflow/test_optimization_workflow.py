"""The whole chain through the real workflow: policy, reward models, Best-of-N, PPO, summary and tracking."""

from __future__ import annotations

import json

import pytest
import yaml
from transformers import AutoModelForCausalLM

from tests.workflow.checkouts import SMOKE, checkout, planned, results, snakemake

pytestmark = pytest.mark.process


def test_a_policy_is_optimized_against_every_reward_model(tmp_path):
    folder = checkout(tmp_path)
    study = SMOKE | {
        "seeds": [0],
        "methods": {"bradley_terry": {}, "longest": {}},
        "overoptimization": {
            "prompts": "iid",
            "variants": ["bradley_terry", "longest"],
            "best_of_n": {"pools": ["samples"], "limit": 4, "samples": 4},
            "sampling": {"max_new_tokens": 8},
            "sft": {"learning_rate": 1e-3},
            "ppo": {
                "enabled": True,
                "updates": 1,
                "batch_size": 2,
                "train_prompts": 4,
                "evaluation_prompts": 2,
                "learning_rate": 1e-3,
                "processes": 2,
                "deepspeed": "zero2",
            },
        },
    }
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(study))
    jobs = planned(snakemake(folder, "-n"))
    assert {rule: jobs[rule] for rule in ("sft", "sample_pool", "sample_references", "ppo")} == {
        "sft": 1,
        "sample_pool": 1,
        "sample_references": 1,
        "ppo": 2,
    }
    printed = snakemake(folder)
    assert "Best-of-N on samples: 4 prompts, n up to 4" in printed
    assert "PPO, 2 evaluation prompts" in printed
    summary = json.loads((results(folder) / "ppo" / "bradley_terry" / "seed0" / "summary.json").read_text())
    assert (summary["variant"], summary["method"], summary["seed"]) == ("bradley_terry", "bradley_terry", 0)
    assert summary["world_size"] == 2
    AutoModelForCausalLM.from_pretrained(results(folder) / "ppo" / "bradley_terry" / "seed0" / "policy")
    further = json.loads((results(folder) / "overoptimization" / "runs" / "longest" / "seed0.json").read_text())
    assert "best_of_n/samples/gold_end" in further["metrics"]
    exported = json.loads((results(folder) / "tracking" / "export.json").read_text())
    assert {(record["variant"], record["kind"]) for record in exported} == {
        (variant, kind) for variant in ("bradley_terry", "longest") for kind in ("seed", "ppo")
    }
    assert {record["status"] for record in exported} == {"exported"}
    assert "Nothing to be done" in snakemake(folder, "-n")
