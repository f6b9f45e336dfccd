"""Scoring speed: ours against the pipeline that rewardbench uses for classifiers.

    pip install --no-deps rewardbench==0.1.4
    RM_METHODS_DATA=FOLDER python -m performance run rewardbench_speed

Their side runs `RewardBenchPipeline` from the installed file rewardbench/models/pipeline.py, in the loop and with the
settings of rewardbench/rewardbench.py (version 0.1.4; the class is the same in 0.1.5, commit 05a9005): texts of the
chat template in the order of the data, the chosen texts of 8 pairs, then the rejected ones, padded on the left, not
truncated (`max_length` counts only with `--force_truncation`).

Three things differ from its command line.  Weights are fp32 instead of fp16 with 8-bit quantization, as on our side.
The class moves its inputs to "cuda"; here they stay on the CPU, so it runs on no GPU.  The package itself is not
imported, because it pins transformers 4.51.0: both sides use the installed transformers.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.inputs import (
    BACKBONE_OPTION,
    SMOL_PACKAGE,
    pairs_of_rows,
    preference_pairs,
    read_rows,
    resolved,
    smol_backbone,
    write_rows,
)
from performance.harness.stopwatch import Stopwatch

if TYPE_CHECKING:
    import numpy as np

    from rm_methods.preferences.pair import PreferencePair

# Defaults of rewardbench/rewardbench.py, class Args.
BATCH = 8
THEIR_MAX_LENGTH = 512
# The backbone's limit, so that nothing is cut on our side either.
MAX_LENGTH = 8192
TOLERANCE = 1e-4  # of the spread of the scores
WARM_UP = 2  # pairs


def pipeline_file() -> Path | None:
    """The installed rewardbench/models/pipeline.py; None if rewardbench is not installed."""
    package = importlib.util.find_spec("rewardbench")  # finds a package without importing it
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "models" / "pipeline.py"


def missing(_: Mapping[str, Any]) -> str | None:
    """What to install, or how to hide a GPU, which only our side would use."""
    import torch

    if pipeline_file() is None:
        return "rewardbench not installed (pip install --no-deps rewardbench==0.1.4)"
    if torch.cuda.is_available():
        return "its side runs on the CPU; hide the GPU (CUDA_VISIBLE_DEVICES=)"
    return None


def prepare(work: Work) -> None:
    """Write the pairs, and a reward model that both sides load."""
    from rm_methods.reward_models.backbones import load_classifier, load_tokenizer

    write_rows(preference_pairs(work.case)[: work.options["pairs"]], work.folder / "rows.json")
    backbone = smol_backbone(work)
    classifier = load_classifier(backbone, resolved()["backbone"], seed=0)
    classifier.save_pretrained(work.folder / "model")
    load_tokenizer(backbone, MAX_LENGTH).tokenizer.save_pretrained(work.folder / "model")


@contextlib.contextmanager
def inputs_stay_on_the_cpu() -> Iterator[None]:
    """`BatchEncoding.to("cuda")`, which the pipeline calls, does nothing."""
    from transformers import BatchEncoding

    original = BatchEncoding.to
    BatchEncoding.to = lambda encoding, *_, **__: encoding
    try:
        yield
    finally:
        BatchEncoding.to = original


def their_pipeline(folder: Path) -> Any:
    """A `RewardBenchPipeline`, prepared as rewardbench/rewardbench.py does it, with fp32 weights."""
    from transformers import AutoModelForSequenceClassification

    from rm_methods.reward_models.loading import pretrained_model, pretrained_tokenizer

    file = pipeline_file()
    assert file is not None
    specification = importlib.util.spec_from_file_location("rewardbench_pipeline", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    tokenizer = pretrained_tokenizer(folder)
    tokenizer.padding_side = "left"
    model, _ = pretrained_model(AutoModelForSequenceClassification, folder)
    return module.RewardBenchPipeline("text-classification", model=model, tokenizer=tokenizer)


def their_scores(pipeline: Any, pairs: Sequence[PreferencePair]) -> np.ndarray:
    """Scores fp64 [pairs, 2], chosen and rejected, by the loop of rewardbench/rewardbench.py."""
    import numpy as np

    settings = {"batch_size": BATCH, "truncation": False, "padding": True, "max_length": THEIR_MAX_LENGTH}
    settings |= {"function_to_apply": "none", "return_token_type_ids": False}
    chosen: list[float] = []
    rejected: list[float] = []
    with inputs_stay_on_the_cpu():
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            chosen_texts = [_text(pipeline.tokenizer, pair, pair.chosen) for pair in batch]
            rejected_texts = [_text(pipeline.tokenizer, pair, pair.rejected) for pair in batch]
            chosen += pipeline(chosen_texts, **settings).float().cpu().numpy()[:, 0].tolist()
            rejected += pipeline(rejected_texts, **settings).float().cpu().numpy()[:, 0].tolist()
    return np.array([chosen, rejected]).T


def _text(tokenizer: Any, pair: PreferencePair, response: str) -> str:
    """As `prepare_dialogue_from_tokenizer` in rewardbench/utils.py."""
    messages = [*pair.prompt, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def our_scorer(folder: Path) -> Any:
    """Our scorer of the same folder, with its default settings and no shorter texts."""
    from rm_methods.scoring.scorer import ScoringSettings, load_scorer

    return load_scorer(folder, ScoringSettings(max_length=MAX_LENGTH))


def our_scores(scorer: Any, pairs: Sequence[PreferencePair]) -> np.ndarray:
    """Scores fp64 [pairs, 2], chosen and rejected."""
    from rm_methods.scoring.scorer import pair_rewards

    return pair_rewards(scorer, pairs, "ours")


SIDES = {"ours": (our_scorer, our_scores), "rewardbench": (their_pipeline, their_scores)}


def scored_pairs(work: Work) -> list[PreferencePair]:
    """The pairs of a case."""
    return pairs_of_rows(read_rows(work.folder / "rows.json"))


def prove(work: Work) -> Proof:
    """The scores of both sides on all pairs, relative to their spread."""
    import numpy as np

    pairs = scored_pairs(work)
    ours, theirs = (score(load(work.folder / "model"), pairs) for load, score in SIDES.values())
    return Proof(
        statement=f"scores of {len(pairs)} pairs are those of RewardBenchPipeline, relative to their spread",
        difference=float(np.abs(ours - theirs).max() / theirs.std()),
        tolerance=TOLERANCE,
    )


def measure(work: Work) -> Measurement:
    """Score all pairs with one side, from text to numbers; loading is not timed."""
    assert work.side is not None
    load, score = SIDES[work.side]
    pairs = scored_pairs(work)
    loaded = load(work.folder / "model")
    score(loaded, pairs[:WARM_UP])
    with Stopwatch() as watch:
        scores = score(loaded, pairs)
    return watch.measurement(amount=len(pairs), result=tuple(scores.ravel().tolist()))


BENCHMARK = Benchmark(
    name="rewardbench_speed",
    title="Scoring, against rewardbench",
    question="How much faster are pairs scored than by rewardbench's pipeline for classifiers?",
    sides=(Side("ours", "ours"), Side("rewardbench", "RewardBenchPipeline, 8 pairs at a time", external=True)),
    baseline="rewardbench",
    cases=(
        Case("hh_rlhf", "HH-RLHF pairs", data=("hh_rlhf",)),
        Case("alpaca_eval", "AlpacaEval pairs", data=("alpaca_eval",)),
    ),
    tests=(
        "tests/scoring/test_scorer.py::test_scores_do_not_depend_on_batches_or_layout",
        "tests/scoring/test_scorer.py::test_rows_come_in_the_order_of_items_and_responses_with_nothing_dropped",
        "tests/reward_models/test_layouts.py",
    ),
    options={
        "pairs": Option(24, "of each data set"),
        "backbone": BACKBONE_OPTION,
    },
    packages=(SMOL_PACKAGE,),
    missing=missing,
    prepare=prepare,
    prove=prove,
    measure=measure,
    unit="pairs",
)
