"""The diagnose stage of one run: attention by position, and accuracy with the start of the text hidden."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rm_methods.benchmarks.item import read_items
from rm_methods.diagnostics.attention import packed_model, sequence_masses
from rm_methods.diagnostics.masking import lay_out_visible, visible_item, visible_positions
from rm_methods.diagnostics.pairs import DiagnosedPair, TextTokens, select_pairs, text_tokens
from rm_methods.diagnostics.records import ATTENTION_COLUMNS, MASKING_COLUMNS, attention_rows, masking_rows
from rm_methods.errors import UserError
from rm_methods.experiment.diagnosed_runs import MODES, PERCENTS, obstacle
from rm_methods.experiment.layout import DIAGNOSED_RUN_FILES
from rm_methods.files import write_json
from rm_methods.methods.registry import load_method_card
from rm_methods.parquet import write_rows
from rm_methods.reward_models.attention_capture import layer_numbers
from rm_methods.reward_models.batching import batches_within
from rm_methods.reward_models.layouts import SequenceBatch, launched_tokens, lay_out, packed_length
from rm_methods.reward_models.model import RewardOutput
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem
from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings, load_scorer, scoring_settings


@dataclass(frozen=True)
class Measured:
    """Results of the forwards of one run, for its pairs in their order.

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
        config: resolved configuration.
        benchmarks: (name, items file) of each.
        model_folder: the exported sequence-classification folder.
        out: folder to write to.
        threads: CPU threads; 0 leaves it to torch.

    Returns:
        The report.

    Raises:
        UserError: the variant is not a trained scalar reward model, its backbone is not exact in packed rows, its
            attention cannot be captured, a layer does not exist, or a benchmark has no pairs.
    """
    if reason := obstacle(load_method_card(config["methods"][variant]["method"])):
        raise UserError(f"Variant '{variant}' cannot be diagnosed ({reason}). Name a trained one with a scalar reward.")
    settings = config["diagnostics"]
    pairs: list[DiagnosedPair] = []
    counts: dict[str, dict[str, int]] = {}
    for name, items_path in benchmarks:
        selected, counts[name] = select_pairs(name, read_items(items_path), settings["limit"])
        pairs += selected
    scorer = load_scorer(model_folder, replace(scoring_settings(config), threads=threads))
    if not isinstance(scorer, RewardModelScorer) or not isinstance(scorer.tokenizer, ChatTokenizer):
        raise UserError(f"{model_folder}: cannot be diagnosed, because it is not one model. Give the folder of a run.")
    n_layers = scorer.model.config.num_hidden_layers
    layers = layer_numbers(settings["layers"] or list(range(1, n_layers + 1)), n_layers, "diagnostics.layers")
    encoded = scorer.tokenizer.encode((pair.item.prompt, pair.item.responses) for pair in pairs)
    texts = [text_tokens(scorer.tokenizer, item) for item in encoded]
    measured = measure(scorer, encoded, texts, layers)

    layers_from_1 = [layer + 1 for layer in layers]
    scores = measured.scores["sequence", 0]
    rows = []
    for k, pair in enumerate(pairs):
        rows += attention_rows(
            pair, encoded[k], texts=texts[k], scores=scores[k], masses=measured.masses[k], layers=layers_from_1
        )
    write_rows(rows, ATTENTION_COLUMNS, out / DIAGNOSED_RUN_FILES[0])
    write_rows(masking_rows(pairs, measured.scores), MASKING_COLUMNS, out / DIAGNOSED_RUN_FILES[1])
    for name in counts:
        counts[name]["n_truncated"] = 0
    for pair, item in zip(pairs, encoded, strict=True):
        counts[pair.benchmark]["n_truncated"] += any(item.truncated)
    report = {"variant": variant, "layers": layers_from_1, "n_layers": n_layers, "benchmarks": counts}
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

    Raises:
        UserError: the backbone is not exact in packed rows, or its attention cannot be captured.
    """
    model = packed_model(scorer.model)
    scores = np.full((len(encoded), 2), np.nan, dtype=np.float32)
    masses: list[list[np.ndarray]] = [[] for _ in encoded]
    model.capture_attention(layers)
    for positions in _batches(encoded, scorer.settings):
        items = [encoded[position] for position in positions]
        output = _forward(scorer, lay_out(items, "packed", scorer.tokenizer.pad_id))
        scores[positions] = output.rewards.cpu().numpy()
        masses_of_batch = sequence_masses(output.attention, items)
        for k, position in enumerate(positions):
            masses[position] = masses_of_batch[2 * k : 2 * k + 2]
    model.capture_attention(())
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
    visible = [[visible_positions(text, mode, percent) for text in texts_of_item] for texts_of_item in texts]
    shortened = [visible_item(item, positions) for item, positions in zip(encoded, visible, strict=True)]
    scores = np.full((len(encoded), 2), np.nan, dtype=np.float32)
    for members in _batches(shortened, scorer.settings):
        items = [shortened[member] for member in members]
        batch = lay_out_visible(items, [visible[member] for member in members], scorer.tokenizer.pad_id)
        scores[members] = _forward(scorer, batch).rewards.cpu().numpy()
    return scores


def _forward(scorer: RewardModelScorer, batch: SequenceBatch) -> RewardOutput:
    with torch.inference_mode():
        return scorer.model(batch.to(next(scorer.model.parameters()).device))


def _batches(items: Sequence[TokenizedItem], settings: ScoringSettings) -> list[list[int]]:
    """Positions of items, longest first, in batches within the token limit; in bf16 one item each.

    In bf16 the rounding depends on the batch. So a pair gets a forward by itself, and its numbers do not depend on
    others.
    """
    limit = 0 if settings.one_text_per_forward else settings.tokens_per_batch
    order = sorted(range(len(items)), key=lambda position: -packed_length(items[position]))
    return batches_within(order, limit, lambda members: launched_tokens([items[k] for k in members], "packed"))
