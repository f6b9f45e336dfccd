"""The distance of a reward model's attention from a joint teacher's, before and after training, and a page of maps.

"Before" is the model that training started from.  The distances are the alignment objectives of Interaction
Distillation on held-out pairs, whatever the method of the run was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rm_methods.benchmarks.item import read_items
from rm_methods.diagnostics.attention import packed_model
from rm_methods.diagnostics.pairs import DiagnosedPair, select_pairs
from rm_methods.diagnostics.records import DISTANCE_COLUMNS
from rm_methods.errors import UserError
from rm_methods.files import written_atomically
from rm_methods.interaction import objectives
from rm_methods.interaction.objectives import StudentAttention, TeacherAttention
from rm_methods.interaction.student_teacher import LayerChoice, StudentTeacher
from rm_methods.methods.registry import load_method_card
from rm_methods.parquet import write_rows
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.reward_models.batching import padded_batches
from rm_methods.reward_models.joint_reader import pair_text
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.model import RewardModel
from rm_methods.reward_models.tokenization import ChatTokenizer
from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings, load_scorer, scoring_settings

DISTANCES = ("joint", "intra", "inter", "causal", "received")
_EXAMPLES = 2  # pairs on the page of maps


@dataclass(frozen=True)
class GroupMaps:
    """Maps of one pair over groups, fp32 [G, G] each."""

    teacher: np.ndarray
    student: np.ndarray


@dataclass(frozen=True)
class ExampleMaps:
    """Maps of one pair over groups, fp32 [G, G] each.

    Attributes:
        words: text of each group.
        segment: int64 [G].
    """

    words: list[str]
    segment: np.ndarray
    teacher: np.ndarray
    before: np.ndarray
    after: np.ndarray


def diagnose_teacher_distance(
    config: dict[str, Any],
    variant: str,
    seed: int,
    benchmarks: Sequence[tuple[str, Path]],
    folders: Mapping[str, Path],
    teachers: Mapping[str, Path],
    out: Path,
    threads: int = 0,
) -> str:
    """Write teacher.parquet and, for the first teacher, teacher_maps.png.

    Args:
        benchmarks: (name, items file) of each.
        folders: `model` (the exported run) and `backbone` (the prepared backbone).
        teachers: model folders of joint variants, by variant.

    Returns:
        One line per teacher and distance: medians before and after.

    Raises:
        UserError: no pair has a joint text, the run is not a single model, or it is not exact in packed rows.
    """
    scoring = scoring_settings(config)
    pairs: list[DiagnosedPair] = []
    for name, path in benchmarks:
        pairs += select_pairs(name, read_items(path), config["diagnostics"]["limit"])[0]
    after, tokenizer = _trained(folders["model"], replace(scoring, threads=threads))
    items = tokenizer.encode((pair.item.prompt, _chosen_and_rejected(pair)) for pair in pairs)
    models = {"before": _start_of_training(config, seed, folders["backbone"], after), "after": after}
    for model in models.values():
        packed_model(model)
    # In bf16 the rounding depends on the batch, so a pair gets a forward by itself.
    tokens_per_batch = 0 if scoring.one_text_per_forward else scoring.tokens_per_batch
    rows = []
    lines = []
    for teacher, folder in teachers.items():
        choice = _layer_choice(config, variant)
        student_teacher = StudentTeacher(
            choice.student(after.config.num_hidden_layers),
            choice.teacher(folder, _max_length(config), scoring.precision),
            items,
            tokenizer,
        )
        if not any(student_teacher.pairs):
            raise UserError(
                f"{variant} seed {seed}: none of the {len(pairs)} pairs has a joint text, because their prompts were "
                "cut differently for the two responses. Raise backbone.max_length or diagnostics.limit."
            )
        distances = {}
        maps = {}
        for moment, model in models.items():
            distances[moment], maps[moment] = _measure(student_teacher, model, tokens_per_batch)
        rows += _rows(pairs, teacher, distances)
        for name in DISTANCES:
            medians = [np.nanmedian(values[name]) for values in distances.values()]
            lines.append(f"{teacher} {name}: {medians[0]:.3f} -> {medians[1]:.3f}")
        if teacher == next(iter(teachers)):
            examples = _example_maps(tokenizer, student_teacher, maps)
            _write_page(examples, f"{variant} seed {seed}", teacher, out / "teacher_maps.png")
    write_rows(rows, DISTANCE_COLUMNS, out / "teacher.parquet")
    return "\n".join(lines)


def _layer_choice(config: dict[str, Any], variant: str) -> LayerChoice:
    """The layers to compare: those of the variant's settings if it has them, otherwise the method's defaults."""
    defaults = load_method_card("interaction_distillation").defaults()
    settings = config["methods"][variant]["settings"]
    return LayerChoice.from_settings(defaults | {name: settings[name] for name in defaults if name in settings})


def _max_length(config: dict[str, Any]) -> int:
    return config["training"]["max_length"] or config["backbone"]["max_length"]


def _trained(folder: Path, settings: ScoringSettings) -> tuple[RewardModel, ChatTokenizer]:
    """The reward model of the run, and its tokenizer."""
    scorer = load_scorer(folder, settings)
    if isinstance(scorer, RewardModelScorer):
        model = scorer.model
        tokenizer = scorer.tokenizer
        if isinstance(model, RewardModel) and isinstance(tokenizer, ChatTokenizer):
            return model, tokenizer
    raise UserError(f"{folder}: has no attention to compare with a teacher's. Give the folder of one reward model.")


def _start_of_training(config: dict[str, Any], seed: int, backbone: Path, trained: RewardModel) -> RewardModel:
    """The model that training started from, on the device and with the precision of the trained one."""
    autocast = torch.bfloat16 if config["scoring"]["precision"] == "bf16" else None
    model = RewardModel(load_classifier(backbone, config["backbone"], seed), autocast)
    return model.to(next(trained.parameters()).device).eval()


def _chosen_and_rejected(pair: DiagnosedPair) -> tuple[str, str]:
    return pair.item.responses[pair.better], pair.item.responses[1 - pair.better]


def _rows(
    pairs: Sequence[DiagnosedPair], teacher: str, distances: Mapping[str, Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Rows of teacher.parquet: one per pair and distance.

    Args:
        distances: by moment ("before", "after") and name, float64 [pairs].
    """
    rows = []
    for index, pair in enumerate(pairs):
        for name in DISTANCES:
            row = {
                "benchmark": pair.benchmark,
                "subset": pair.item.subset,
                "item_id": pair.item.item_id,
                "group": pair.item.group,
                "teacher": teacher,
                "distance": name,
            }
            rows.append(row | {moment: float(values[name][index]) for moment, values in distances.items()})
    return rows


@torch.no_grad()
def _measure(
    student_teacher: StudentTeacher, model: RewardModel, tokens_per_batch: int
) -> tuple[dict[str, np.ndarray], dict[int, GroupMaps]]:
    """Distances of a model from the teacher, mean over layers, and maps of the shortest pairs.

    Returns:
        Distances by name, float64 [pairs], NaN for a pair without joint text; maps of the last layer by the pair's
        position.
    """
    model.capture_attention(student_teacher.layers)
    items = student_teacher.items
    device = next(model.parameters()).device
    distances = {name: np.full(len(items), np.nan) for name in DISTANCES}
    examples = set(_shortest(student_teacher))
    maps: dict[int, GroupMaps] = {}
    # Half of the tokens that a forward may have, because the maps take memory too.
    for positions in padded_batches([2 * sum(item.lengths) for item in items], tokens_per_batch):
        batch = lay_out([items[position] for position in positions], "packed", 0)
        output = model(batch.to(device))
        totals: dict[str, Any] = dict.fromkeys(DISTANCES, 0.0)
        for layer, teacher_maps in zip(student_teacher.layers, student_teacher.maps, strict=True):
            student = student_teacher.student_attention(output.attention[layer], batch, positions)
            teacher = teacher_maps.batch(positions, device)
            for name, value in _distances(student, teacher).items():
                totals[name] = totals[name] + value.double().cpu().numpy() / len(student_teacher.layers)
        for k, position in enumerate(positions):
            pair = student_teacher.pairs[position]
            if pair is None:
                continue
            for name in DISTANCES:
                distances[name][position] = totals[name][k]
            if position in examples:
                size = len(pair.segment)
                teacher_map = teacher.map[k, :size, :size].cpu().numpy()
                maps[position] = GroupMaps(teacher_map, _grouped_student_map(student, k, size))
    return distances, maps


def _distances(student: StudentAttention, teacher: TeacherAttention) -> dict[str, torch.Tensor]:
    """The distances that are reported, each [B]."""
    return {
        "joint": objectives.row_kl(student, teacher, "joint"),
        "intra": objectives.row_kl(student, teacher, "intra"),
        "inter": objectives.row_kl(student, teacher, "inter"),
        "causal": objectives.row_kl(student, teacher, causal=True),
        "received": objectives.received_mass(student, teacher),
    }


def _shortest(student_teacher: StudentTeacher) -> list[int]:
    """Positions of the pairs that are shown."""
    aligned = [position for position, pair in enumerate(student_teacher.pairs) if pair is not None]
    return sorted(aligned, key=lambda position: sum(student_teacher.items[position].lengths))[:_EXAMPLES]


def _grouped_student_map(student: StudentAttention, k: int, groups: int) -> np.ndarray:
    """The head-averaged virtual map of pair k over groups: mean over a group's rows, sum over its columns."""
    group = student.group[k]
    scores_hLL = student.query[k] @ student.key[k].transpose(1, 2) * student.scaling
    map_LL = scores_hLL.masked_fill(group < 0, float("-inf")).softmax(-1).mean(0)
    member_GL = (torch.arange(groups, device=group.device)[:, None] == group).to(map_LL.dtype)
    return (member_GL / member_GL.sum(1, keepdim=True).clamp(min=1) @ map_LL @ member_GL.T).cpu().numpy()


def _example_maps(
    tokenizer: ChatTokenizer, student_teacher: StudentTeacher, maps: Mapping[str, Mapping[int, GroupMaps]]
) -> list[ExampleMaps]:
    examples = []
    for position, before in maps["before"].items():
        pair = student_teacher.pairs[position]
        text = pair_text(tokenizer, student_teacher.items[position])
        assert pair is not None
        assert text is not None
        words = [""] * len(pair.segment)
        for group, kind, (start, end) in zip(
            pair.student, text.student.segment, text.student.spans.tolist(), strict=True
        ):
            if group >= 0:
                words[group] += text.segments[kind][start:end]
        examples.append(
            ExampleMaps(
                words=[word.strip() for word in words],
                segment=pair.segment,
                teacher=before.teacher,
                before=before.student,
                after=maps["after"][position].student,
            )
        )
    return examples


def _write_page(examples: Sequence[ExampleMaps], title: str, teacher: str, target: Path) -> None:
    """Three maps per pair: teacher, student before, student after; one color scale per pair."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    side = max(3.6, 0.085 * max(len(example.words) for example in examples))
    figure = Figure(figsize=(3 * side + 1.2, len(examples) * side + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(examples), 3, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        maps = (example.teacher, example.before, example.after)
        # Square root of the attention, so that small differences are seen beside the peaks.
        scale = PowerNorm(0.5, vmin=0, vmax=float(np.quantile(np.concatenate([m.ravel() for m in maps]), 0.995)))
        for axis, values, name in zip(
            row, maps, (f"teacher: {teacher}", "student before", "student after"), strict=True
        ):
            image = axis.imshow(values, cmap="viridis", norm=scale, interpolation="nearest")
            for edge in np.flatnonzero(np.diff(example.segment)) + 0.5:
                axis.axhline(edge, color="white", linewidth=0.6)
                axis.axvline(edge, color="white", linewidth=0.6)
            ticks = range(len(example.words))
            axis.set_xticks(ticks, example.words, rotation=90, fontsize=4)
            axis.set_yticks(ticks, example.words if axis is row[0] else [], fontsize=4)
            axis.tick_params(length=0, pad=1)
            axis.set_title(name, fontsize=9)
        figure.colorbar(image, ax=row, fraction=0.02, pad=0.01).set_label("attention", fontsize=7)
    figure.suptitle(f"{title}: prompt | chosen | rejected; rows attend to columns", fontsize=9)
    with written_atomically(target) as path:
        figure.savefig(path, format="png", dpi=200)
