"""Measure speed and memory on a GPU, with synthetic weights: training, attention kernels, scoring.

Usage (one GPU, under 8 minutes; no weights, no data and no network are needed):
    python performance/gpu.py --out gpu.json
    python -m performance run gpu                            the same, with a record for docs/speed.md
    python performance/gpu.py --tiny --out tiny.json         the same parts end to end on a CPU, in tiny shapes

Training runs `rm-methods train` on pairs of the controlled world with random weights of the published shapes and a
small vocabulary, in bf16 with recomputed activations.  The 8B shape has --layers of its 32 layers, so that ZeRO fits on
one GPU.  Each row is a separate run.  Tokens per second are launched tokens (each prompt once) over the steps after the
first three.  Utilization is 6 operations per parameter and token (without embeddings) over the GPU's dense bf16 peak:
the value for the option of `rm-methods plan`.  A row that fails (too little memory) says so, and the others continue.
Rows that would begin after --limit seconds are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from performance.harness.benchmark import Benchmark, Measurement, Option, Proof, Side, Work
from performance.harness.stopwatch import Stopwatch

SKIPPED_STEPS = 3
# name: hidden, intermediate, layers, heads, key-value heads
SIZES = {"135M": (576, 1536, 30, 9, 3), "1B": (2048, 8192, 16, 32, 8), "8B": (4096, 14336, 32, 32, 8)}
TINY_SIZES = {"tiny": (32, 64, 2, 4, 2)}
# size, method, DeepSpeed
CASES = (
    ("135M", "bradley_terry", None), ("135M", "interaction_distillation", None), ("135M", "bradley_terry", "zero2"),
    ("1B", "bradley_terry", "zero2"), ("1B", "interaction_distillation", "zero2"), ("1B", "bradley_terry", "zero3"),
    ("8B", "bradley_terry", "zero2"), ("8B", "bradley_terry", "zero3"), ("8B", "interaction_distillation", "zero3"),
)  # fmt: skip
TINY_CASES = (("tiny", "bradley_terry", None), ("tiny", "interaction_distillation", None))
# heads, key-value heads, head size, pairs, prompt tokens, response tokens
ATTENTION = ((9, 3, 64, 16, 256, 128), (32, 8, 128, 8, 256, 128), (32, 8, 128, 4, 2048, 512), (32, 8, 128, 16, 64, 512))
TINY_ATTENTION = ((4, 2, 16, 2, 24, 8),)


def configuration(size: tuple[int, ...], pairs: int, deepspeed: str | None, tiny: bool) -> dict:
    """An experiment on the controlled world with a random backbone of this size, and an untrained teacher."""
    hidden, intermediate, layers, heads, key_value_heads = size
    backbone = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "layers": layers,
        "heads": heads,
        "key_value_heads": key_value_heads,
    }
    encoder = {
        "hidden_size": 16 if tiny else 1024,
        "intermediate_size": 32 if tiny else 2624,
        "layers": 1 if tiny else 28,
        "heads": 2 if tiny else 16,
        "vocabulary_size": 1000,
        "positions": 2048,
        "initializer_range": 0.02,
    }
    return {
        "experiment": "gpu",
        "seeds": [0],
        "data": {"dataset": "world", "options": {"train_pairs": pairs, "validation_pairs": 20, "test_pairs": 20}},
        "backbone": {"max_length": 512, "tiny": backbone | {"vocabulary_size": 400 if tiny else 1024}},
        "training": {
            "pairs_per_step": pairs // 12,
            "tokens_per_microbatch": 1024 if tiny else 16384,
            "precision": "bf16",
            "log_every_steps": 1,
            "gradient_checkpointing": True,
            "checkpoint_every_steps": None,
            "deepspeed": deepspeed,
        },
        "methods": {
            "bradley_terry": {},
            "joint_encoder": {"masked_language_epochs": 0, "epochs": 0, "tiny": encoder},
            "interaction_distillation": {},
        },
    }


def prepare(folder: Path, config: dict) -> None:
    """Pairs, backbone and an untrained teacher of one size, for all its rows."""
    import yaml

    from rm_methods.cli import main as command

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    pairs, backbone = folder / "pairs.parquet", folder / "backbone"
    run = [
        "--seed",
        0,
        "--pairs",
        pairs,
        "--backbone",
        backbone,
        "--work",
        folder / "work",
        "--out",
        folder / "teacher",
    ]
    for words in (
        ["prepare", "--pairs", pairs, "--report", folder / "report.json"],
        ["prepare-backbone", "--pairs", pairs, "--out", backbone],
        ["train", "--variant", "joint_encoder", *run],
    ):
        command.main([str(word) for word in [*words, "--config", folder / "config.yaml"]], standalone_mode=False)


def train_case(folder: Path, size: tuple[int, ...], config: dict, method: str) -> dict:
    """One row of the training table, from the artifacts of an ordinary run.

    Args:
        folder: of what `prepare` made.
    """
    import yaml

    run = folder / f"{method}_{config['training']['deepspeed']}"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", run / "config.yaml", "--variant", method, "--seed", 0, "--out", run, "--work", run / "work"]
    words += ["--pairs", folder / "pairs.parquet", "--backbone", folder / "backbone"]
    words += ["--required", f"teacher={folder / 'teacher' / 'model'}"] if method == "interaction_distillation" else []
    done = subprocess.run(
        [sys.executable, "-m", "rm_methods.cli", "train", *map(str, words)], capture_output=True, text=True
    )
    if done.returncode:
        return {"error": _reason(done.stderr)}
    cost = json.loads((run / "summary.json").read_text())["cost"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = len(rows) - SKIPPED_STEPS
    rate = cost["launched_tokens"] / len(rows) * steps / (rows[-1]["time"] - rows[SKIPPED_STEPS - 1]["time"])
    peak = _peak_of(cost["device"])
    return {
        "tokens_per_second": rate,
        "peak_memory_bytes": cost["peak_memory_bytes"],
        "device": cost["device"],
        "matrix_parameters": matrix_parameters(size),
        # 8, not 6: activations are recomputed, and `rm-methods plan` counts that too.
        "utilization": 8 * matrix_parameters(size) * rate / peak if peak else None,
    }


def _reason(messages: str) -> str:
    lines = messages.strip().splitlines() or ["no message"]
    return next((line for line in lines if "OutOfMemory" in line or "out of memory" in line), lines[-1]).strip()[:300]


def matrix_parameters(size: tuple[int, ...]) -> int:
    """Parameters of all layers' matrices."""
    hidden, intermediate, layers, heads, key_value_heads = size
    return layers * (2 * hidden * hidden + 2 * hidden * (hidden // heads) * key_value_heads + 3 * hidden * intermediate)


def score_case(folder: Path, model: Path) -> dict:
    """Tokens a second of scoring the training pairs in `folder` with a model folder; the second pass counts."""
    import torch

    from rm_methods.preferences.pair import read_pairs
    from rm_methods.scoring.scorer import ScoringSettings, load_scorer, pair_rewards

    scorer = load_scorer(model, ScoringSettings(tokens_per_batch=32768, precision="bf16"))
    pairs = read_pairs(folder / "pairs.parquet", splits=["train"])
    items = scorer.tokenizer.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs)
    tokens = sum(sum(item.lengths) - item.shared for item in items)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        pair_rewards(scorer, pairs)
        seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"tokens_per_second": tokens / seconds, "peak_memory_bytes": peak}


def attention_case(heads: int, key_value_heads: int, size: int, pairs: int, prompt: int, response: int) -> dict:
    """Milliseconds of our packed attention and of FlexAttention on the same tokens, and their largest difference.

    FlexAttention has no backward pass on a CPU, so a CPU times only the forward pass.
    """
    from types import SimpleNamespace

    import numpy as np
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from rm_methods.reward_models.layouts import lay_out
    from rm_methods.reward_models.packed_attention import packed_attention
    from rm_methods.reward_models.tokenization import TokenizedItem

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = np.ones(prompt + response, dtype=np.int64)
    batch = lay_out([TokenizedItem((ids, ids), prompt, (False, False), (False, False))] * pairs, "packed", 0).to(device)
    total = batch.input_ids.shape[1]
    generator = torch.Generator(device).manual_seed(0)
    backward = device == "cuda"
    query, key, value = (
        torch.randn(
            1, count, total, size, device=device, dtype=torch.bfloat16, generator=generator, requires_grad=backward
        )
        for count in (heads, key_value_heads, key_value_heads)
    )
    item = torch.cat(
        [torch.arange(pairs).repeat_interleave(prompt), torch.arange(pairs).repeat_interleave(2 * response)]
    ).to(device)
    part = torch.cat([torch.zeros(pairs * prompt), torch.tensor([1, 2]).repeat_interleave(response).repeat(pairs)]).to(
        device
    )
    position = batch.position_ids[0]

    def sees(batch_index, head, q, k):
        return (item[q] == item[k]) & ((part[k] == 0) | (part[k] == part[q])) & (position[k] <= position[q])

    block_mask = create_block_mask(sees, None, None, total, total, device=device)
    flex = torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
    module = SimpleNamespace(num_key_value_groups=heads // key_value_heads, is_causal=True, training=True)
    sides = {
        "packed": lambda: packed_attention(module, query, key, value, None, attention_map=batch.attention_map)[
            0
        ].transpose(1, 2),
        "flex": lambda: flex(query, key, value, block_mask=block_mask, enable_gqa=True),
    }
    with torch.no_grad():
        outputs = [side() for side in sides.values()]
    timed = {name: _milliseconds(side, (query, key, value), backward) for name, side in sides.items()}
    difference = float((outputs[0].float() - outputs[1].float()).abs().max())
    return {**timed, "largest_difference": difference, "backward": backward, "tokens": total}


def _milliseconds(side, leaves, backward: bool, rounds: int = 5) -> float:
    import statistics

    import torch

    def once() -> float:
        started = time.perf_counter()
        if backward:
            side().sum().backward()
            for leaf in leaves:
                leaf.grad = None
            torch.cuda.synchronize()
        else:
            with torch.no_grad():
                side()
        return 1000 * (time.perf_counter() - started)

    once()
    return statistics.median(once() for _ in range(rounds))


def run_part(part: str, case: list, arguments: argparse.Namespace) -> dict:
    """Measure one row in a separate process, so that peak memory is its alone and a failure affects no other row."""
    command = [sys.executable, __file__, "--part", part, "--case", json.dumps(case), "--pairs", str(arguments.pairs)]
    command += ["--scratch", str(arguments.scratch), "--layers", str(arguments.layers)] + (
        ["--tiny"] if arguments.tiny else []
    )
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[0].removeprefix("RESULT ")) if lines else {"error": _reason(done.stderr)}


def one_case(part: str, case: list, arguments: argparse.Namespace) -> dict:
    """Measure one row in this process; a training starts another process."""
    if part == "attention":
        return attention_case(*case)
    name, method, deepspeed = case
    size, folder = sizes(arguments)[name], arguments.scratch / name
    config = configuration(size, arguments.pairs, deepspeed, arguments.tiny)
    if part == "preparation":
        prepare(folder, config)
        return {}
    if part == "scoring":
        return score_case(folder, folder / f"{method}_{deepspeed}" / "model")
    return train_case(folder, size, config, method)


def measure(arguments: argparse.Namespace) -> list[dict]:
    """All rows."""
    cases = [("attention", case) for case in (TINY_ATTENTION if arguments.tiny else ATTENTION)]
    for case in TINY_CASES if arguments.tiny else CASES:
        if not any(part == "preparation" and other[0] == case[0] for part, other in cases):
            cases.append(("preparation", (case[0], "", None)))
        cases.append(("training", case))
        if case == next(c for c in (TINY_CASES if arguments.tiny else CASES) if c[0] == case[0]):
            cases.append(("scoring", case))
    rows, started = [], time.monotonic()
    for part, case in cases:
        if time.monotonic() - started > arguments.limit:
            result = {"error": "left out, --limit was reached"}
        elif part == "training":
            result = one_case(part, list(case), arguments)
        else:
            result = run_part(part, list(case), arguments)
        if part != "preparation" or "error" in result:
            rows.append({"part": part, "case": [word for word in case if word], **result})
            print(line(rows[-1]), flush=True)
    return rows


def sizes(arguments: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The shapes, the largest one cut to --layers layers."""
    if arguments.tiny:
        return TINY_SIZES
    hidden, intermediate, layers, *heads = SIZES["8B"]
    return SIZES | {"8B": (hidden, intermediate, min(arguments.layers, layers), *heads)}


def _peak_of(device: str) -> float | None:
    from rm_methods.planning.plan import GPUS

    return next((peak for name, (peak, _) in GPUS.items() if name in device.lower()), None)


def line(row: dict) -> str:
    """A row for the terminal."""
    if "error" in row:
        result = f"failed: {row['error']}"
    elif row["part"] == "attention":
        what = "forward + backward" if row["backward"] else "forward"
        difference = row["largest_difference"]
        result = f"{what}: packed {row['packed']:.2f} ms, flex {row['flex']:.2f} ms, difference {difference:.1e}"
    else:
        used = f", utilization {row['utilization']:.3f}" if row.get("utilization") else ""
        memory = f", peak {row['peak_memory_bytes'] / 2**30:.2f} GiB" if row["peak_memory_bytes"] else ""
        result = f"{row['tokens_per_second']:,.0f} tokens/s{memory}{used}"
    return f"{row['part']:<10} {' '.join(map(str, row['case'])):<38} {result}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script on a CPU")
    parser.add_argument("--layers", type=int, default=4, help="layers of the 8B shape")
    parser.add_argument("--pairs", type=int, default=1536, help="training pairs; 12 steps")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which no further row begins")
    parser.add_argument("--scratch", type=Path, help="folder for models; a temporary one if not given")
    parser.add_argument("--part", choices=("preparation", "scoring", "attention"), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if arguments.part:
        print("RESULT " + json.dumps(one_case(arguments.part, json.loads(arguments.case), arguments)))
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        arguments.scratch = arguments.scratch or Path(temporary)
        rows = measure(arguments)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s")
    if arguments.out:
        import torch

        from rm_methods.files import write_json

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        head = {"gpu": gpu, "torch": torch.__version__, "seconds": round(seconds, 1), "layers_of_8B": arguments.layers}
        write_json(arguments.out, head | {"rows": rows})
    if any("error" in row and not row["error"].startswith("left out") for row in rows):
        sys.exit("Some rows failed; the table gives the reasons.")


def missing(options: Mapping[str, Any]) -> str | None:
    """Whether this machine has no GPU."""
    import torch

    return None if options["tiny"] or torch.cuda.is_available() else "torch sees no GPU (performance/gpu.sbatch)"


def arguments_of(work: Work) -> argparse.Namespace:
    """The options as those of the command line."""
    names = ("tiny", "layers", "pairs", "limit")
    return argparse.Namespace(scratch=work.folder / "models", **{name: work.options[name] for name in names})


def prove_attention(work: Work) -> Proof:
    """Our packed attention and FlexAttention give the same outputs."""
    shapes = TINY_ATTENTION if work.options["tiny"] else ATTENTION
    largest = 0.0
    for heads, key_value_heads, size, pairs, prompt, response in shapes:
        row = attention_case(heads, key_value_heads, size, pairs=pairs, prompt=prompt, response=response)
        largest = max(largest, row["largest_difference"])
    return Proof(f"packed attention and FlexAttention agree in bf16 on {len(shapes)} shapes", largest, 0.05)


def measure_rows(work: Work) -> Measurement:
    """All rows of the table."""
    import shutil

    arguments = arguments_of(work)
    shutil.rmtree(arguments.scratch, ignore_errors=True)
    arguments.scratch.mkdir(parents=True)
    with Stopwatch() as watch:
        rows = measure(arguments)
    return watch.measurement(details={"rows": rows})


def table(record: Mapping[str, Any]) -> str:
    """The rows as the terminal shows them."""
    rows = record["cases"][0]["sides"]["gpu"]["details"][0]["rows"]
    return "\n".join(f"    {line(row)}" for row in rows)


BENCHMARK = Benchmark(
    name="gpu",
    title="On a GPU",
    question="How fast are training, scoring and packed attention on a GPU, and with how much memory?",
    sides=(Side("gpu", "all rows"),),
    tests=("tests/performance/test_gpu_script.py::test_packed_attention_and_flex_attention_agree",),
    options={
        "tiny": Option(False, "tiny shapes, to try it on a CPU"),
        "layers": Option(4, "layers of the 8B shape"),
        "pairs": Option(1536, "training pairs; 12 steps"),
        "limit": Option(420.0, "seconds after which no further row begins"),
    },
    missing=missing,
    prove=prove_attention,
    measure=measure_rows,
    rounds=1,
    table=table,
)


if __name__ == "__main__":
    main()
