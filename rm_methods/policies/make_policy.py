"""The `sft` stage: prepare the policy's backbone and fine-tune it on the chosen responses
(docs/overoptimization.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rm_methods.files import content_hash, file_hash
from rm_methods.policies.settings import named_as_policy, policy_backbone
from rm_methods.preferences.pair import read_pairs
from rm_methods.system.code_hash import code_hash
from rm_methods.system.run_lock import run_lock


def make_policy(config: Mapping[str, Any], pairs: Path, out: Path, work: Path, threads: int) -> dict[str, Any]:
    """Fine-tune the policy on the training pairs as prepared, with the first seed of the experiment.

    Args:
        config: the resolved configuration.
        pairs: file of prepared pairs.
        out: gets backbone/, policy/ (a plain causal-language-model folder), metrics.jsonl and summary.json.
        work: folder for checkpoints.
        threads: CPU threads; 0 leaves the number to torch.

    Returns:
        The summary of the fine-tuning.
    """
    from rm_methods.policies.sft import SFTSettings, train_sft
    from rm_methods.reward_models.backbones import prepare_backbone

    backbone = policy_backbone(config)
    training_and_validation = read_pairs(pairs, ["train", "validation"])
    # Only a tiny backbone reads pairs: its tokenizer is trained on their text.
    training = [pair for pair in training_and_validation if pair.split == "train"]
    tokenizer_text = training if backbone["source"] == "tiny" else []
    settings = SFTSettings.of_experiment(config)
    seed = config["seeds"][0]
    # Another data set or other code never meets these checkpoints.
    key = content_hash([asdict(settings), backbone, seed, file_hash(pairs), code_hash("sft")])
    with named_as_policy(config):
        prepare_backbone(backbone, tokenizer_text, out / "backbone")
        with run_lock(out):
            return train_sft(
                settings,
                training_and_validation,
                backbone_folder=out / "backbone",
                backbone=backbone,
                seed=seed,
                out_folder=out,
                work_folder=work / f"sft_{key}",
                threads=threads,
            )
