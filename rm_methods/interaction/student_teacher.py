"""The attention of a student (a reward model) and of its joint teacher, over the same pairs and groups of tokens.

Used to train (the method Interaction Distillation) and to measure (the diagnosis of the distance from a teacher).
Shapes: B pairs of a batch, h heads, P and Q the longest prompt and response in tokens, G groups, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rm_methods.errors import UserError
from rm_methods.interaction.objectives import StudentAttention, TeacherVectors
from rm_methods.interaction.teacher_maps import AlignedPair, JointTeacher, PairAlignments, TeacherMaps, segments
from rm_methods.reward_models.attention_capture import LayerAttention, layer_numbers
from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED
from rm_methods.reward_models.layouts import SequenceBatch, token_positions
from rm_methods.reward_models.packed_attention import tokens_of_pairs
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem

UNIFORM = "uniform"


@dataclass(frozen=True)
class LayerChoice:
    """Which attention is compared, as the settings of Interaction Distillation say.

    Attributes:
        student_layers: as people count them, 1 is the first, -1 the last; "auto" is the layer at two thirds of the
            depth.
        teacher_layers: the same for the teacher, one for each student layer or one for all.
        teacher_heads: from 1, whose attention is averaged; "all" for all.
    """

    student_layers: Sequence[int] | str
    teacher_layers: Sequence[int]
    teacher_heads: Sequence[int] | str

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> LayerChoice:
        """The choice in the settings of `interaction_distillation`."""
        return cls(settings["student_layers"], settings["teacher_layers"], settings["teacher_heads"])

    def student(self, depth: int) -> tuple[int, ...]:
        """Numbers from 0 of the student's layers.

        Args:
            depth: layers of the student.

        Raises:
            UserError: a layer that does not exist.
        """
        layers = self.student_layers
        numbers = [round(2 * depth / 3)] if isinstance(layers, str) else list(layers)
        return layer_numbers(numbers, depth, "interaction_distillation.student_layers")

    def teacher(self, folder: Path, max_length: int, precision: str) -> JointTeacher:
        """Load the teacher from a joint model's folder, see `JointTeacher`."""
        heads = None if isinstance(self.teacher_heads, str) else self.teacher_heads
        return JointTeacher(
            folder,
            max_length=max_length,
            layers=self.teacher_layers,
            key="interaction_distillation.teacher_layers",
            precision=precision,
            heads=heads,
        )


class StudentTeacher:
    """Compares the attention of a student with that of a teacher, layer by layer.

    Args:
        layers: numbers from 0 of the student's layers.
        teacher: None for the uniform teacher, whose groups are the student's text tokens.
        items: tokenized pairs; everywhere else pairs are named by their position in it.
        tokenizer: the student's.
        shuffle: "none", "rows" or "columns", see `TeacherMaps`.
        cache: folder that the teacher's maps are stored in; None computes them whenever they are needed.

    Attributes:
        layers: as given.
        maps: the teacher's maps for each of the layers.  Student layers that share a layer of the teacher share its
            maps.
        alignments: of all pairs.
        teacher: None if it is uniform, or if its maps are stored.

    Raises:
        UserError: the number of the teacher's layers is neither 1 nor that of the student's.
    """

    def __init__(
        self,
        layers: Sequence[int],
        teacher: JointTeacher | None,
        items: Sequence[TokenizedItem],
        tokenizer: ChatTokenizer,
        *,
        shuffle: str = "none",
        cache: Path | None = None,
    ):
        self.layers = tuple(layers)
        self.items = items
        teacher_layers = _teacher_layers(teacher, len(self.layers))
        self.alignments = PairAlignments(items, tokenizer, teacher.reader if teacher else None)
        maps_of_layer = {
            layer: TeacherMaps(self.alignments, teacher, layer, shuffle, cache) for layer in sorted(set(teacher_layers))
        }
        self.maps = [maps_of_layer[layer] for layer in teacher_layers]
        self.teacher = teacher
        if cache is not None:
            # The maps are stored, so neither the teacher nor its rows of tokens are needed again.
            self.teacher = None
            self.alignments.drop_rows()

    @property
    def pairs(self) -> list[AlignedPair | None]:
        """The alignment of each pair; None where truncation left no joint text."""
        return self.alignments.pairs

    @property
    def distinct_maps(self) -> list[TeacherMaps]:
        """The maps without repetition."""
        return list(dict.fromkeys(self.maps))

    def student_attention(
        self, attention: LayerAttention, batch: SequenceBatch, positions: Sequence[int], with_values: bool = False
    ) -> StudentAttention:
        """Captured queries and keys of a batch, in fp32, regrouped per pair as [prompt | chosen | rejected].

        Args:
            attention: of one layer, captured in the forward of `batch`.
            positions: of the batch's pairs.
            with_values: also regroup the values.
        """
        items = [self.items[position] for position in positions]
        segment, group = self._segments_and_groups(items, positions)
        return pair_attention(attention, batch, items, segment=segment, group=group, with_values=with_values)

    def teacher_vectors(self, maps: TeacherMaps, positions: Sequence[int], device) -> list[TeacherVectors]:
        """The teacher's queries, keys and values over groups, one for each order of the responses.

        Args:
            maps: name the layer.
            positions: of pairs that are aligned.

        Raises:
            UserError: the teacher gives only attention weights.
        """
        if self.teacher is None:
            raise UserError(
                "The teacher's queries, keys and values are read online, from a teacher that is not uniform."
            )
        segment = segments(self.pairs, positions).to(device)
        pairs = [pair for pair in (self.pairs[position] for position in positions) if pair is not None]
        return [
            TeacherVectors(query.to(device), key.to(device), value.to(device), segment)
            for query, key, value in self.teacher.vectors(pairs, maps.layer)
        ]

    def report(self) -> dict[str, Any]:
        """Counts of the alignment, the teacher's attention outside the text, and the tokens it read for stored maps."""
        counts = dict(self.alignments.counts)
        measured = [maps for maps in self.distinct_maps if maps.counts["pairs"]]
        if measured:
            outside = sum(maps.counts["outside"] for maps in measured)
            share = outside / sum(maps.counts["pairs"] for maps in measured)
            counts["teacher_attention_outside_text"] = round(share, 4)
            if all(maps.stored is not None for maps in measured):
                counts["teacher_tokens"] = sum(maps.counts["tokens"] for maps in measured)
        return counts

    def _segments_and_groups(
        self, items: Sequence[TokenizedItem], positions: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Segments and groups of the regrouped tokens, int64 [B, P + 2 Q] each, -1 at padding."""
        segment = token_segments(items)
        group = torch.full_like(segment, -1)
        for b, position in enumerate(positions):
            pair = self.pairs[position]
            if pair is not None:
                group[b, segment[b] >= 0] = torch.from_numpy(pair.student.astype(np.int64))
        return segment, group


def pair_attention(
    attention: LayerAttention,
    batch: SequenceBatch,
    items: Sequence[TokenizedItem],
    *,
    segment: torch.Tensor,
    group: torch.Tensor,
    with_values: bool = False,
) -> StudentAttention:
    """Captured queries and keys of a batch, in fp32, regrouped per pair as [prompt | chosen | rejected].

    Args:
        attention: of one layer, captured in the forward of `batch`.
        items: the batch's pairs.
        segment: of their regrouped tokens, from `token_segments`.
        group: int64 [B, P + 2 Q], which tokens are compared, see `StudentAttention`.
        with_values: also regroup the values.
    """
    attention = attention.repeated()
    device = attention.query.device
    if batch.attention_map is not None:
        regrouped = partial(tokens_of_pairs, attention_map=batch.attention_map)
    else:
        index = _positions_in_plain_rows(items).to(device)
        regrouped = partial(_gathered_tokens, index=index)
    return StudentAttention(
        query=regrouped(attention.query).float(),
        key=regrouped(attention.key).float(),
        value=regrouped(attention.value).float() if with_values else None,
        scaling=attention.scaling,
        group=group.to(device),
        segment=segment.to(device),
        read=_read_positions(items).to(device),
    )


def token_segments(items: Sequence[TokenizedItem]) -> torch.Tensor:
    """Segment of each token of some pairs, regrouped as [prompt | chosen | rejected]; int64 [B, P + 2 Q], -1 at
    padding."""
    prompt, response = part_widths(items)
    segment = torch.full((len(items), prompt + 2 * response), -1)
    for b, item in enumerate(items):
        for kind, column, count in (
            (PROMPT, 0, item.shared),
            (CHOSEN, prompt, item.lengths[0] - item.shared),
            (REJECTED, prompt + response, item.lengths[1] - item.shared),
        ):
            segment[b, column : column + count] = kind
    return segment


def _teacher_layers(teacher: JointTeacher | None, student_layers: int) -> list[int]:
    """The teacher's layer for each student layer."""
    if teacher is None:
        return [0] * student_layers
    if len(teacher.layers) == 1:
        return list(teacher.layers) * student_layers
    if len(teacher.layers) != student_layers:
        raise UserError(
            f"interaction_distillation.teacher_layers: {len(teacher.layers)} layers for {student_layers} student "
            "layers. Name one for each of them, or one for all."
        )
    return list(teacher.layers)


def part_widths(items: Sequence[TokenizedItem]) -> tuple[int, int]:
    """P and Q: the longest prompt and the longest response of some pairs, in tokens."""
    prompt = max(item.shared for item in items)
    response = max(length - item.shared for item in items for length in item.lengths)
    return prompt, response


def _read_positions(items: Sequence[TokenizedItem]) -> torch.Tensor:
    """Columns of the tokens that the rewards are read from, int64 [B, 2]: each response's last."""
    prompt, response = part_widths(items)
    last = [[length - item.shared - 1 for length in item.lengths] for item in items]
    return torch.tensor([[prompt + chosen, prompt + response + rejected] for chosen, rejected in last])


def _positions_in_plain_rows(items: Sequence[TokenizedItem]) -> torch.Tensor:
    """Where the tokens [prompt | chosen | rejected] are in flattened plain rows, int64 [B, P + 2 Q], 0 at padding."""
    prompt, response = part_widths(items)
    positions = token_positions(items, "plain")
    index = np.zeros((len(items), prompt + 2 * response), dtype=np.int64)
    for b, item in enumerate(items):
        index[b, : item.shared] = positions[2 * b][: item.shared]
        for k in range(2):
            response_positions = positions[2 * b + k][item.shared :]
            start = prompt + k * response
            index[b, start : start + len(response_positions)] = response_positions
    return torch.from_numpy(index)


def _gathered_tokens(x_RhLd: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tokens [B, h, columns, d] of all rows together, by their flattened positions [B, columns]."""
    heads = x_RhLd.shape[1]
    size = x_RhLd.shape[3]
    flat = x_RhLd.transpose(1, 2).reshape(-1, heads, size)
    return flat[index].transpose(1, 2)
