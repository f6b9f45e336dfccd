"""Scoring speed: ours against a scorer that pads texts in their order.

    RM_METHODS_DATA=FOLDER python -m performance run scoring_speed

The padded scorer is what most scripts do: texts of the chat template in the order of the data, 8 at a time, padded to
the longest of them, through `LlamaForSequenceClassification` with its sdpa attention.  Both sides use the same fp32
weights (SmolLM2-135M-Instruct with a random head) and the same threads.  A side scores two items before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.inputs import (
    BACKBONE_OPTION,
    SMOL_PACKAGE,
    data_folder,
    preference_pairs,
    resolved,
    smol_backbone,
)
from performance.harness.stopwatch import Stopwatch

if TYPE_CHECKING:
    import numpy as np

    from rm_methods.benchmarks.item import BenchmarkItem
    from rm_methods.scoring.scorer import RewardModelScorer

BATCH = 8
RESPONSES = 16
MAX_LENGTH = 2048
TOLERANCE = 1e-4  # of the spread of the scores
WARM_UP = 2  # items


def padded_scores(scorer: RewardModelScorer, items: Sequence[BenchmarkItem]) -> np.ndarray:
    """Scores of all responses in their order, fp64: 8 texts at a time, padded on the right."""
    import numpy as np
    import torch
    from transformers import LlamaForSequenceClassification

    from rm_methods.reward_models.template_probe import conversation, render

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
            ).to(classifier.device)
            logits = classifier(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
            scores += logits[:, 0].tolist()
    classifier.set_attn_implementation(ours)
    return np.array(scores)


def our_scores(scorer: RewardModelScorer, items: Sequence[BenchmarkItem]) -> np.ndarray:
    """Scores of all responses in their order, fp64."""
    import numpy as np

    return np.array([row.score for row in scorer.score(items, "ours")])


SCORERS: dict[str | None, Callable] = {"ours": our_scores, "padded": padded_scores}


def items_of(work: Work) -> list[BenchmarkItem]:
    """The items of a case."""
    from rm_methods.benchmarks.evaluation import prepare_items
    from rm_methods.benchmarks.item import read_items
    from rm_methods.scoring.scorer import pair_items

    if work.case == "hh_rlhf":
        return pair_items(preference_pairs("hh_rlhf")[: work.options["pairs"]])
    is_pool = work.case == "alpaca_eval"
    settings = {"root": data_folder(work.case), "options": {} if is_pool else {"domains": ["chat"]}}
    table = work.folder / "items.parquet"
    prepare_items("alpaca_eval_pool" if is_pool else "rm_bench", settings, None, table, work.folder / "items.json")
    items = read_items(table)
    if is_pool:
        return [replace(item, responses=item.responses[:RESPONSES]) for item in items[: work.options["prompts"]]]
    return items[: work.options["items"]]


def prepare(work: Work) -> None:
    """Write the items of a case, and the backbone."""
    from rm_methods.benchmarks.item import write_items

    write_items(items_of(work), work.folder / "scored.parquet")
    smol_backbone(work)


def load(work: Work) -> RewardModelScorer:
    """The scorer, on the GPU if the machine has one, otherwise with all threads of this process."""
    import torch

    from rm_methods.reward_models.backbones import load_classifier, load_tokenizer
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings

    backbone = smol_backbone(work)
    model = RewardModel(load_classifier(backbone, resolved()["backbone"], seed=0)).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = ScoringSettings(max_length=MAX_LENGTH, tokens_per_batch=2048, threads=torch.get_num_threads())
    return RewardModelScorer(model, load_tokenizer(backbone, MAX_LENGTH), settings)


def prove(work: Work) -> Proof:
    """The scores of both sides on all items, relative to their spread."""
    import numpy as np

    from rm_methods.benchmarks.item import read_items

    scorer = load(work)
    items = read_items(work.folder / "scored.parquet")
    ours = our_scores(scorer, items)
    padded = padded_scores(scorer, items)
    return Proof(
        statement=f"{len(ours)} scores are those of the padded scorer, relative to their spread",
        difference=float(np.abs(ours - padded).max() / padded.std()),
        tolerance=TOLERANCE,
    )


def measure(work: Work) -> Measurement:
    """Score all items of a case with one side."""
    from rm_methods.benchmarks.item import read_items
    from rm_methods.system.cpu import prepare_cpu

    if work.side == "ours":
        prepare_cpu(threads=0)  # as `load_scorer` does
    scorer = load(work)
    items = read_items(work.folder / "scored.parquet")
    score = SCORERS[work.side]
    score(scorer, items[:WARM_UP])
    with Stopwatch() as watch:
        scores = score(scorer, items)
    return watch.measurement(amount=len(scores), result=tuple(scores.tolist()))


BENCHMARK = Benchmark(
    name="scoring_speed",
    title="Scoring",
    question="How much faster are responses scored than by a scorer that pads texts in their order?",
    sides=(Side("ours", "ours"), Side("padded", "padded, 8 texts at a time", external=True)),
    baseline="padded",
    cases=(
        Case("hh_rlhf", "HH-RLHF pairs", data=("hh_rlhf",)),
        Case("rm_bench", "RM-Bench chat, 6 responses per prompt", data=("rm_bench",)),
        Case("alpaca_eval", "AlpacaEval pool, 16 responses per prompt", data=("alpaca_eval",)),
    ),
    tests=(
        "tests/scoring/test_scorer.py::test_scores_do_not_depend_on_batches_or_layout",
        "tests/scoring/test_scorer.py::test_rows_come_in_the_order_of_items_and_responses_with_nothing_dropped",
        "tests/scoring/test_scorer.py::test_many_responses_of_one_prompt_are_scored_in_forwards_of_bounded_size",
        "tests/reward_models/test_layouts.py",
    ),
    options={
        "pairs": Option(24, "of HH-RLHF"),
        "items": Option(8, "of RM-Bench chat"),
        "prompts": Option(3, "of the AlpacaEval pool"),
        "backbone": BACKBONE_OPTION,
    },
    packages=(SMOL_PACKAGE,),
    prepare=prepare,
    prove=prove,
    measure=measure,
    unit="responses",
)
