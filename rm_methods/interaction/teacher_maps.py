"""A joint teacher's attention over each pair, in groups that student and teacher share, both orders averaged.

Maps are computed once per data set into a file that is mapped into memory, or online in every step.  The loss is the
same, because both round to half precision.
Shapes: B pairs, L student tokens, M teacher tokens, G groups; all padded within a batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rm_methods.errors import UserError
from rm_methods.files import content_hash
from rm_methods.interaction.alignment import align
from rm_methods.interaction.map_file import map_file
from rm_methods.interaction.objectives import TeacherAttention
from rm_methods.reward_models.attention_capture import layer_numbers
from rm_methods.reward_models.joint_model import JointModel, load_joint
from rm_methods.reward_models.joint_reader import DecoderReader, EncoderReader, JointRow, pair_text
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem
from rm_methods.stored import read_run_key
from rm_methods.system.code_hash import modules_hash

_PAIRS_AT_ONCE = 1000


@dataclass(frozen=True)
class AlignedPair:
    """A pair as student and teacher read it.

    Attributes:
        student: int32 [L], group of each student token, in the order [shared prompt | rest of chosen | rest of
            rejected]; -1 for none.
        segment: int8 [G].
        rows: token ids of the teacher's rows, chosen first and rejected first, and the group of each token, int32 [M]
            both; empty for a made-up teacher, and once its maps are stored.
    """

    student: np.ndarray
    segment: np.ndarray
    rows: tuple[tuple[np.ndarray, np.ndarray], ...]


class PairAlignments:
    """The alignment of every pair, and counts of pairs and tokens that could not be aligned.

    Args:
        items: tokenized pairs.
        tokenizer: the student's.
        teacher_reader: None for a made-up teacher, whose groups are the student's text tokens.

    Attributes:
        pairs: an `AlignedPair` for each item, or None if truncation left no joint text.
        counts: for the run's report.
    """

    def __init__(
        self,
        items: Sequence[TokenizedItem],
        tokenizer: ChatTokenizer,
        teacher_reader: EncoderReader | DecoderReader | None = None,
    ):
        if isinstance(teacher_reader, DecoderReader) and teacher_reader.chat.hash() != tokenizer.hash():
            raise UserError(
                "The teacher is a decoder with another tokenizer than the student. Train it on the same backbone, or "
                "use an encoder."
            )
        self.pairs: list[AlignedPair | None] = []
        self._unmatched = 0
        self._tokens = 0
        self._cut = 0
        # In chunks, because texts and spans take many times as much memory as the alignments that are kept.
        for start in range(0, len(items), _PAIRS_AT_ONCE):
            self._align(items[start : start + _PAIRS_AT_ONCE], tokenizer, teacher_reader)
        self.counts = {
            "pairs_without_alignment": sum(pair is None for pair in self.pairs),
            "pairs_cut_for_the_teacher": self._cut,
            "unmatched_text_tokens": round(self._unmatched / max(self._tokens, 1), 6),
        }

    def drop_rows(self) -> None:
        """Forget the teacher's rows, which are not needed once its maps are stored."""
        self.pairs = [None if pair is None else replace(pair, rows=()) for pair in self.pairs]

    def _align(
        self,
        items: Sequence[TokenizedItem],
        tokenizer: ChatTokenizer,
        teacher_reader: EncoderReader | DecoderReader | None,
    ) -> None:
        texts = [pair_text(tokenizer, item) for item in items]
        aligned = [(k, text) for k, text in enumerate(texts) if text is not None]
        orders_of_pairs: Sequence[tuple[JointRow, JointRow] | None] = [None] * len(aligned)
        if teacher_reader is not None:
            orders_of_pairs = teacher_reader.read([text for _, text in aligned], [items[k] for k, _ in aligned])
        pairs: list[AlignedPair | None] = [None] * len(items)
        for (k, text), orders in zip(aligned, orders_of_pairs, strict=True):
            # A made-up teacher has the student's tokens.
            alignments = [align(text.segments, text.student, row) for row in orders or (text.student,)]
            rows: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
            if orders is not None:
                rows = tuple(
                    (row.ids, alignment.teacher.astype(np.int32))
                    for row, alignment in zip(orders, alignments, strict=True)
                )
                self._cut += orders[0].cut
            # The student's groups are those of the teacher's first order.
            first = alignments[0]
            pairs[k] = AlignedPair(first.student.astype(np.int32), first.segment.astype(np.int8), rows)
            self._unmatched += first.unmatched
            self._tokens += _text_tokens(text.student, orders)
        self.pairs += pairs


class JointTeacher:
    """Gives attention maps of a joint model over groups.

    Args:
        folder: a joint model's folder.
        max_length: of the student's sequences, in tokens.
        layers: as people count them, -1 is the last.
        key: key path of that setting, for messages.
        precision: "fp32" or "bf16".
        heads: as people count them, from 1, whose attention is averaged; None for all.

    Attributes:
        layers, heads: numbers from 0.
        identity: dependencies of the maps, besides the pairs and the layer.

    Raises:
        UserError: a layer or head that does not exist, a layer with a local attention window, or no summary beside the
            folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_length: int,
        layers: Sequence[int],
        key: str,
        precision: str,
        heads: Sequence[int] | None = None,
    ):
        self.model, self.reader = load_joint(folder, max_length, precision)
        config = self.model.config
        self.layers = layer_numbers(list(layers), config.num_hidden_layers, key)
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        local = [layer + 1 for layer in self.layers if kinds[layer] != "full_attention"]
        if local:
            full = [number for number, kind in enumerate(kinds, start=1) if kind == "full_attention"]
            raise UserError(
                f"{key}: layers {local} of the teacher see a window only, not the whole pair. Use one of {full}."
            )
        count = config.num_attention_heads
        wrong = [head for head in heads or () if not 1 <= head <= count]
        if wrong:
            heads_key = key.replace("layers", "heads")
            raise UserError(f"{heads_key}: the teacher has {count} heads, so {wrong} do not exist. Use 1 to {count}.")
        self.heads = None if heads is None else tuple(head - 1 for head in heads)
        summary = Path(folder).parent / "summary.json"
        if not summary.exists():
            raise UserError(
                f"{summary} is missing: a teacher is the model folder of a run, with its summary beside it."
            )
        code = modules_hash("interaction.teacher_maps")
        self.identity = [read_run_key(summary), precision, code, self.heads]

    @torch.no_grad()
    def maps(self, pairs: Sequence[AlignedPair], layer: int) -> tuple[list[np.ndarray], float]:
        """fp16 maps [G, G] of some pairs, both orders averaged; and the mean share of attention outside the groups."""
        maps_PGG, outside = group_maps(self.model, pairs, layer, self.reader.pad_id, self.heads)
        sizes = [len(pair.segment) for pair in pairs]
        halves = [map_GG[:size, :size].half().cpu().numpy() for map_GG, size in zip(maps_PGG, sizes, strict=True)]
        return halves, outside

    @torch.no_grad()
    def vectors(self, pairs: Sequence[AlignedPair], layer: int) -> list[tuple[torch.Tensor, ...]]:
        """Queries, keys and values of a layer, one triple for each order of the responses.

        Returns:
            Each [B, G, h * d]: heads concatenated, mean over the tokens of a group.

        Raises:
            UserError: the teacher gives attention weights only.
        """
        batch = _joint_batch(pairs, self.reader.pad_id).to(next(self.model.parameters()).device)
        _, attention = self.model.attention_map(batch, layer)
        if attention is None:
            raise UserError(
                "objective: 'relations' needs the teacher's queries, keys and values, but this teacher gives only its "
                "weights."
            )
        pool_RGM = _pooling(pairs, batch.input_ids.shape[1]).to(batch.input_ids.device)
        pooled = [
            pool_RGM @ x.transpose(1, 2).flatten(2).float() for x in (attention.query, attention.key, attention.value)
        ]
        # The rows of a pair follow each other: chosen first, then rejected first.
        return [tuple(x[order::2] for x in pooled) for order in range(2)]


def group_maps(
    model: JointModel, pairs: Sequence[AlignedPair], layer: int, pad_id: int, heads: Sequence[int] | None = None
) -> tuple[torch.Tensor, float]:
    """Head-averaged maps over groups, and the attention outside them.

    A map has the mean over a group's rows and the sum over its columns.  Attention to tokens outside the groups
    (special tokens) is dropped, and rows are made distributions again.  Then both orders are averaged.

    Args:
        layer, heads: numbers from 0; None for all heads.

    Returns:
        fp32 [B, G, G], zero at padding; the mean share of attention outside the groups.
    """
    batch = _joint_batch(pairs, pad_id).to(next(model.parameters()).device)
    map_RMM, _ = model.attention_map(batch, layer, heads)
    pool_RGM = _pooling(pairs, batch.input_ids.shape[1]).to(map_RMM.device)
    grouped_RGG = pool_RGM @ map_RMM @ (pool_RGM > 0).to(map_RMM.dtype).transpose(1, 2)
    mass_RG = grouped_RGG.sum(-1, keepdim=True)
    is_row = mass_RG > 1e-12
    outside = float(1 - mass_RG[is_row].mean()) if is_row.any() else 0.0
    grouped_RGG = torch.where(is_row, grouped_RGG / mass_RG.clamp(min=1e-12), 0.0)
    return grouped_RGG.unflatten(0, (-1, 2)).mean(1), outside


class TeacherMaps:
    """Maps of all pairs of a data set, by their position in it.

    Args:
        alignments: of the pairs.
        teacher: None gives a uniform teacher: every row is the same for all groups.
        layer: number from 0.
        shuffle: "rows" permutes the rows of each map, "columns" its columns, seeded: a teacher with the same marginals
            and no meaning.
        cache: folder to keep the maps in; None computes them online.

    Attributes:
        counts: `pairs` and `tokens` (of both orders) that the teacher read, `outside`: the sum over these pairs of the
            share of attention that went to tokens outside the groups.
    """

    def __init__(
        self,
        alignments: PairAlignments,
        teacher: JointTeacher | None,
        layer: int,
        shuffle: str = "none",
        cache: Path | None = None,
    ):
        self.alignments = alignments
        self.teacher = teacher
        self.layer = layer
        self.shuffle = shuffle
        self.uniform = teacher is None
        self.counts: dict[str, float] = {"outside": 0.0, "pairs": 0, "tokens": 0}
        sizes = [0 if pair is None else len(pair.segment) for pair in self.pairs]
        self.starts = np.concatenate([[0], np.cumsum(np.square(sizes, dtype=np.int64))])
        self.stored: np.ndarray | None = None
        if teacher is not None and cache is not None:
            self.stored = self._stored_maps(teacher, cache, sizes)
            self.teacher = None  # no longer needed; its memory is freed when no other object holds it

    @property
    def pairs(self) -> list[AlignedPair | None]:
        """The alignments, by the pairs' position."""
        return self.alignments.pairs

    def batch(self, positions: Sequence[int], device) -> TeacherAttention:
        """The teacher's attention over the pairs at these positions, on `device`."""
        segment_BG = segments(self.pairs, positions)
        if self.uniform:
            is_group = segment_BG >= 0
            maps = (is_group[:, :, None] & is_group[:, None]).float() / is_group.sum(1).clamp(min=1)[:, None, None]
            return TeacherAttention(maps.to(device), segment_BG.to(device))
        maps = torch.zeros(*segment_BG.shape, segment_BG.shape[1])
        for b, values in enumerate(self._values(positions)):
            shuffled = self._shuffled(values.astype(np.float32), positions[b])
            maps[b, : len(values), : len(values)] = torch.from_numpy(shuffled)
        return TeacherAttention(maps.to(device), segment_BG.to(device))

    def _values(self, positions: Sequence[int]) -> list[np.ndarray]:
        """fp16 maps [G, G] of some pairs, stored or computed; [0, 0] for a pair that is not aligned."""
        if self.stored is not None:
            return [self._stored_map(self.stored, k) for k in positions]
        assert self.teacher is not None
        maps = [np.zeros((0, 0), dtype=np.float16) for _ in positions]
        requested = [self.pairs[k] for k in positions]
        aligned = [(b, pair) for b, pair in enumerate(requested) if pair is not None]
        if aligned:
            pairs = [pair for _, pair in aligned]
            computed, outside = self.teacher.maps(pairs, self.layer)
            for (b, _), values in zip(aligned, computed, strict=True):
                maps[b] = values
            self.counts["outside"] += outside * len(pairs)
            self.counts["pairs"] += len(pairs)
            self.counts["tokens"] += sum(len(ids) for pair in pairs for ids, _ in pair.rows)
        return maps

    def _stored_map(self, stored: np.ndarray, position: int) -> np.ndarray:
        values = np.array(stored[self.starts[position] : self.starts[position + 1]])
        size = math.isqrt(len(values))
        return values.reshape(size, size)

    def _shuffled(self, values: np.ndarray, position: int) -> np.ndarray:
        if self.shuffle == "none":
            return values
        order = np.random.default_rng([position, len(values)]).permutation(len(values))
        return values[order] if self.shuffle == "rows" else values[:, order]

    def _stored_maps(self, teacher: JointTeacher, cache: Path, sizes: list[int]) -> np.ndarray:
        """The file of maps, computed first if it is missing."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            for ids, group in pair.rows if pair else ():
                digest.update(ids.tobytes() + group.tobytes())
        folder = cache / content_hash([teacher.identity, self.layer, digest.hexdigest()])
        lengths = [max(len(ids) for ids, _ in pair.rows) if pair else 0 for pair in self.pairs]
        stored, self.counts = map_file(folder, sizes, lengths, compute=self._values, counts=lambda: self.counts)
        return stored


def segments(pairs: Sequence[AlignedPair | None], positions: Sequence[int]) -> torch.Tensor:
    """Segments of the groups of some pairs, int64 [B, G], -1 at padding."""
    aligned = [pairs[k] for k in positions]
    sizes = [0 if pair is None else len(pair.segment) for pair in aligned]
    segment_BG = np.full((len(positions), max(1, *sizes)), -1, dtype=np.int64)
    for b, pair in enumerate(aligned):
        if pair is not None:
            segment_BG[b, : sizes[b]] = pair.segment
    return torch.from_numpy(segment_BG)


def _joint_batch(pairs: Sequence[AlignedPair], pad_id: int):
    """The teacher's rows of some pairs in the plain layout: of each pair, chosen first and then rejected first."""
    items = [TokenizedItem(tuple(ids for ids, _ in pair.rows), 0, (False, False), (False, False)) for pair in pairs]
    return lay_out(items, "plain", pad_id)


def _pooling(pairs: Sequence[AlignedPair], length: int) -> torch.Tensor:
    """fp32 [2 B, G, M]: rows take the mean over the tokens of a group."""
    groups = [group for pair in pairs for _, group in pair.rows]
    width = max(1, *(len(pair.segment) for pair in pairs))
    pool_RGM = torch.zeros(len(groups), width, length)
    for r, group in enumerate(groups):
        inside = np.flatnonzero(group >= 0)
        pool_RGM[r, torch.from_numpy(group[inside].astype(np.int64)), torch.from_numpy(inside)] = 1.0
    return pool_RGM / pool_RGM.sum(-1, keepdim=True).clamp(min=1)


def _text_tokens(student: JointRow, orders) -> int:
    return int((student.segment >= 0).sum()) + (int((orders[0].segment >= 0).sum()) if orders else 0)
