"""How the peak memory of training and scoring grows with tokens: the numbers behind docs/scaling.md.

    python -m performance run scale_memory --option backbone=FOLDER
    python -m performance run scale_memory --option recompute=true --case pair_2048

The backbone is SmolLM2-135M from its wheel, or a prepared folder.  Texts are random tokens.  Three series:

* `microbatch`: a training step on a micro-batch of pairs of 256 tokens (prompt 64, responses 96 and 96);
* `pair`: a training step on one pair of two sequences of so many tokens, half of them prompt (1.5 times as many packed
  tokens);
* `score`: scoring one text of so many tokens in fp32 with a random Llama of two layers that has 16,384 positions.

A training step is forward, backward and optimizer of our trainer, twice, so that the optimizer's moments exist in the
second.  Weights are fp32, the backbone computes in bf16.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.inputs import BACKBONE_OPTION, SMOL_PACKAGE, resolved, smol_backbone
from performance.harness.stopwatch import Stopwatch

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


def random_item(prompt: int, response: int, responses: int, seed: int):
    """An item of random tokens with these lengths."""
    import numpy as np

    from rm_methods.reward_models.tokenization import TokenizedItem

    draw = np.random.default_rng(seed)
    shared = draw.integers(10, _VOCABULARY, prompt)
    sequences = tuple(np.concatenate([shared, draw.integers(10, _VOCABULARY, response)]) for _ in range(responses))
    return TokenizedItem(sequences, prompt, (False,) * responses, (False,) * responses)


def train_steps(backbone: Path, items: list, recompute: bool = False) -> Measurement:
    """Two optimizer steps, each on all `items` in one micro-batch."""
    import torch

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
    config = resolved(training=training)
    pairs = [
        make_pair([{"role": "user", "content": str(k)}], "a", "b", split="train", source="random")
        for k in range(len(items))
    ]
    model = RewardModel(load_classifier(backbone, config["backbone"], 0), autocast=torch.bfloat16)
    if recompute:
        model.recompute_activations()
    plan = plan_training(config["training"], items, seed=0, ranks=1, layout="packed")
    with tempfile.TemporaryDirectory() as work:
        arguments = training_arguments(config["training"], 0, Path(work), len(plan))
        method = load_method("bradley_terry", load_method_card("bradley_terry").defaults())
        steps = PlannedSteps(plan, pairs, items, layout="packed", rank=0, pad_id=0)
        trainer = RewardTrainer(method=method, steps=steps, model=model, args=arguments)
        with Stopwatch() as watch:
            trainer.train()
    return watch.measurement(amount=len(plan) * sum(map(packed_length, items)))


def random_llama() -> Any:
    """A Llama of SmolLM2's width with random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from rm_methods.reward_models.model import RewardModel

    torch.manual_seed(0)
    configuration = LlamaConfig(
        **_LLAMA, vocab_size=_VOCABULARY, max_position_embeddings=_POSITIONS, pad_token_id=0, num_labels=1
    )
    classifier = AutoModelForSequenceClassification.from_config(configuration, attn_implementation="sdpa")
    return RewardModel(classifier).eval()


def scores(model: Any, items: Sequence[Any], layout: str) -> Any:
    """One forward of all responses; its `rewards` are [items, responses]."""
    import torch

    from rm_methods.reward_models.layouts import lay_out

    with torch.inference_mode():
        return model(lay_out(items, layout, pad_id=0))


def score_text(tokens: int) -> Measurement:
    """Score one text, a quarter of it the prompt."""
    from rm_methods.system.cpu import prepare_cpu

    prepare_cpu(threads=0)
    model = random_llama()
    item = random_item(tokens // 4, tokens - tokens // 4, responses=1, seed=0)
    with Stopwatch() as watch:
        scores(model, [item], "packed")
    return watch.measurement(amount=tokens)


def items_of(series: str, tokens: int) -> list:
    """The pairs of a case that trains."""
    if series == "pair":
        return [random_item(tokens // 2, tokens // 2, responses=2, seed=0)]
    prompt, response = _PAIR
    return [random_item(prompt, response, responses=2, seed=k) for k in range(tokens // (prompt + 2 * response))]


def size_of(case: str) -> tuple[str, int]:
    """Series and tokens of a case."""
    series, _, tokens = case.partition("_")
    return series, int(tokens)


def prepare(work: Work) -> None:
    """Prepare the backbone, once for all cases."""
    if size_of(work.case)[0] != "score":
        smol_backbone(work)


def prove(work: Work) -> Proof:
    """Packed pairs, which are what is measured, get the rewards of single texts."""
    items = [random_item(12, 20 + 8 * k, responses=2, seed=k) for k in range(3)]
    model = random_llama()
    packed, plain = (scores(model, items, layout).rewards for layout in ("packed", "plain"))
    return Proof("rewards of packed pairs are those of single texts", float((packed - plain).abs().max()), 1e-4)


def measure(work: Work) -> Measurement:
    """One size of a series."""
    series, tokens = size_of(work.case)
    if series == "score":
        return score_text(tokens)
    return train_steps(smol_backbone(work), items_of(series, tokens), work.options["recompute"])


def growth(rows: Sequence[tuple[float, float]]) -> list[float | None]:
    """Kilobytes a further token adds to the peak, of each row against the one before; None for the first.

    Memory is linear in tokens if the values after the second stay equal; they double with the tokens if it is
    quadratic.

    Args:
        rows: computed tokens and peak in bytes.
    """
    slopes: list[float | None] = [None]
    for (tokens, peak), (more_tokens, higher_peak) in itertools.pairwise(rows):
        slopes.append((higher_peak - peak) / (more_tokens - tokens) / 1e3)
    return slopes


def table(record: Mapping[str, Any]) -> str:
    """Peak and growth of every series; medians of the rounds."""
    lines = ["| series, tokens | computed tokens | peak, GB | kB/token | CPU s |", "|---|---:|---:|---:|---:|"]
    for series in SERIES:
        cases = [case for case in record["cases"] if size_of(case["case"])[0] == series and "sides" in case]
        sides = [case["sides"]["ours"] for case in cases]
        # A training computes its tokens twice.
        tokens = [side["amount"] / (1 if series == "score" else 2) for side in sides]
        peaks = [statistics.median(side["peak_memory_bytes"]) for side in sides]
        slopes = growth(list(zip(tokens, peaks, strict=True)))
        for case, side, count, peak, slope in zip(cases, sides, tokens, peaks, slopes[: len(cases)], strict=True):
            shown = "" if slope is None else f"{slope:.0f}"
            seconds = statistics.median(side["cpu_seconds"])
            lines.append(f"| {case['title']} | {count:,.0f} | {peak / 1e9:.2f} | {shown} | {seconds:.1f} |")
    return "\n".join(lines)


BENCHMARK = Benchmark(
    name="scale_memory",
    title="Memory by tokens",
    question="How does the peak memory of training and scoring grow with tokens?",
    sides=(Side("ours", "ours"),),
    cases=tuple(
        Case(f"{series}_{tokens}", f"{series}, {tokens:,}") for series, sizes in SERIES.items() for tokens in sizes
    ),
    tests=(
        "tests/reward_models/test_layouts.py",
        "tests/training/test_trainer.py::test_how_a_step_is_cut_does_not_change_what_is_learned",
    ),
    options={
        "backbone": BACKBONE_OPTION,
        "recompute": Option(False, "train with gradient_checkpointing: true"),
    },
    packages=(SMOL_PACKAGE,),
    prepare=prepare,
    prove=prove,
    measure=measure,
    rounds=1,
    unit="tokens",
    table=table,
)
