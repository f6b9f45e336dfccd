"""The `ppo` stage: one policy optimized against one reward model (docs/ppo.md)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import content_hash, file_hash, read_json, write_json
from rm_methods.policies.policy import prompts_of_split
from rm_methods.policies.settings import policy_backbone
from rm_methods.ppo.settings import PPOSettings
from rm_methods.preferences.pair import read_pairs
from rm_methods.stored import read_record
from rm_methods.system.code_hash import code_hash
from rm_methods.system.deepspeed import check_installed, custom_file_hash
from rm_methods.system.run_lock import run_lock


@dataclass(frozen=True)
class PpoJob:
    """One run of PPO.

    Attributes:
        config: the resolved configuration.
        variant, seed: the reward model's variant, and the seed of PPO.
        model: folder of the reward model, in its run folder; summary.json beside it identifies the run.
        policy: folder of the policy to start from.
        pairs: file of prepared pairs, whose prompts are answered.
        references: file of `rm_methods.overoptimization.draw.draw_references`.
        out: gets policy/, metrics.jsonl, evaluation.parquet and summary.json.
        work: folder for checkpoints.
        threads: CPU threads; 0 leaves the number to torch.
    """

    config: Mapping[str, Any]
    variant: str
    seed: int
    model: Path
    policy: Path
    pairs: Path
    references: Path
    out: Path
    work: Path
    threads: int

    @property
    def section(self) -> Mapping[str, Any]:
        """The section `overoptimization` of the configuration."""
        return self.config["overoptimization"]

    @property
    def attention(self) -> str:
        """Attention implementation of transformers for the policy."""
        return policy_backbone(self.config)["attention"]

    @property
    def learning_settings(self) -> PPOSettings:
        """The settings of the learning."""
        return PPOSettings.of_experiment(self.config)

    def depends_on(self, reward_model_key: str) -> list[Any]:
        """Hash of everything that the trained policy depends on; the number of ranks is not part of it.

        Args:
            reward_model_key: run key of the reward model's training.
        """
        from rm_methods.policies.sampling import policy_hash

        ppo = self.section["ppo"]
        counts = {name: ppo[name] for name in ("train_prompts", "evaluation_prompts", "references_per_prompt")}
        return [
            reward_model_key,
            self.seed,
            asdict(self.learning_settings),
            counts,
            self.section["gold"],
            self.section["prompts"],
            self.config["scoring"],
            self.attention,
            policy_hash(self.policy),
            file_hash(self.references),
            ppo["deepspeed"],
            custom_file_hash(ppo["deepspeed"]),
            code_hash("ppo"),
        ]


def optimize(job: PpoJob) -> dict[str, Any]:
    """Train a policy against one reward model by PPO, on as many ranks as the configuration asks for.

    Returns:
        The summary, with run_key, variant, method and seed of the pair (reward model, policy).
    """
    from rm_methods.training.launch import (
        dies_with_its_launcher,
        end_of_rank,
        launch_ranks,
        stops_on_signals,
    )

    ppo = job.section["ppo"]
    with stops_on_signals():
        if "RANK" in os.environ:
            dies_with_its_launcher()
            summary = _optimize_this_rank(job)
            end_of_rank(int(os.environ["WORLD_SIZE"]))
            return summary
        with run_lock(job.out):
            check_installed("overoptimization.ppo.deepspeed", ppo["deepspeed"])
            # DeepSpeed needs a launcher even for a single rank.
            if ppo["processes"] == 1 and not ppo["deepspeed"]:
                return _optimize_this_rank(job)
            launch_ranks(ppo["processes"], job.config["resources"] | {"nodes": 1}, sys.argv[1:])
            return read_json(job.out / "summary.json")


def _check_references(job: PpoJob, references: Mapping[str, Any], prompt_ids: Sequence[str]) -> None:
    """Refuse references that were sampled for other pairs."""
    missing = [prompt_id for prompt_id in prompt_ids if prompt_id not in references]
    if references and missing:
        raise UserError(
            f"{job.references}: {len(missing)} of the {len(prompt_ids)} training prompts of {job.pairs} have no "
            f"response, such as {missing[0]}. It was made of other pairs; run the sample-references stage again."
        )


def _optimize_this_rank(job: PpoJob) -> dict[str, Any]:
    from rm_methods.overoptimization.gold import gold_of_experiment
    from rm_methods.policies.sampling import read_references
    from rm_methods.ppo.ranks import use_own_gpu
    from rm_methods.ppo.rewards import scorer_reward
    from rm_methods.ppo.trainer import train_ppo
    from rm_methods.scoring.scorer import load_scorer, scoring_settings
    from rm_methods.training.launch import check_gpus, threads_of_rank

    ppo = job.section["ppo"]
    if os.environ.get("LOCAL_RANK", "0") == "0":
        gpus = ppo["processes"] if job.config["resources"]["gpus"] else 0
        check_gpus(gpus, ppo["processes"], "overoptimization.ppo.processes")
    threads = threads_of_rank(job.threads)
    use_own_gpu()  # before the reward models are loaded; otherwise all ranks would load theirs on the first GPU
    pairs = read_pairs(job.pairs)
    prompts = prompts_of_split(pairs, "train", ppo["train_prompts"])
    references = read_references(job.references, ppo["references_per_prompt"])
    _check_references(job, references, [prompt.prompt_id for prompt in prompts])
    trained = read_record(job.model.parent / "summary.json", "a file with a run key and a method", "train")
    depends_on = job.depends_on(trained["run_key"])
    scoring = replace(scoring_settings(dict(job.config)), threads=threads)
    summary = train_ppo(
        job.learning_settings,
        policy_folder=job.policy,
        reward=scorer_reward(load_scorer(job.model, scoring, keep_loaded=True), f"{job.variant} seed {job.seed}"),
        gold=gold_of_experiment(job.config, threads, keep_loaded=True),
        prompts=prompts,
        evaluation_prompts=prompts_of_split(pairs, job.section["prompts"], ppo["evaluation_prompts"]),
        seed=job.seed,
        out_folder=job.out,
        # Another number of ranks resumes from the same checkpoints.
        work_folder=job.work / f"ppo_{job.variant}_seed{job.seed}_{content_hash(depends_on)}",
        references=references,
        threads=threads,
        attention=job.attention,
        deepspeed=ppo["deepspeed"],
    )
    if not summary:
        return summary
    identity = {
        "run_key": content_hash([*depends_on, ppo["processes"]]),
        "reward_model": trained["run_key"],
        "experiment": job.config["experiment"],
        "variant": job.variant,
        "method": trained["method"],
        "seed": job.seed,
    }
    further = {"cost": {"wall_seconds": summary["wall_seconds"]}, "metrics": _final_metrics(summary)}
    whole = identity | summary | further
    write_json(job.out / "summary.json", whole)
    return whole


def _final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The values at the end of the run for the tracking store."""
    last = summary["evaluation"]["last"]
    best = summary["evaluation"]["best_gold"]
    if last is None:
        return {}
    metrics = {f"evaluation_{name}": value for name, value in last.items() if name != "step"}
    return metrics | {"best_evaluation_gold": best["gold"], "best_gold_step": best["step"]}
