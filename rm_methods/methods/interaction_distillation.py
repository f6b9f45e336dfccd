"""Interaction Distillation (our reconstruction): the student's attention is drawn towards that of a teacher that reads both responses.

    loss = -log sigmoid(r_chosen - r_rejected) + weight(t) * mean over layers of alignment(student, teacher)

Idea: Zang et al. 2025 (arXiv 2508.02618), of which only the abstract is known to us: a bidirectional teacher reads prompt, chosen and
rejected together and hands its attention pattern to a decoder-only, Siamese reward model.  Our choices, all settings of the card: the
student's *virtual* map softmax(Q K^T / sqrt(d)) over the joint sequence without the causal mask (after VIRT, arXiv 2112.04195) is what
is aligned and never enters the forward pass; rows are compared by KL(teacher || student); tokens of both tokenizers are aligned by
character spans; the teacher reads both orders.  The exported model has no trace of the teacher.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from rm_methods.errors import UserError
from rm_methods.interaction import objectives
from rm_methods.interaction.objectives import StudentAttention, TeacherAttention
from rm_methods.interaction.teacher_maps import JointTeacher, PairAlignments, TeacherMaps, segments, without_rows
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.reward_models.attention_capture import layer_numbers
from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED
from rm_methods.reward_models.packed_attention import tokens_of_pairs

UNIFORM = "uniform"
_OBJECTIVES = {
    "causal_kl": partial(objectives.row_kl, causal=True),
    "received_mass": objectives.received_mass,
    "readout": objectives.readout,
    "virt": objectives.virt,
}


class Method(TrainedMethod):
    """Bradley-Terry and an alignment loss; with weight 0 it is Bradley-Terry, to the bit."""

    def build(self, model, inputs):
        settings = self.settings
        self.counts, self.maps = {}, []
        if not settings["weight"]:
            return
        depth = model.config.num_hidden_layers
        asked = [round(2 * depth / 3)] if settings["student_layers"] == "auto" else settings["student_layers"]
        self.layers = layer_numbers(asked, depth, "interaction_distillation.student_layers")
        model.capture_attention(self.layers)
        teacher, teacher_layers = self._teacher(inputs)
        self.items = inputs.items
        self.place = {pair.pair_id: k for k, pair in enumerate(inputs.pairs)}
        alignments = PairAlignments(inputs.items, inputs.reader, teacher.reader if teacher else None)
        self.pairs, self.counts = alignments.pairs, alignments.counts
        cache = (
            None
            if settings["online"] or settings["objective"] == "relations"
            else inputs.work_folder.parent / "teacher_maps"
        )
        # Student layers may share a layer of the teacher: it is read once for all of them.
        by_layer = {
            layer: TeacherMaps(alignments, teacher, layer, settings["shuffle"], cache) for layer in set(teacher_layers)
        }
        self.maps = [by_layer[layer] for layer in teacher_layers]
        self.teacher = teacher if cache is None else None
        if cache is not None:
            # The maps are stored: neither the teacher nor its view of the pairs is needed in training.
            self.pairs = [without_rows(pair) for pair in self.pairs]
            for maps in self.maps:
                maps.pairs = self.pairs
        self._check_relation_heads(model)

    def _check_relation_heads(self, model) -> None:
        if self.settings["objective"] != "relations":
            return
        widths = {"student": _attention_width(model.config), "teacher": _attention_width(self.teacher.model.config)}
        if wrong := {side: width for side, width in widths.items() if width % self.settings["relation_heads"]}:
            asked = self.settings["relation_heads"]
            raise UserError(
                f"interaction_distillation.relation_heads: {asked} does not divide the attention width of {wrong}."
            )

    def _teacher(self, inputs):
        """The teacher (None: uniform) and its layers, one for each student layer."""
        settings = self.settings
        if settings["teacher"] == UNIFORM:
            if settings["objective"] == "relations":
                raise UserError(
                    "interaction_distillation: objective 'relations' needs a teacher with queries and keys, not 'uniform'."
                )
            return None, [0] * len(self.layers)
        training, backbone = inputs.config["training"], inputs.config["backbone"]
        length = training["max_length"] or backbone["max_length"]
        key = "interaction_distillation.teacher_layers"
        heads = None if settings["teacher_heads"] == "all" else settings["teacher_heads"]
        if heads and settings["objective"] == "relations":
            raise UserError(
                "interaction_distillation.teacher_heads: objective 'relations' reads the vectors of all heads. Use 'all'."
            )
        teacher = JointTeacher(
            inputs.required["teacher"][0], length, settings["teacher_layers"], key, training["precision"], heads
        )
        layers = list(teacher.layers) * (len(self.layers) if len(teacher.layers) == 1 else 1)
        if len(layers) != len(self.layers):
            raise UserError(
                f"{key}: {len(layers)} layers for {len(self.layers)} student layers. Name one for each of them, or one for all."
            )
        return teacher, layers

    def loss(self, model, batch):
        output = model(batch)
        preference = bradley_terry_loss(output.rewards, batch.margin)
        if not self.settings["weight"]:
            return Loss(preference)
        places = [self.place[pair_id] for pair_id in batch.pair_ids]
        alignment = torch.zeros_like(preference)
        teacher = {maps: self._teacher_attention(maps, places, preference.device) for maps in set(self.maps)}
        for layer, maps in zip(self.layers, self.maps, strict=True):
            student = self.student_attention(output.attention[layer], batch, places)
            alignment = alignment + self._alignment(student, teacher[maps], places) / len(self.layers)
        warmup = self.settings["warmup_fraction"]
        weight = self.settings["weight"] * (min(1.0, batch.progress / warmup) if warmup else 1.0)
        return Loss(preference + weight * alignment, {"preference_loss": preference, "alignment_loss": alignment})

    def _teacher_attention(self, maps: TeacherMaps, places: list[int], device) -> list[TeacherAttention]:
        """The teacher's maps of the pairs at these places; for relations its vectors of those that are aligned, one for each order."""
        if self.settings["objective"] != "relations":
            return [maps.batch(places, device)]
        aligned = [place for place in places if self.pairs[place] is not None]
        if not aligned:
            return []
        segment = segments(self.pairs, aligned).to(device)
        orders = self.teacher.vectors([self.pairs[place] for place in aligned], maps.layer)
        return [TeacherAttention(None, segment, tuple(x.to(device) for x in vectors)) for vectors in orders]

    def _alignment(self, student: StudentAttention, teacher: list[TeacherAttention], places: list[int]) -> torch.Tensor:
        """The objective that the settings name, fp32 [pairs]; 0 for pairs that could not be aligned."""
        settings = self.settings
        if settings["objective"] == "relations":
            return self._relations(student, teacher, places)
        if settings["objective"] != "row_kl":
            return _OBJECTIVES[settings["objective"]](student, *teacher)
        row_kl = objectives.row_kl if settings["heads"] == "each" else objectives.averaged_row_kl
        if settings["scope"] != "separate":
            return row_kl(student, *teacher, settings["scope"])
        intra, inter = (row_kl(student, *teacher, scope) for scope in ("intra", "inter"))
        return settings["intra_weight"] * intra + settings["inter_weight"] * inter

    def _relations(self, student: StudentAttention, orders: list[TeacherAttention], places: list[int]) -> torch.Tensor:
        total = student.query.new_zeros(len(places))
        aligned = torch.tensor(
            [k for k, place in enumerate(places) if self.pairs[place] is not None], device=total.device
        )
        for teacher in orders:
            part = StudentAttention(*(x[aligned] for x in (student.query, student.key, student.value)), student.scaling,
                                    *(x[aligned] for x in (student.group, student.segment, student.read)))  # fmt: skip
            total = total.index_add(
                0, aligned, objectives.relations(part, teacher, self.settings["relation_heads"]) / len(orders)
            )
        return total

    def student_attention(self, attention, batch, places: list[int]) -> StudentAttention:
        """Captured queries and keys of the pairs of a batch, in fp32, regrouped as [prompt | chosen | rejected]."""
        attention = attention.repeated()
        items = [self.items[place] for place in places]
        widths, segment, group = self._token_groups(items, places)
        wanted = (
            attention.query,
            attention.key,
            *([attention.value] if self.settings["objective"] == "relations" else []),
        )
        if batch.attention_map is not None:
            tokens = [tokens_of_pairs(x, batch.attention_map).float() for x in wanted]
        else:
            index = _plain_places(items, widths, attention.query.shape[2]).to(attention.query.device)
            tokens = [_taken(x, index).float() for x in wanted]
        prompt, response = widths
        read = [
            [prompt + len(i.sequences[0]) - i.shared - 1, prompt + response + len(i.sequences[1]) - i.shared - 1]
            for i in items
        ]
        device = attention.query.device
        value = tokens[2] if len(tokens) > 2 else None
        return StudentAttention(
            tokens[0],
            tokens[1],
            value,
            attention.scaling,
            group.to(device),
            segment.to(device),
            torch.tensor(read, device=device),
        )

    def _token_groups(self, items, places):
        """Widths (P, Q) of the regrouped tokens, and their segments and groups, int64 [B, P + 2 Q], -1 at padding."""
        prompt = max(item.shared for item in items)
        response = max(length - item.shared for item in items for length in item.lengths)
        segment = np.full((len(items), prompt + 2 * response), -1, dtype=np.int64)
        group = segment.copy()
        for b, (item, place) in enumerate(zip(items, places, strict=True)):
            own = (
                np.full(sum(item.lengths) - item.shared, -1) if self.pairs[place] is None else self.pairs[place].student
            )
            start = 0
            for kind, column, count in (
                (PROMPT, 0, item.shared),
                (CHOSEN, prompt, len(item.sequences[0]) - item.shared),
                (REJECTED, prompt + response, len(item.sequences[1]) - item.shared),
            ):
                segment[b, column : column + count] = kind
                group[b, column : column + count] = own[start : start + count]
                start += count
        return (prompt, response), torch.from_numpy(segment), torch.from_numpy(group)

    def report(self):
        """Counts of the alignment, the teacher's attention outside the text, and the tokens that it read for maps that are stored."""
        found = dict(self.counts)
        if measured := [maps for maps in set(self.maps) if maps.counts["pairs"]]:
            share = sum(maps.counts["outside"] for maps in measured) / sum(maps.counts["pairs"] for maps in measured)
            found["teacher_attention_outside_text"] = round(share, 4)
            if all(maps.stored is not None for maps in measured):
                found["teacher_tokens"] = sum(maps.counts["tokens"] for maps in measured)
        return found


def _attention_width(config) -> int:
    """Numbers in the queries of all heads; not always the hidden size."""
    return config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _plain_places(items, widths, length: int) -> torch.Tensor:
    """Where the tokens [prompt | chosen | rejected] of each pair lie in plain rows, flattened: int64 [B, P + 2 Q], 0 at padding."""
    prompt, response = widths
    index = np.zeros((len(items), prompt + 2 * response), dtype=np.int64)
    for b, item in enumerate(items):
        index[b, : item.shared] = 2 * b * length + np.arange(item.shared)
        for k in range(2):
            count = len(item.sequences[k]) - item.shared
            start = prompt + k * response
            index[b, start : start + count] = (2 * b + k) * length + item.shared + np.arange(count)
    return torch.from_numpy(index)


def _taken(x_RhLd: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    heads, size = x_RhLd.shape[1], x_RhLd.shape[3]
    flat = x_RhLd.transpose(1, 2).reshape(-1, heads, size)
    return flat[index].transpose(1, 2)
