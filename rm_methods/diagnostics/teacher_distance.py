"""How far a reward model's attention is from a joint teacher's, before and after its training, and a page of maps to look at.

"Before" is the model that training started from.  The distances are the alignment objectives of Interaction Distillation, whatever the
run's own method was, on pairs that were not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rm_methods.benchmarks.item import read_items
from rm_methods.diagnostics.pairs import DiagnosedPair, select_pairs
from rm_methods.diagnostics.records import DISTANCE_COLUMNS, write_rows
from rm_methods.errors import UserError
from rm_methods.files import written_atomically
from rm_methods.interaction import objectives
from rm_methods.interaction.objectives import StudentAttention, TeacherAttention
from rm_methods.methods.contract import Inputs
from rm_methods.methods.interaction_distillation import Method
from rm_methods.methods.registry import load_card
from rm_methods.preferences.pair import PreferencePair, make_pair
from rm_methods.reward_models.joint_reader import pair_text
from rm_methods.reward_models.layouts import PairBatch, lay_out
from rm_methods.scoring.scorer import load_scorer, scoring_settings

DISTANCES = ("joint", "intra", "inter", "causal", "received")
_EXAMPLES = 2  # pairs on the page of maps


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
        One line a teacher and distance: medians before and after.

    Raises:
        UserError: no pair has a joint text.
    """
    scoring = scoring_settings(config)
    selected = []
    for name, path in benchmarks:
        selected += select_pairs(name, read_items(path), config["diagnostics"]["limit"])[0]
    scorer = load_scorer(folders["model"], replace(scoring, threads=threads))
    device = next(scorer.model.parameters()).device
    before = Method({}).model([], scorer.tokenizer, _inputs(config, seed, folders, {})).to(device).eval()
    pairs = [_preference_pair(pair) for pair in selected]
    rows, lines = [], []
    for k, (teacher, folder) in enumerate(teachers.items()):
        settings = _settings(config, variant, teacher)
        found, examples = {}, {}
        for moment, model in (("before", before), ("after", scorer.model)):
            method = Method(settings)
            items = scorer.tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
            inputs = _inputs(config, seed, folders, {"teacher": [folder]})
            method.build(model, replace(inputs, total_steps=1, pairs=pairs, items=items, reader=scorer.tokenizer))
            if not any(method.pairs):
                raise UserError(
                    f"{variant} seed {seed}: none of the {len(pairs)} pairs has a joint text, because their prompts were cut differently "
                    "for the two responses. Raise backbone.max_length or diagnostics.limit."
                )
            found[moment], examples[moment] = _measure(method, model, pairs, items, scoring.tokens_per_batch)
        for index, pair in enumerate(selected):
            identity = {
                "benchmark": pair.benchmark,
                "subset": pair.item.subset,
                "item_id": pair.item.item_id,
                "group": pair.item.group,
            }
            for name in DISTANCES:
                values = {moment: float(found[moment][name][index]) for moment in found}
                rows.append(identity | {"teacher": teacher, "distance": name} | values)
        for name in DISTANCES:
            lines.append(
                f"{teacher} {name}: {np.nanmedian(found['before'][name]):.3f} -> {np.nanmedian(found['after'][name]):.3f}"
            )
        if k == 0:
            shown = _example_maps(scorer.tokenizer, items, examples)
            _write_page(shown, f"{variant} seed {seed}", teacher, out / "teacher_maps.png")
    write_rows(rows, DISTANCE_COLUMNS, out / "teacher.parquet")
    return "\n".join(lines)


def _settings(config: dict[str, Any], variant: str, teacher: str) -> dict[str, Any]:
    """Settings of Interaction Distillation to measure with: the variant's own layers where it has some."""
    own = config["methods"][variant]["settings"]
    layers = {key: own[key] for key in ("student_layers", "teacher_layers", "teacher_heads") if key in own}
    return load_card("interaction_distillation").defaults() | layers | {"teacher": teacher, "online": True}


def _inputs(
    config: dict[str, Any], seed: int, folders: Mapping[str, Path], required: Mapping[str, list[Path]]
) -> Inputs:
    # The run's model is loaded with the precision of scoring; the one before training must have the same.
    sections = {
        "backbone": config["backbone"],
        "training": config["training"] | {"precision": config["scoring"]["precision"]},
    }
    return Inputs(seed, Path(folders["model"]).parent, "diagnose", sections, folders["backbone"], required)


def _preference_pair(pair: DiagnosedPair) -> PreferencePair:
    chosen, rejected = pair.item.responses[pair.better], pair.item.responses[1 - pair.better]
    made = make_pair(pair.item.prompt, chosen, rejected, split="test", source=pair.benchmark)
    return replace(made, pair_id=f"{pair.benchmark}/{pair.item.item_id}")


@torch.no_grad()
def _measure(method: Method, model, pairs: Sequence[PreferencePair], items: Sequence, budget: int):
    """Distances by name, float64 [pairs] (NaN where there is no joint text), and student and teacher maps of the shortest pairs."""
    found = {name: np.full(len(pairs), np.nan) for name in DISTANCES}
    order = sorted(range(len(pairs)), key=lambda i: -sum(items[i].lengths))
    shortest, maps = set(_shortest(method, items)), {}
    device, start = next(model.parameters()).device, 0
    while start < len(order):
        places = order[start : start + max(1, budget // (2 * sum(items[order[start]].lengths)))]
        start += len(places)
        batch = PairBatch(
            **vars(lay_out([items[i] for i in places], "packed", 0)), pair_ids=tuple(pairs[i].pair_id for i in places)
        )
        output = model(batch.to(device))
        values = dict.fromkeys(DISTANCES, 0.0)
        for layer, teacher_maps in zip(method.layers, method.maps, strict=True):
            student = method.student_attention(output.attention[layer], batch, places)
            teacher = teacher_maps.batch(places, device)
            for name, value in _distances(student, teacher).items():
                values[name] = values[name] + value.double().cpu().numpy() / len(method.layers)
        for k, i in enumerate(places):
            if method.pairs[i] is not None:
                for name in DISTANCES:
                    found[name][i] = values[name][k]
            if i in shortest:
                size = len(method.pairs[i].segment)
                maps[i] = (
                    teacher.map[k, :size, :size].cpu().numpy(),
                    _grouped_student_map(student, k, size),
                    method.pairs[i],
                )
    return found, maps


def _distances(student: StudentAttention, teacher: TeacherAttention) -> dict[str, torch.Tensor]:
    found = {scope: objectives.row_kl(student, teacher, scope) for scope in ("joint", "intra", "inter")}
    return found | {
        "causal": objectives.row_kl(student, teacher, causal=True),
        "received": objectives.received_mass(student, teacher),
    }


def _shortest(method: Method, items: Sequence) -> list[int]:
    aligned = [i for i, pair in enumerate(method.pairs) if pair is not None]
    return sorted(aligned, key=lambda i: sum(items[i].lengths))[:_EXAMPLES]


def _grouped_student_map(student: StudentAttention, k: int, groups: int) -> np.ndarray:
    """The head-averaged virtual map of pair k over groups: mean over a group's rows, sum over its columns."""
    group = student.group[k]
    scores_hLL = student.query[k] @ student.key[k].transpose(1, 2) * student.scaling
    map_LL = scores_hLL.masked_fill(group < 0, float("-inf")).softmax(-1).mean(0)
    member_GL = (torch.arange(groups, device=group.device)[:, None] == group).to(map_LL.dtype)
    return (member_GL / member_GL.sum(1, keepdim=True).clamp(min=1) @ map_LL @ member_GL.T).cpu().numpy()


def _example_maps(tokenizer, items: Sequence, maps: Mapping[str, dict]) -> list[ExampleMaps]:
    shown = []
    for i, (teacher, before, pair) in maps["before"].items():
        text = pair_text(tokenizer, items[i])
        words = [""] * len(pair.segment)
        for group, kind, (start, end) in zip(
            pair.student, text.student.segment, text.student.spans.tolist(), strict=True
        ):
            if group >= 0:
                words[group] += text.segments[kind][start:end]
        shown.append(ExampleMaps([word.strip() for word in words], pair.segment, teacher, before, maps["after"][i][1]))
    return shown


def _write_page(examples: Sequence[ExampleMaps], title: str, teacher: str, target: Path) -> None:
    """Three maps a pair: teacher, student before, student after; one colour scale a pair, lines between the segments."""
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
            places = range(len(example.words))
            axis.set_xticks(places, example.words, rotation=90, fontsize=4)
            axis.set_yticks(places, example.words if axis is row[0] else [], fontsize=4)
            axis.tick_params(length=0, pad=1)
            axis.set_title(name, fontsize=9)
        figure.colorbar(image, ax=row, fraction=0.02, pad=0.01).set_label("attention", fontsize=7)
    figure.suptitle(f"{title}: prompt | chosen | rejected; rows attend to columns", fontsize=9)
    with written_atomically(target) as path:
        figure.savefig(path, format="png", dpi=200)
