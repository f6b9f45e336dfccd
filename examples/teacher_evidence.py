"""Does the attention of a joint teacher find the evidence?  Exact in the controlled world, which marks the sentences.

    python examples/teacher_evidence.py --backbone results/interaction_distillation/data/backbone \\
        --teacher results/interaction_distillation/runs/joint_bidirectional/seed0/model

A value of 1 means that the map knows nothing; larger values mean that it attends to the evidence.  For every layer
and head of the teacher, the script prints how much the deciding sentence of a response attends to the deciding
sentence of the prompt, of the other response, and of the same response, and how much all text attends to the cue.
Each value is divided by what even attention would give.  The maps are those that a student of Interaction
Distillation gets: over groups of text, averaged over both orders.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rm_methods.interaction.teacher_maps import AlignedPair, PairAlignments, group_maps
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.world import generate
from rm_methods.reward_models.backbones import load_tokenizer
from rm_methods.reward_models.joint_model import load_joint
from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED, pair_text

TARGETS = ("the prompt's evidence", "the other response's evidence", "its own evidence", "the cue (all text)")
PAIRS_AT_ONCE = 25


def evidence_groups(pair: PreferencePair, text, aligned: AlignedPair) -> dict[str, np.ndarray]:
    """Which groups of text overlap each kind of marked sentence (`meta` of the pair, docs/world.md), bool [G] each."""
    marked = {name: np.zeros(len(aligned.segment), dtype=bool) for name in ("prompt", "chosen", "rejected", "cue")}

    def mark(name: str, segment: int, sentence: str) -> None:
        start = text.segments[segment].find(sentence)
        if start < 0:
            raise ValueError(
                f"{pair.pair_id}: {sentence!r} is not in the text that student and teacher read; was it cut?"
            )
        for group, kind, (first, last) in zip(
            aligned.student, text.student.segment, text.student.spans.tolist(), strict=True
        ):
            if group >= 0 and kind == segment and first < start + len(sentence) and last > start:
                marked[name][group] = True

    for message, start, stop in pair.meta["evidence_prompt"]:
        mark("prompt", PROMPT, pair.prompt[message]["content"][start:stop])
    for name, segment, response in (("chosen", CHOSEN, pair.chosen), ("rejected", REJECTED, pair.rejected)):
        for start, stop in pair.meta[f"evidence_{name}"]:
            mark(name, segment, response[start:stop])
        for start, stop in pair.meta[f"cue_span_{name}"]:
            mark("cue", segment, response[start:stop])
    return marked


def attention_ratios(map_GG: np.ndarray, marked: dict[str, np.ndarray]) -> dict[str, list[tuple[float, float]]]:
    """By target of `TARGETS`: (attention, even attention) of the pair's rows; none if it has no such sentence."""
    attention: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def add(target: str, rows: np.ndarray, columns: np.ndarray) -> None:
        if rows.any() and columns.any():
            attention[target].append((float(map_GG[rows][:, columns].sum(1).mean()), float(columns.mean())))

    for response, other in (("chosen", "rejected"), ("rejected", "chosen")):
        for target, columns in zip(TARGETS, ("prompt", other, response), strict=False):
            add(target, marked[response], marked[columns])
    add(TARGETS[3], np.ones(len(map_GG), dtype=bool), marked["cue"])
    return attention


def measure(teacher: Path, backbone: Path, count: int, max_length: int) -> list[tuple[int, str, list[float]]]:
    """(layer, head or "all", ratios in the order of `TARGETS`), layers and heads counted from 1."""
    tokenizer = load_tokenizer(backbone, max_length)
    pairs = [pair for pair in generate(train_pairs=1) if pair.split == "cue_neutral"][:count]
    items = list(tokenizer.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs))
    model, reader = load_joint(teacher, max_length)
    aligned = PairAlignments(items, tokenizer, reader).pairs
    whole = [k for k, pair in enumerate(aligned) if pair is not None]
    marked = {k: evidence_groups(pairs[k], pair_text(tokenizer, items[k]), aligned[k]) for k in whole}
    rows = []
    for layer in range(model.config.num_hidden_layers):
        for heads in (None, *((head,) for head in range(model.config.num_attention_heads))):
            attention: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for start in range(0, len(whole), PAIRS_AT_ONCE):
                batch = whole[start : start + PAIRS_AT_ONCE]
                with torch.no_grad():
                    maps, _ = group_maps(model, [aligned[k] for k in batch], layer, reader.pad_id, heads)
                for k, map_GG in zip(batch, maps.cpu().numpy(), strict=True):
                    size = len(aligned[k].segment)
                    for target, values in attention_ratios(map_GG[:size, :size], marked[k]).items():
                        attention[target] += values
            ratios = [
                np.mean([value for value, _ in attention[target]]) / np.mean([even for _, even in attention[target]])
                for target in TARGETS
            ]
            rows.append((layer + 1, "all" if heads is None else str(heads[0] + 1), ratios))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="model folder of a joint run")
    parser.add_argument(
        "--backbone",
        type=Path,
        required=True,
        help="prepared backbone of the student (data/backbone): its tokens make the groups",
    )
    parser.add_argument("--pairs", type=int, default=300, help="pairs of the world's cue_neutral split")
    parser.add_argument("--max-length", type=int, default=512, help="of the student's sequences, in tokens")
    asked = parser.parse_args(arguments)
    print(f"| layer | head | {' | '.join(TARGETS)} |")
    print("|---" * (2 + len(TARGETS)) + "|")
    for layer, head, ratios in measure(asked.teacher, asked.backbone, asked.pairs, asked.max_length):
        print(f"| {layer} | {head} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
