"""Time of scoring, ours against a scorer that pads texts in their order; equal scores are shown first.

Usage (2 cores, the weights of `make setup`; about 20 minutes):

    python performance/scoring_speed.py --hh hh_rlhf/harmless-base/test.jsonl.gz --pool alpaca_eval --rm-bench rm_bench

The padded scorer is what most scripts do: texts of the chat template in the order of the data, 8 at a time, padded to
the longest of them, through `AutoModelForSequenceClassification` with its sdpa attention.  Both sides use the same
fp32 weights (SmolLM2-135M-Instruct, and a head fitted on other pairs) and all cores.  They take turns; the table has
medians over the rounds.  The last line is our time for all of RM-Bench
chat.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from score_invariance import model_with_fitted_head, short_pairs

from rm_methods.benchmarks.evaluation import prepare_items
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.reward_models.template_probe import conversation, render
from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings, pair_items

BATCH = 8
RESPONSES = 16
TOLERANCE = 1e-4  # of the spread of the scores
FITTED_ON = 16


def padded_scores(scorer: RewardModelScorer, items: Sequence[BenchmarkItem]) -> np.ndarray:
    """Scores of all responses in their order, fp64: 8 texts at a time, padded on the right."""
    from transformers import LlamaForSequenceClassification

    tokenizer = scorer.tokenizer.tokenizer
    classifier = scorer.model.classifier
    assert isinstance(classifier, LlamaForSequenceClassification)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    ours = classifier.config._attn_implementation
    classifier.set_attn_implementation("sdpa")
    texts = [render(tokenizer, conversation(item.prompt, text)) for item in items for text in item.responses]
    scores: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            rows = tokenizer(
                texts[start : start + BATCH],
                add_special_tokens=False,
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=scorer.settings.max_length,
                return_tensors="pt",
            )
            logits = classifier(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
            scores += logits[:, 0].tolist()
    classifier.set_attn_implementation(ours)
    return np.array(scores)


def our_scores(scorer: RewardModelScorer, items: Sequence[BenchmarkItem]) -> np.ndarray:
    """Scores of all responses in their order, fp64."""
    return np.array([row.score for row in scorer.score(items, "ours")])


def timed(score: Callable, scorer: RewardModelScorer, items: Sequence[BenchmarkItem]) -> float:
    """Seconds of scoring once."""
    started = time.monotonic()
    score(scorer, items)
    return time.monotonic() - started


def compared(name: str, scorer: RewardModelScorer, items: Sequence[BenchmarkItem], rounds: int) -> dict:
    """Both sides on the same items: first their scores, then their times in turn."""
    ours, padded = our_scores(scorer, items), padded_scores(scorer, items)
    difference = float(np.abs(ours - padded).max() / padded.std())
    if difference > TOLERANCE:
        raise SystemExit(f"{name}: scores differ by {difference:.1e} of their spread, more than {TOLERANCE:.0e}.")
    times: dict[str, list[float]] = {"ours": [], "padded": []}
    for _ in range(rounds):
        times["ours"].append(timed(our_scores, scorer, items))
        times["padded"].append(timed(padded_scores, scorer, items))
    medians = {side: statistics.median(seconds) for side, seconds in times.items()}
    row = {
        "data": name,
        "responses": len(ours),
        "difference": difference,
        "seconds": times,
        "ratio": medians["padded"] / medians["ours"],
    }
    print(
        f"{name:<34} {len(ours):>5} responses  ours {medians['ours']:7.1f} s  padded {medians['padded']:7.1f} s  "
        f"{row['ratio']:.2f} times as fast, scores equal to {difference:.0e} of their spread",
        flush=True,
    )
    return row


def benchmark_items(name: str, root: Path, options: dict, folder: Path) -> list[BenchmarkItem]:
    """The items of a benchmark from its public files."""
    config = {"root": root, "options": options}
    prepare_items(name, config, None, folder / f"{name}.parquet", folder / f"{name}.json")
    return read_items(folder / f"{name}.parquet")


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure, print, and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hh", type=Path, required=True, help="file of HH-RLHF pairs")
    parser.add_argument("--pool", type=Path, required=True, help="folder with the AlpacaEval pool")
    parser.add_argument("--rm-bench", type=Path, required=True, help="folder with the files of RM-Bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=48, help="of HH-RLHF")
    parser.add_argument("--prompts", type=int, default=6, help="of the pool, with 16 responses each")
    parser.add_argument("--items", type=int, default=16, help="of RM-Bench chat, with 6 responses each")
    parser.add_argument("--chat-items", type=int, default=None, help="of RM-Bench chat for our time alone; default all")
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()

    torch.set_num_threads(os.cpu_count() or 1)
    machine = f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(machine, flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = short_pairs(arguments.hh, arguments.pairs + FITTED_ON, 10**9)
        model, tokenizer = model_with_fitted_head(folder / "model", pairs[:FITTED_ON])
        tokenizer.max_length = 2048
        settings = ScoringSettings(max_length=2048, tokens_per_batch=2048, threads=os.cpu_count() or 1)
        scorer = RewardModelScorer(model, tokenizer, settings)
        pool = benchmark_items("alpaca_eval_pool", arguments.pool, {}, folder)[: arguments.prompts]
        chat = benchmark_items("rm_bench", arguments.rm_bench, {"domains": ["chat"]}, folder)
        many = [replace(item, responses=item.responses[:RESPONSES]) for item in pool]
        rows = [
            compared("HH-RLHF pairs", scorer, pair_items(pairs[FITTED_ON:]), arguments.rounds),
            compared("RM-Bench chat, 6 responses", scorer, chat[: arguments.items], arguments.rounds),
            compared("AlpacaEval pool, 16 responses", scorer, many, arguments.rounds),
        ]
        chat = chat[: arguments.chat_items]
        seconds = timed(our_scores, scorer, chat)
        responses = sum(len(item.responses) for item in chat)
        print(f"ours alone on RM-Bench chat: {responses} responses in {seconds:.0f} s", flush=True)
    record = {"machine": machine, "rows": rows, "rm_bench_chat": {"responses": responses, "seconds": seconds}}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
