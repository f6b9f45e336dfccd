"""Attention transfer: the student learns to attend like a frozen language model, which reads each response alone.

    loss = -log sigmoid(r_chosen - r_rejected) + weight * mean over layers of KL(teacher's map || student's map)

A map is the causal attention that a model uses in its forward pass, averaged over heads; the KL divergence is that of
its rows, averaged over the tokens of prompt, chosen and rejected.  So a student learns where to look from a model that
has learned to compare a response with its prompt, from text alone.

Relatives: attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928) has squared distances of normalized maps
of convolutional networks; MiniLM (Wang et al. 2020, arXiv 2002.10957) has KL of each head in the last layer, on text.
Averaging over heads and adding the term to a preference loss are our choices.  In contrast to
`interaction_distillation`, the teacher neither reads both responses together nor sees any preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from rm_methods.errors import UserError
from rm_methods.interaction.objectives import StudentAttention, used_map_kl
from rm_methods.interaction.student_teacher import pair_attention, part_widths, token_segments
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs, Loss, TrainedMethod
from rm_methods.reward_models.attention_capture import LayerAttention, layer_numbers
from rm_methods.reward_models.backbones import check_token_ids, load_classifier, source_folder
from rm_methods.reward_models.layouts import SequenceBatch, lay_out
from rm_methods.reward_models.loading import outside_of_zero3, pretrained_model, pretrained_tokenizer
from rm_methods.reward_models.model import RewardModel
from rm_methods.reward_models.tokenization import TokenizedItem

START = "start"  # the teacher that is the student before its training
ALL = "all"


class Method(TrainedMethod):
    """Bradley-Terry and a distance from a teacher's attention; with weight 0 it is Bradley-Terry, to the bit.

    Attributes:
        teacher: frozen; None with weight 0.
        items: tokenized training pairs, by their id.
        partner: with `shuffle`, the pair whose maps each pair gets, by id.
        layers: numbers from 0 of student and teacher, in pairs.
    """

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.teacher: RewardModel | None = None
        self.items: dict[str, TokenizedItem] = {}
        self.partner: dict[str, str] = {}
        self.layers: list[tuple[int, int]] = []
        self.pad_id = 0

    def build(self, model, inputs):
        if not self.settings["weight"]:
            return
        self.teacher = _load_teacher(self.settings["teacher"], inputs).requires_grad_(False).eval()
        self.layers = _layers(self.settings, model.config.num_hidden_layers, self.teacher.config.num_hidden_layers)
        model.capture_attention(tuple(student for student, _ in self.layers))
        self.teacher.capture_attention(tuple(teacher for _, teacher in self.layers))
        ids = [pair.pair_id for pair in inputs.pairs]
        self.items = dict(zip(ids, inputs.items, strict=True))
        self.pad_id = inputs.reader.pad_id
        if self.settings["shuffle"]:
            self.partner = _partners(self.items)

    def loss(self, model, batch):
        output = model(batch)
        preference = bradley_terry_loss(output.rewards, batch.margin)
        if self.teacher is None:
            return Loss(preference)
        teacher_ids = [self.partner.get(pair_id, pair_id) for pair_id in batch.pair_ids]
        teacher_batch = batch
        if self.partner:
            layout = "plain" if batch.attention_map is None else "packed"
            teacher_batch = lay_out([self.items[k] for k in teacher_ids], layout, self.pad_id).to(preference.device)
        with torch.no_grad():
            taught = self.teacher.to(preference.device)(teacher_batch).attention
        grid = part_widths([self.items[k] for k in (*batch.pair_ids, *teacher_ids)])
        distance = torch.zeros_like(preference)
        for student_layer, teacher_layer in self.layers:
            student = self._attention(output.attention[student_layer], batch, batch.pair_ids, grid)
            teacher = self._attention(taught[teacher_layer], teacher_batch, teacher_ids, grid)
            distance = distance + used_map_kl(student, teacher) / len(self.layers)
        terms = {"preference_loss": preference, "attention_distance": distance}
        return Loss(preference + self.settings["weight"] * distance, terms)

    def _attention(
        self, attention: LayerAttention, batch: SequenceBatch, pair_ids: Sequence[str], grid: tuple[int, int]
    ) -> StudentAttention:
        """The attention of some pairs; every token is compared, also those of the chat template.

        Args:
            grid: lengths of prompts and of responses with padding, the same for student and teacher.
        """
        items = [self.items[pair_id] for pair_id in pair_ids]
        segment = token_segments(items)
        regrouped = pair_attention(attention, batch, items, segment=segment, group=segment)
        widths = part_widths(items)
        segment = _padded(regrouped.segment, widths, grid, axis=1, value=-1)
        return replace(
            regrouped,
            query=_padded(regrouped.query, widths, grid, axis=2, value=0),
            key=_padded(regrouped.key, widths, grid, axis=2, value=0),
            segment=segment,
            group=segment,
        )


def _load_teacher(name: str, inputs: Inputs) -> RewardModel:
    """The teacher; its head is not used.

    Raises:
        UserError: no such model, or its token ids mean other tokens than the student's.
    """
    from transformers import AutoModelForSequenceClassification

    assert inputs.backbone is not None
    backbone = inputs.config["backbone"]
    autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
    with outside_of_zero3():
        if name == START:
            return RewardModel(load_classifier(inputs.backbone, backbone, inputs.seed), autocast)
        folder = source_folder(name)
        setting = "attention_transfer.teacher"
        check_token_ids(name, pretrained_tokenizer(folder, setting=setting), inputs.reader.tokenizer, setting=setting)
        classifier, _ = pretrained_model(
            AutoModelForSequenceClassification, folder, setting=setting, new_head=True, num_labels=1
        )
        return RewardModel(classifier, autocast)


def _layers(settings: dict[str, Any], student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
    """Numbers from 0 of the layers that are compared, (student, teacher).

    Raises:
        UserError: a layer that does not exist, or not as many of one model as of the other.
    """
    numbers = []
    for side, depth in (("student", student_depth), ("teacher", teacher_depth)):
        named = settings[f"{side}_layers"]
        layers = list(range(1, depth + 1)) if named == ALL else named
        numbers.append(layer_numbers(layers, depth, f"attention_transfer.{side}_layers"))
    if len(numbers[0]) != len(numbers[1]):
        raise UserError(
            f"attention_transfer: {len(numbers[0])} student_layers and {len(numbers[1])} teacher_layers. Name as many "
            "of one as of the other."
        )
    return list(zip(*numbers, strict=True))


def _partners(items: dict[str, TokenizedItem]) -> dict[str, str]:
    """For each pair another one, of the most similar lengths, so that little of its maps has to be cut."""
    order = sorted(items, key=lambda pair_id: (items[pair_id].shared, *items[pair_id].lengths, pair_id))
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def _padded(x: torch.Tensor, widths: tuple[int, int], target: tuple[int, int], axis: int, value: float) -> torch.Tensor:
    """Prompt, chosen and rejected along an axis (counted from the end) padded from some lengths to others."""
    prompt, response = widths
    parts = x.split([prompt, response, response], -axis)
    longest = (target[0], target[1], target[1])
    before = (0, 0) * (axis - 1)
    return torch.cat(
        [
            F.pad(part, (*before, 0, length - part.shape[-axis]), value=value)
            for part, length in zip(parts, longest, strict=True)
        ],
        -axis,
    )
