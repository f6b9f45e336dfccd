"""Interaction Distillation (our reconstruction): the student learns to attend like a teacher that reads both responses.

    loss = -log sigmoid(r_chosen - r_rejected) + weight(t) * mean over layers of alignment(student, teacher)

Idea: Zang et al. 2025 (arXiv 2508.02618).  We know only the abstract: a bidirectional teacher reads prompt, chosen and
rejected together and passes its attention pattern to a decoder-only, Siamese reward model.  The rest is our choice,
and each choice is a setting of the card:

* The student's *virtual* map softmax(Q K^T / sqrt(d)) over the joint sequence, without the causal mask (after VIRT,
  arXiv 2112.04195), is aligned.  It is never used in the forward pass.
* Rows are compared by KL(teacher || student).
* Tokens of the two tokenizers are aligned by character spans.
* The teacher reads both orders of the responses.

The exported model has no trace of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rm_methods.errors import UserError
from rm_methods.interaction import objectives
from rm_methods.interaction.objectives import StudentAttention, TeacherAttention
from rm_methods.interaction.student_teacher import UNIFORM, LayerChoice, StudentTeacher
from rm_methods.interaction.teacher_maps import JointTeacher, TeacherMaps
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.reward_models.attention_capture import LayerAttention
from rm_methods.reward_models.layouts import PairBatch

RELATIONS = "relations"  # the objective that reads the teacher's vectors instead of its maps


class Method(TrainedMethod):
    """Bradley-Terry and an alignment loss; with weight 0 it is Bradley-Terry, to the bit.

    Attributes:
        student_teacher: the two attentions that are compared; None with weight 0.
        positions: position of each training pair, by its id.
    """

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.student_teacher: StudentTeacher | None = None
        self.positions: dict[str, int] = {}

    def build(self, model, inputs):
        settings = self.settings
        if not settings["weight"]:
            return
        choice = LayerChoice.from_settings(settings)
        layers = choice.student(model.config.num_hidden_layers)
        teacher = None
        if settings["teacher"] != UNIFORM:
            teacher = choice.teacher(inputs.required["teacher"][0], _max_length(inputs), _precision(inputs))
        if settings["objective"] == RELATIONS:
            _check_relations(settings, model.config, teacher)
        self.student_teacher = StudentTeacher(
            layers,
            teacher,
            inputs.items,
            inputs.reader,
            shuffle=settings["shuffle"],
            cache=self._cache(inputs.work_folder),
        )
        if not any(self.student_teacher.pairs):
            raise UserError(
                "interaction_distillation: no training pair can be aligned with the teacher. In each, truncation left "
                "the responses with different prompts, or the conversation has tools or tool calls. Use another method."
            )
        self.positions = {pair.pair_id: position for position, pair in enumerate(inputs.pairs)}
        model.capture_attention(layers)

    def _cache(self, work_folder: Path) -> Path | None:
        """Folder for the teacher's maps, shared by the experiment's runs; None computes them in every step."""
        if self.settings["online"] or self.settings["objective"] == RELATIONS:
            return None
        return work_folder.parent / "teacher_maps"

    def loss(self, model, batch):
        output = model(batch)
        preference = bradley_terry_loss(output.rewards, batch.margin)
        if self.student_teacher is None:
            return Loss(preference)
        alignment = self._alignment_loss(self.student_teacher, output.attention, batch, preference.device)
        warmup = self.settings["warmup_fraction"]
        progress = min(1.0, batch.progress / warmup) if warmup else 1.0
        weight = self.settings["weight"] * progress
        return Loss(preference + weight * alignment, {"preference_loss": preference, "alignment_loss": alignment})

    def _alignment_loss(
        self,
        student_teacher: StudentTeacher,
        attention: dict[int, LayerAttention],
        batch: PairBatch,
        device: torch.device,
    ) -> torch.Tensor:
        """Mean of the objective over the layers, fp32 [pairs]; 0 for pairs that could not be aligned."""
        positions = [self.positions[pair_id] for pair_id in batch.pair_ids]
        distance = self._relations if self.settings["objective"] == RELATIONS else self._map_distance
        # Student layers that share a layer of the teacher share one reading of it.
        distance_from = {
            maps: distance(student_teacher, maps, positions, device) for maps in student_teacher.distinct_maps
        }
        total = torch.zeros(len(positions), device=device)
        for layer, maps in zip(student_teacher.layers, student_teacher.maps, strict=True):
            student = student_teacher.student_attention(
                attention[layer], batch, positions, with_values=self.settings["objective"] == RELATIONS
            )
            total = total + distance_from[maps](student) / len(student_teacher.layers)
        return total

    def _map_distance(
        self, student_teacher: StudentTeacher, maps: TeacherMaps, positions: Sequence[int], device: torch.device
    ) -> Callable[[StudentAttention], torch.Tensor]:
        """The distance [pairs] of a student from the teacher's maps of one layer."""
        teacher = maps.batch(positions, device)
        return lambda student: self._objective(student, teacher)

    def _objective(self, student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
        """The objective that the settings name, [pairs]."""
        settings = self.settings
        row_kl = objectives.row_kl if settings["heads"] == "each" else objectives.averaged_row_kl
        match settings["objective"]:
            case "causal_kl":
                return row_kl(student, teacher, causal=True)
            case "received_mass":
                return objectives.received_mass(student, teacher)
            case "readout":
                return objectives.readout(student, teacher)
            case "virt":
                return objectives.virt(student, teacher)
        if settings["scope"] != "separate":
            return row_kl(student, teacher, settings["scope"])
        intra = row_kl(student, teacher, "intra")
        inter = row_kl(student, teacher, "inter")
        return settings["intra_weight"] * intra + settings["inter_weight"] * inter

    def _relations(
        self, student_teacher: StudentTeacher, maps: TeacherMaps, positions: Sequence[int], device: torch.device
    ) -> Callable[[StudentAttention], torch.Tensor]:
        """The relational distance [pairs] of a student from the teacher's vectors of one layer."""
        aligned = [b for b, position in enumerate(positions) if student_teacher.pairs[position] is not None]
        index = torch.tensor(aligned, dtype=torch.int64, device=device)
        orders = []
        if aligned:
            orders = student_teacher.teacher_vectors(maps, [positions[b] for b in aligned], device)

        def distance(student: StudentAttention) -> torch.Tensor:
            total = student.query.new_zeros(len(positions))
            for teacher in orders:
                part = objectives.relations(student.select(index), teacher, self.settings["relation_heads"])
                total = total.index_add(0, index, part / len(orders))
            return total

        return distance

    def report(self):
        """Counts of the alignment, the teacher's attention outside the text, and the tokens it read for stored maps."""
        return {} if self.student_teacher is None else self.student_teacher.report()


def _check_relations(settings: dict[str, Any], student_config, teacher: JointTeacher | None) -> None:
    """Raise UserError unless this teacher has the vectors that relations compare."""
    if teacher is None:
        raise UserError(
            "interaction_distillation: objective 'relations' needs a teacher with queries and keys, not 'uniform'."
        )
    if teacher.heads is not None:
        raise UserError(
            "interaction_distillation.teacher_heads: objective 'relations' reads the vectors of all heads. Use 'all'."
        )
    heads = settings["relation_heads"]
    widths = {"student": attention_width(student_config), "teacher": attention_width(teacher.model.config)}
    indivisible = {side: width for side, width in widths.items() if width % heads}
    if indivisible:
        raise UserError(
            f"interaction_distillation.relation_heads: {heads} does not divide the attention width of {indivisible}."
        )


def attention_width(config) -> int:
    """Numbers in the queries of all heads; not always the hidden size."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head_size


def _max_length(inputs) -> int:
    return inputs.config["training"]["max_length"] or inputs.config["backbone"]["max_length"]


def _precision(inputs) -> str:
    return inputs.config["training"]["precision"]
