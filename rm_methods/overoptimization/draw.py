"""The stages that draw from the policy: candidates of Best-of-N, and reference responses of PPO
(docs/overoptimization.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.files import write_json
from rm_methods.policies.policy import prompts_of_split
from rm_methods.policies.settings import policy_backbone
from rm_methods.preferences.pair import read_pairs
from rm_methods.system.run_lock import target_lock


def draw_pool(
    config: Mapping[str, Any],
    *,
    policy: Path,
    pairs: Path,
    items: Path,
    report: Path,
    work: Path,
    threads: int,
) -> dict[str, Any]:
    """Sample the candidates of Best-of-N and give them their gold rewards.

    Args:
        config: the resolved configuration.
        policy: policy folder.
        pairs: file of prepared pairs, whose prompts are answered.
        items: benchmark items to write, one a prompt, with the gold rewards as label.
        report: counts to write (JSON).
        work: folder for the chunks that are sampled so far.
        threads: CPU threads; 0 leaves the number to torch.

    Returns:
        The counts of the report.
    """
    from rm_methods.benchmarks.item import write_items
    from rm_methods.overoptimization.gold import gold_of_experiment
    from rm_methods.overoptimization.pools import pool_from_samples
    from rm_methods.policies.sampling import SamplingSettings, sample_pool

    section = config["overoptimization"]
    best_of_n = section["best_of_n"]
    sampling = section["sampling"]
    prompts = prompts_of_split(read_pairs(pairs), section["prompts"], best_of_n["limit"])
    gold = gold_of_experiment(config, threads)  # before hours of sampling: it may be missing
    drawn = items.with_name(f"{items.stem}_drawn.parquet")
    with target_lock(items):
        counts = sample_pool(
            policy,
            prompts,
            samples_per_prompt=best_of_n["samples"],
            settings=SamplingSettings.of_experiment(config),
            seed=config["seeds"][0],
            out_parquet=drawn,
            work_folder=work / "samples",
            batch_size=best_of_n["batch_size"],
            max_prompt_tokens=sampling["max_prompt_tokens"],
            threads=threads,
            attention=policy_backbone(config)["attention"],
        )
        plain = sampling["temperature"] == 1 and sampling["top_p"] == 1
        messages = {prompt.prompt_id: prompt.messages for prompt in prompts}
        write_items(pool_from_samples(drawn, messages, gold, subset=section["prompts"], plain_sampling=plain), items)
        write_json(report, counts)
    return counts


def draw_references(
    config: Mapping[str, Any], *, policy: Path, pairs: Path, out: Path, work: Path, threads: int
) -> dict[str, Any]:
    """Sample responses to PPO's training prompts.  Rewards are centered and scaled on them; some transforms compare
    with them.

    Args:
        out: Parquet file to write.
        config, policy, pairs, work, threads: as for `draw_pool`.

    Returns:
        Counts, for the terminal.
    """
    from rm_methods.policies.sampling import SamplingSettings, sample_pool

    section = config["overoptimization"]
    ppo = section["ppo"]
    with target_lock(out):
        return sample_pool(
            policy,
            prompts_of_split(read_pairs(pairs), "train", ppo["train_prompts"]),
            samples_per_prompt=ppo["references_per_prompt"],
            settings=SamplingSettings.of_experiment(config),
            seed=config["seeds"][0],
            out_parquet=out,
            work_folder=work / "references",
            batch_size=section["best_of_n"]["batch_size"],
            max_prompt_tokens=section["sampling"]["max_prompt_tokens"],
            threads=threads,
            attention=policy_backbone(config)["attention"],
        )
