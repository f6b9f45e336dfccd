"""The stages of over-optimisation, as the workflow calls them: policy, stored samples, PPO, summary (docs/overoptimization.md)."""

from __future__ import annotations

import csv
import os
import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import content_hash, file_hash, read_json, write_json
from rm_methods.overoptimization.outputs import run_metrics
from rm_methods.preferences.pair import PreferencePair, read_pairs
from rm_methods.system.deepspeed import own_file_hash
from rm_methods.system.provenance import code_hash
from rm_methods.system.run_lock import run_lock


def policy_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's own backbone section, or the one of the reward models."""
    return config["overoptimization"]["policy"] or config["backbone"]


def make_policy(config: Mapping[str, Any], pairs: Path, out: Path, work: Path, threads: int) -> dict[str, Any]:
    """Prepare the policy's backbone and fine-tune it on the training pairs as prepared, with the experiment's first seed.

    Args:
        out: gets backbone/, policy/ (a plain causal-language-model folder), metrics.jsonl and summary.json.
        work: folder for checkpoints.

    Returns:
        The summary of the fine-tuning.
    """
    from rm_methods.policies.sft import train_sft
    from rm_methods.reward_models.backbones import prepare_backbone

    backbone = policy_backbone(config)
    read = read_pairs(pairs, ["train", "validation"])
    prepare_backbone(
        backbone,
        [pair for pair in read if pair.split == "train"] if backbone["source"] == "tiny" else [],
        out / "backbone",
    )
    sft, seed = config["overoptimization"]["sft"], config["seeds"][0]
    settings = sft | {"max_prompt_tokens": config["overoptimization"]["sampling"]["max_prompt_tokens"]}
    # Another data set or other code never meets these checkpoints.
    checkpoints = work / f"sft_{content_hash([settings, backbone, seed, file_hash(pairs), code_hash('sft')])}"
    with run_lock(out):
        return train_sft(settings, read, out / "backbone", backbone, seed, out, checkpoints, threads)


def draw_pool(
    config: Mapping[str, Any], policy: Path, pairs: Path, items: Path, report: Path, work: Path, threads: int
) -> dict[str, Any]:
    """Sample the candidates of Best-of-N and give them their gold rewards.

    Args:
        policy: policy folder.
        items: benchmark items to write, one a prompt, with the gold rewards as label.
        report: counts to write (JSON).
    """
    from rm_methods.benchmarks.item import write_items
    from rm_methods.overoptimization.pools import pool_from_samples
    from rm_methods.policies.sampling import sample_pool

    settings = config["overoptimization"]
    asked, sampling = settings["best_of_n"], settings["sampling"]
    prompts = some_prompts(read_pairs(pairs), settings["prompts"], asked["limit"])
    gold = _gold(config, threads)  # before hours of sampling: it may be missing
    drawn = items.with_name(f"{items.stem}_drawn.parquet")
    counts = sample_pool(
        policy,
        prompts,
        asked["samples"],
        _sampling_settings(sampling),
        config["seeds"][0],
        drawn,
        work / "samples",
        asked["batch_size"],
        sampling["max_prompt_tokens"],
        threads,
        policy_backbone(config)["attention"],
    )
    plain = sampling["temperature"] == 1 and sampling["top_p"] == 1
    pool = pool_from_samples(
        drawn, {p.prompt_id: p.messages for p in prompts}, gold, subset=settings["prompts"], plain_sampling=plain
    )
    write_items(pool, items)
    write_json(report, counts)
    return counts


def draw_references(
    config: Mapping[str, Any], policy: Path, pairs: Path, out: Path, work: Path, threads: int
) -> dict[str, Any]:
    """Sample responses to PPO's training prompts: what rewards are centred and scaled on, and what some transforms compare with."""
    from rm_methods.policies.sampling import sample_pool

    settings = config["overoptimization"]
    ppo, sampling = settings["ppo"], settings["sampling"]
    prompts = some_prompts(read_pairs(pairs), "train", ppo["train_prompts"])
    chosen = (
        _sampling_settings(sampling),
        config["seeds"][0],
        out,
        work / "references",
        settings["best_of_n"]["batch_size"],
    )
    read = (sampling["max_prompt_tokens"], threads, policy_backbone(config)["attention"])
    return sample_pool(policy, prompts, ppo["references_per_prompt"], *chosen, *read)


def optimise(
    config: Mapping[str, Any], variant: str, seed: int, model: Path, policy: Path, pairs: Path, references: Path, out: Path, work: Path,
    threads: int,
) -> dict[str, Any]:  # fmt: skip
    """Train a policy against one reward model by PPO.

    Args:
        model: folder of the reward model, in its run folder: the run's summary.json, beside it, says what it is.
        references: file of `draw_references`.
        out: gets policy/, metrics.jsonl, evaluation.parquet and summary.json.

    Returns:
        The summary, with run_key, variant, method and seed of the pair (reward model, policy).
    """
    from rm_methods.training.launch import (
        dies_with_its_launcher,
        end_of_rank,
        full_disk_explained,
        launch_ranks,
        stops_on_signals,
    )

    ppo, run = (
        config["overoptimization"]["ppo"],
        (config, variant, seed, model, policy, pairs, references, out, work, threads),
    )
    with stops_on_signals(), full_disk_explained(work):
        if "RANK" in os.environ:
            dies_with_its_launcher()
            summary = _optimise_this_rank(*run)
            end_of_rank(int(os.environ["WORLD_SIZE"]))
            return summary
        with run_lock(out):
            # DeepSpeed wants a launcher for a single rank too.
            if ppo["processes"] == 1 and not ppo["deepspeed"]:
                return _optimise_this_rank(*run)
            launch_ranks(ppo["processes"], config["resources"] | {"nodes": 1}, sys.argv[1:])
            return read_json(out / "summary.json")


def _optimise_this_rank(
    config: Mapping[str, Any], variant: str, seed: int, model: Path, policy: Path, pairs: Path, references: Path, out: Path, work: Path,
    threads: int,
) -> dict[str, Any]:  # fmt: skip
    from rm_methods.policies.sampling import policy_hash, read_references
    from rm_methods.ppo.ranks import use_own_gpu
    from rm_methods.ppo.rewards import scorer_reward
    from rm_methods.ppo.trainer import train_ppo
    from rm_methods.scoring.scorer import load_scorer
    from rm_methods.training.launch import check_gpus, threads_of_rank

    settings, attention = config["overoptimization"], policy_backbone(config)["attention"]
    ppo = {key: value for key, value in settings["ppo"].items() if key not in ("enabled", "seeds")}
    processes, deepspeed = ppo.pop("processes"), ppo.pop("deepspeed")
    if os.environ.get("LOCAL_RANK", "0") == "0":
        check_gpus(processes if config["resources"]["gpus"] else 0, processes, "overoptimization.ppo.processes")
    threads = threads_of_rank(threads)
    use_own_gpu()  # before the reward models are loaded, or those of all ranks would lie on the first GPU
    counts = {name: ppo.pop(name) for name in ("train_prompts", "evaluation_prompts", "references_per_prompt")}
    lengths = {name: settings["sampling"][name] for name in ("max_new_tokens", "max_prompt_tokens")}
    chosen = {"lambda_": ppo.pop("gae_lambda")} | ppo | lengths
    read = read_pairs(pairs)
    trained = read_json(model.parent / "summary.json")
    depends_on = [chosen, counts, settings["gold"], settings["prompts"], config["scoring"], attention]
    depends_on += [policy_hash(policy), file_hash(references), deepspeed, own_file_hash(deepspeed)]
    depends_on = [trained["run_key"], seed, *depends_on, code_hash("ppo")]
    summary = train_ppo(
        chosen,
        policy,
        scorer_reward(load_scorer(model, _scoring(config, threads), keep_loaded=True), f"{variant} seed {seed}"),
        _gold(config, threads, keep_loaded=True),
        some_prompts(read, "train", counts["train_prompts"]),
        some_prompts(read, settings["prompts"], counts["evaluation_prompts"]),
        seed,
        out,
        # Another number of ranks finds the same checkpoints.
        work / f"ppo_{variant}_seed{seed}_{content_hash(depends_on)}",
        read_references(references, counts["references_per_prompt"]),
        threads,
        attention,
        deepspeed,
    )
    if not summary:
        return summary
    identity = {
        "run_key": content_hash([*depends_on, processes]),
        "experiment": config["experiment"],
        "variant": variant,
        "method": trained["method"],
        "seed": seed,
    }
    summary = (
        identity | summary | {"cost": {"wall_seconds": summary["wall_seconds"]}, "metrics": _final_metrics(summary)}
    )
    write_json(out / "summary.json", summary)
    return summary


def summarise(config: Mapping[str, Any], folder: Path, out: Path) -> str:
    """Tables, figures and pages of all Best-of-N and PPO runs below the experiment's folder; returns the tables as text."""
    from rm_methods.config.resolve import reference_variant
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.methods.registry import load_card
    from rm_methods.overoptimization.summary import PoolRun, PpoRun, summarise_best_of_n, summarise_ppo

    experiment = Experiment(config)
    reference = reference_variant(config)
    runs = experiment.optimised_runs()
    reference = reference if reference in {variant for variant, _ in runs} else None
    texts = []
    if pools := config["overoptimization"]["best_of_n"]["pools"]:
        best_of_n = []
        for variant, seed in runs:
            method, scores = config["methods"][variant]["method"], folder / "scores" / variant / f"seed{seed}"
            files = [(pool, folder / experiment.item_table(pool), scores / f"{pool}.parquet") for pool in pools]
            best_of_n += [PoolRun(variant, method, seed, *of_pool, load_card(method).without_seed) for of_pool in files]
        texts.append(summarise_best_of_n(best_of_n, reference, out).text)
        _write_run_metrics(out)
    if config["overoptimization"]["ppo"]["enabled"]:
        ppo = [
            PpoRun(v, config["methods"][v]["method"], seed, folder / f"ppo/{v}/seed{seed}")
            for v, seed in experiment.ppo_runs()
        ]
        texts.append(summarise_ppo(ppo, reference if reference in {run.variant for run in ppo} else None, out).text)
    return "\n".join(texts)


def _write_run_metrics(out: Path) -> None:
    """What the summary says of single runs, one file each."""
    found: dict[str, dict[str, float]] = {}
    with (out / "best_of_n_runs.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            metrics = found.setdefault(run_metrics(row["variant"], int(row["seed"])), {})
            names = ("gold_start", "gold_end", "gold_peak", "n_peak", "gap")
            metrics |= {f"best_of_n/{row['pool']}/{name}": float(row[name]) for name in names}
    for name, metrics in found.items():
        write_json(out / name, {"metrics": metrics})


def some_prompts(pairs: list[PreferencePair], split: str, limit: int | None) -> list:
    """Prompts of a split, drawn at random but always the same ones, each once.

    Raises:
        UserError: the split is not there.
    """
    from rm_methods.policies.policy import prompts_of

    prompts = prompts_of([pair for pair in pairs if pair.split == split])
    if not prompts:
        raise UserError(
            f"overoptimization.prompts: no pairs of the split '{split}'; there are {', '.join(sorted({p.split for p in pairs}))}."
        )
    random.Random(f"prompts of {split}").shuffle(prompts)
    return prompts[:limit]


def _sampling_settings(sampling: Mapping[str, Any]):
    from rm_methods.policies.sampling import SamplingSettings

    return SamplingSettings(sampling["max_new_tokens"], sampling["temperature"], sampling["top_p"])


def _scoring(config: Mapping[str, Any], threads: int):
    from rm_methods.scoring.scorer import scoring_settings

    return replace(scoring_settings(dict(config)), threads=threads)


def _gold(config: Mapping[str, Any], threads: int, keep_loaded: bool = False):
    from rm_methods.overoptimization.gold import load_gold

    asked = config["overoptimization"]["gold"]
    given = {name: asked[name] for name in ("revision", "max_length")}
    return load_gold(asked["source"], settings=_scoring(config, threads), keep_loaded=keep_loaded, **given)


def _final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """What stands in the tracking store at the end of a PPO run."""
    last, best = summary["evaluation"]["last"], summary["evaluation"]["best_gold"]
    if last is None:
        return {}
    metrics = {f"evaluation_{name}": value for name, value in last.items() if name != "step"}
    return metrics | {"best_evaluation_gold": best["gold"], "best_gold_step": best["step"]}
