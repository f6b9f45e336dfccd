"""The diagnose stage of one run: attention by position and accuracy with the start of the text hidden, from its exported folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rm_methods.benchmarks.item import read_items
from rm_methods.diagnostics.attention import sequence_masses
from rm_methods.diagnostics.masking import lay_out_visible, visible_item, visible_positions
from rm_methods.diagnostics.pairs import TextTokens, select_pairs, text_tokens
from rm_methods.diagnostics.records import ATTENTION_COLUMNS, MASKING_COLUMNS, attention_rows, masking_rows
from rm_methods.errors import UserError
from rm_methods.experiment.diagnosed_runs import MODES, PERCENTS, obstacle
from rm_methods.experiment.layout import DIAGNOSED_RUN_FILES
from rm_methods.files import write_json
from rm_methods.methods.registry import load_card
from rm_methods.parquet import write_rows
from rm_methods.reward_models.attention_capture import layer_numbers
from rm_methods.reward_models.batching import batches_within
from rm_methods.reward_models.layouts import SequenceBatch, lay_out, packed_length
from rm_methods.reward_models.model import RewardOutput
from rm_methods.reward_models.tokenization import TokenizedItem
from rm_methods.scoring.scorer import RewardModelScorer, load_scorer, scoring_settings


@dataclass(frozen=True)
class Measured:
    """What the forwards of one run give, for its pairs in their order.

    Attributes:
        masses: for each pair and response fp32 [2, L]: reward row and received mass.
        scores: (mode, percent hidden) to float32 [pairs, 2].
    """

    masses: list[list[np.ndarray]]
    scores: dict[tuple[str, int], np.ndarray]


def diagnose(
    config: dict[str, Any],
    variant: str,
    benchmarks: Sequence[tuple[str, Path]],
    model_folder: Path,
    out: Path,
    threads: int = 0,
) -> dict[str, Any]:
    """Diagnose one trained run: write attention.parquet, masking.parquet and report.json.

    Args:
        config: resolved configuration; gives `diagnostics` and how to score.
        benchmarks: (name, items file) of each.
        model_folder: the exported sequence-classification folder.
        out: folder to write to.
        threads: CPU threads; 0 leaves it to torch.

    Returns:
        The report.

    Raises:
        UserError: the variant is not a trained scalar reward model, its attention cannot be captured, a layer does not exist, or a
            benchmark has no pairs.
    """
    if reason := obstacle(load_card(config["methods"][variant]["method"])):
        raise UserError(f"Variant '{variant}' cannot be diagnosed ({reason}). Name a trained one with a scalar reward.")
    settings, scoring = config["diagnostics"], scoring_settings(config)
    pairs, counts = [], {}
    for name, items_path in benchmarks:
        selected, counts[name] = select_pairs(name, read_items(items_path), settings["limit"])
        pairs += selected
    scorer = load_scorer(model_folder, replace(scoring, threads=threads))
    count = scorer.model.config.num_hidden_layers
    layers = layer_numbers(settings["layers"] or list(range(1, count + 1)), count, "diagnostics.layers")
    encoded = scorer.tokenizer.encode((pair.item.prompt, pair.item.responses) for pair in pairs)
    texts = [text_tokens(scorer.tokenizer, item) for item in encoded]
    measured = measure(scorer, encoded, texts, layers)

    counted, scores = [layer + 1 for layer in layers], measured.scores["sequence", 0]
    per_pair = zip(pairs, encoded, texts, scores, measured.masses, strict=True)
    rows = [row for parts in per_pair for row in attention_rows(*parts, counted)]
    write_rows(rows, ATTENTION_COLUMNS, out / DIAGNOSED_RUN_FILES[0])
    write_rows(masking_rows(pairs, measured.scores), MASKING_COLUMNS, out / DIAGNOSED_RUN_FILES[1])
    for name, own in counts.items():
        own["n_truncated"] = sum(
            any(item.truncated) for pair, item in zip(pairs, encoded, strict=True) if pair.benchmark == name
        )
    report = {"variant": variant, "layers": counted, "n_layers": count, "benchmarks": counts}
    write_json(out / DIAGNOSED_RUN_FILES[2], report)
    return report


def measure(
    scorer: RewardModelScorer,
    encoded: Sequence[TokenizedItem],
    texts: Sequence[Sequence[TextTokens]],
    layers: tuple[int, ...],
) -> Measured:
    """All forwards: one with the attention captured, then one for every part of the text that is hidden.

    Args:
        encoded: items with two responses.
        texts: which of their tokens are text.
        layers: to average attention over, numbers from 0.
    """
    scores = np.full((len(encoded), 2), np.nan, dtype=np.float32)
    masses: list[list[np.ndarray]] = [[] for _ in encoded]
    scorer.model.capture_attention(layers)
    for members in _batches(encoded, scorer.settings.tokens_per_batch):
        items = [encoded[i] for i in members]
        output = _forward(scorer, lay_out(items, "packed", scorer.tokenizer.pad_id))
        scores[members] = output.rewards.cpu().numpy()
        own = sequence_masses(output.attention, items)
        for k, i in enumerate(members):
            masses[i] = own[2 * k : 2 * k + 2]
    scorer.model.capture_attention(())
    by_masking = {(mode, 0): scores for mode in MODES}
    for mode in MODES:
        for percent in PERCENTS[1:]:
            print(f"{mode}: first {percent}% hidden", file=sys.stderr, flush=True)
            by_masking[mode, percent] = masked_scores(scorer, encoded, texts, mode, percent)
    return Measured(masses, by_masking)


def masked_scores(
    scorer: RewardModelScorer,
    encoded: Sequence[TokenizedItem],
    texts: Sequence[Sequence[TextTokens]],
    mode: str,
    percent: int,
) -> np.ndarray:
    """Scores with the first `percent` of the text hidden (`visible_positions`), float32 [items, 2]."""
    visible = [[visible_positions(text, mode, percent) for text in own] for own in texts]
    shortened = [visible_item(item, own) for item, own in zip(encoded, visible, strict=True)]
    scores = np.full((len(encoded), 2), np.nan, dtype=np.float32)
    for members in _batches(shortened, scorer.settings.tokens_per_batch):
        batch = lay_out_visible([shortened[i] for i in members], [visible[i] for i in members], scorer.tokenizer.pad_id)
        scores[members] = _forward(scorer, batch).rewards.cpu().numpy()
    return scores


def _forward(scorer: RewardModelScorer, batch: SequenceBatch) -> RewardOutput:
    with torch.inference_mode():
        return scorer.model(batch.to(next(scorer.model.parameters()).device))


def _batches(items: Sequence[TokenizedItem], tokens_per_batch: int) -> list[list[int]]:
    """Positions of items, longest first, in batches of at most that many packed tokens (or one item)."""
    order = sorted(range(len(items)), key=lambda i: -packed_length(items[i]))
    return batches_within(order, tokens_per_batch, lambda members: sum(packed_length(items[i]) for i in members))
