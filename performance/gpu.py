"""Speed and memory on a GPU, with synthetic weights: training by size, ZeRO stage and method, attention kernels, scoring.

Usage (one GPU, under 8 minutes; no weights, no data and no network are needed):
    python performance/gpu.py --out gpu.json
    python performance/gpu.py --tiny --out tiny.json         the same parts end to end on a CPU, in tiny shapes

Training runs `rm-methods train` on pairs of the controlled world with random weights of the published shapes (the 8B shape with
--layers of its 32 layers, so that ZeRO fits on one GPU) and a small vocabulary; a run of its own per row, bf16, recomputed activations.
Tokens a second are launched tokens (each prompt once) over the steps after the first three.  Utilisation is 6 operations a parameter and
token (embeddings left out) over the GPU's dense bf16 peak: what `rm-methods plan --utilisation` takes.  A row that fails (too little memory)
says so, the others go on; rows that would begin after --limit seconds are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
TINY_CASES = (("tiny", "bradley_terry", None), ("tiny", "interaction_distillation", None), ("tiny", "bradley_terry", "zero2"))
# heads, key-value heads, head size, pairs, prompt tokens, response tokens
ATTENTION = ((9, 3, 64, 16, 256, 128), (32, 8, 128, 8, 256, 128), (32, 8, 128, 4, 2048, 512), (32, 8, 128, 16, 64, 512))
TINY_ATTENTION = ((4, 2, 16, 2, 24, 8),)


def configuration(size: tuple[int, ...], pairs: int, deepspeed: str | None, tiny: bool) -> dict:
    """An experiment on the controlled world with a random backbone of this size, and an untrained teacher."""
    hidden, intermediate, layers, heads, key_value_heads = size
    backbone = {"hidden_size": hidden, "intermediate_size": intermediate, "layers": layers, "heads": heads, "key_value_heads": key_value_heads}
    encoder = {"hidden_size": 16 if tiny else 1024, "intermediate_size": 32 if tiny else 2624, "layers": 1 if tiny else 28,
               "heads": 2 if tiny else 16, "vocabulary_size": 1000, "positions": 2048, "initializer_range": 0.02}  # fmt: skip
    return {
        "experiment": "gpu",
        "seeds": [0],
        "data": {"dataset": "world", "options": {"train_pairs": pairs, "validation_pairs": 20, "test_pairs": 20}},
        "backbone": {"max_length": 512, "tiny": backbone | {"vocabulary_size": 400 if tiny else 1024}},
        "training": {
            "pairs_per_step": pairs // 12, "tokens_per_microbatch": 1024 if tiny else 16384, "precision": "bf16", "log_every_steps": 1,
            "gradient_checkpointing": True, "checkpoint_every_steps": None, "deepspeed": deepspeed,
        },
        "methods": {
            "bradley_terry": {},
            "joint_encoder": {"masked_language_epochs": 0, "epochs": 0, "tiny": encoder},
            "interaction_distillation": {},
        },
    }  # fmt: skip


def verb(*words) -> None:
    """Run `rm-methods`; raises with the end of its messages if it fails."""
    done = subprocess.run([sys.executable, "-m", "rm_methods.cli", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "OutOfMemory" in line or "out of memory" in line), lines[-1])
        raise RuntimeError(reason.strip()[:300])


def train_case(folder: Path, size: tuple[int, ...], method: str, deepspeed: str | None, pairs: int, tiny: bool) -> dict:
    """One row of the training table, from the artefacts of an ordinary run."""
    import yaml

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(size, pairs, deepspeed, tiny)))
    given = ("--config", folder / "config.yaml")
    verb("prepare", *given, "--pairs", folder / "pairs.parquet", "--report", folder / "report.json")
    verb("prepare-backbone", *given, "--pairs", folder / "pairs.parquet", "--out", folder / "backbone")
    run = ("--seed", 0, "--pairs", folder / "pairs.parquet", "--backbone", folder / "backbone", "--work", folder / "work")
    required = ()
    if method == "interaction_distillation":
        verb("train", *given, "--variant", "joint_encoder", *run, "--out", folder / "teacher")
        required = ("--required", f"teacher={folder / 'teacher' / 'model'}")
    verb("train", *given, "--variant", method, *run, "--out", folder / "run", *required)
    cost = json.loads((folder / "run" / "summary.json").read_text())["cost"]
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = len(rows) - SKIPPED_STEPS
    rate = cost["launched_tokens"] / len(rows) * steps / (rows[-1]["time"] - rows[SKIPPED_STEPS - 1]["time"])
    return {"tokens_per_second": rate, "peak_memory_bytes": cost["peak_memory_bytes"], "device": cost["device"]}


def matrix_parameters(size: tuple[int, ...]) -> int:
    """Parameters of all layers' matrices."""
    hidden, intermediate, layers, heads, key_value_heads = size
    return layers * (2 * hidden * hidden + 2 * hidden * (hidden // heads) * key_value_heads + 3 * hidden * intermediate)


def score_case(folder: Path) -> dict:
    """Tokens a second of scoring the training pairs of a finished run with its model; the second pass counts."""
    import torch

    from rm_methods.preferences.pair import read_pairs
    from rm_methods.scoring.scorer import ScoringSettings, load_scorer, pair_rewards

    scorer = load_scorer(folder / "run" / "model", ScoringSettings(tokens_per_batch=32768, precision="bf16"))
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
    """Milliseconds of our packed attention and of FlexAttention on the same packed tokens, and how far they are apart.

    FlexAttention has no backward pass on a CPU, so only the forward pass is timed there.
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
    query, key, value = (
        torch.randn(1, count, total, size, device=device, dtype=torch.bfloat16, generator=generator, requires_grad=True)
        for count in (heads, key_value_heads, key_value_heads)
    )
    item = torch.cat([torch.arange(pairs).repeat_interleave(prompt), torch.arange(pairs).repeat_interleave(2 * response)]).to(device)
    part = torch.cat([torch.zeros(pairs * prompt), torch.tensor([1, 2]).repeat_interleave(response).repeat(pairs)]).to(device)
    place = batch.position_ids[0]

    def sees(batch_index, head, q, k):
        return (item[q] == item[k]) & ((part[k] == 0) | (part[k] == part[q])) & (place[k] <= place[q])

    block_mask = create_block_mask(sees, None, None, total, total, device=device)
    flex = torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
    module = SimpleNamespace(num_key_value_groups=heads // key_value_heads, is_causal=True, training=True)
    sides = {
        "packed": lambda: packed_attention(module, query, key, value, None, attention_map=batch.attention_map)[0].transpose(1, 2),
        "flex": lambda: flex(query, key, value, block_mask=block_mask, enable_gqa=True),
    }
    with torch.no_grad():
        outputs = [side() for side in sides.values()]
    backward = device == "cuda"
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


def run_case(part: str, case: list, arguments: argparse.Namespace) -> dict:
    """One row in a process of its own, so that its peak memory is its own and its failure too."""
    command = [sys.executable, __file__, "--part", part, "--case", json.dumps(case), "--pairs", str(arguments.pairs)]
    command += ["--scratch", str(arguments.scratch), "--layers", str(arguments.layers)] + (["--tiny"] if arguments.tiny else [])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return json.loads(lines[0].removeprefix("RESULT "))
    return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}


def one_case(arguments: argparse.Namespace) -> dict:
    case = json.loads(arguments.case)
    if arguments.part == "attention":
        return attention_case(*case)
    name, method, deepspeed = case
    folder = arguments.scratch / "_".join(map(str, case))
    if arguments.part == "scoring":
        return score_case(folder)
    size = sizes(arguments)[name]
    found = train_case(folder, size, method, deepspeed, arguments.pairs, arguments.tiny)
    peak = _peak_of(found["device"])
    used = 6 * matrix_parameters(size) * found["tokens_per_second"]
    return found | {"matrix_parameters": matrix_parameters(size), "utilisation": used / peak if peak else None}


def sizes(arguments: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The shapes, the largest one cut to --layers layers."""
    if arguments.tiny:
        return TINY_SIZES
    hidden, intermediate, layers, *heads = SIZES["8B"]
    return SIZES | {"8B": (hidden, intermediate, min(arguments.layers, layers), *heads)}


def _peak_of(device: str) -> float | None:
    from rm_methods.plan import GPUS

    return next((peak for name, (peak, _) in GPUS.items() if name in device.lower()), None)


def report(rows: list[dict]) -> str:
    """The rows as a table; None where something was not measured."""
    from rm_methods.plan import aligned

    table = [("part", "case", "result")]
    for row in rows:
        if "error" in row:
            result = f"failed: {row['error']}"
        elif row["part"] == "attention":
            what = "forward + backward" if row["backward"] else "forward only"
            result = f"{what}: packed {row['packed']:.2f} ms, flex {row['flex']:.2f} ms, apart {row['largest_difference']:.1e}"
        else:
            used = f", utilisation {row['utilisation']:.3f}" if row.get("utilisation") else ""
            result = f"{row['tokens_per_second']:,.0f} tokens/s, peak {row['peak_memory_bytes'] / 2**30:.2f} GiB{used}"
        table.append((row["part"], " ".join(map(str, row["case"])), result))
    return "\n".join(aligned(table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script on a CPU")
    parser.add_argument("--layers", type=int, default=4, help="layers of the 8B shape")
    parser.add_argument("--pairs", type=int, default=1536, help="training pairs; 12 steps")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which no further row begins")
    parser.add_argument("--scratch", type=Path, help="folder for models; a temporary one if not given")
    parser.add_argument("--part", choices=("training", "scoring", "attention"), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print("RESULT " + json.dumps(one_case(arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        arguments.scratch = arguments.scratch or Path(temporary)
        cases = [("attention", case) for case in (TINY_ATTENTION if arguments.tiny else ATTENTION)]
        for case in TINY_CASES if arguments.tiny else CASES:
            cases += [("training", case), *([("scoring", case)] if case[1] == "bradley_terry" and case[2] in (None, "zero2") else [])]
        rows, started = [], time.monotonic()
        for part, case in cases:
            late = time.monotonic() - started > arguments.limit
            row = {"error": "left out, --limit was reached"} if late else run_case(part, list(case), arguments)
            rows.append({"part": part, "case": list(case), **row})
            print(report(rows[-1:]).splitlines()[1], flush=True)
        seconds = time.monotonic() - started
    print(f"\n{report(rows)}\n\n{seconds:.0f} s")
    if arguments.out:
        import torch

        from rm_methods.files import write_json

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        write_json(arguments.out, {"gpu": gpu, "torch": torch.__version__, "seconds": round(seconds, 1), "layers_of_8B": arguments.layers, "rows": rows})
    if any("error" in row and not row["error"].startswith("left out") for row in rows):
        sys.exit("Some rows failed; the reasons stand in the table.")


if __name__ == "__main__":
    main()
