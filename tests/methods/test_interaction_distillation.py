from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from rm_methods.errors import ConfigError, UserError
from rm_methods.interaction import objectives
from rm_methods.methods.contract import Inputs
from rm_methods.methods.interaction_distillation import attention_width
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.preferences.pair import make_pair
from rm_methods.preferences.tool_calls import with_records
from rm_methods.reward_models.joint_model import JointModel
from rm_methods.reward_models.layouts import PairBatch, lay_out
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config

TEACHER = {"masked_language_epochs": 1, "epochs": 1}


def train_variant(prepared, folder, variant, methods, required=None):
    config = experiment_config(folder, methods=methods)
    out = folder / variant
    files = RunFiles(
        prepared[0],
        prepared[1],
        out / "model",
        out / "metrics.jsonl",
        out / "summary.json",
        folder / "work",
        required or {},
    )
    return train(config, variant, 0, files), out / "model"


@pytest.fixture(scope="module")
def teachers(prepared, tmp_path_factory):
    """Model folders of both kinds of teacher."""
    folder = tmp_path_factory.mktemp("teachers")
    methods = {"joint_encoder": TEACHER, "joint_bidirectional": TEACHER}
    return {name: train_variant(prepared, folder, name, methods)[1] for name in methods}


def made(prepared, tokenizer, pairs, folder, name="interaction_distillation", folder_of_teacher=None, **settings):
    """(method, model, batch) as training would make them."""
    method = load_method(name, load_method_card(name).defaults() | settings)
    config = {"backbone": prepared[2]["backbone"], "training": prepared[2]["training"]}
    items = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    required = {"teacher": [folder_of_teacher]} if folder_of_teacher else {}
    inputs = Inputs(
        seed=0,
        work_folder=folder / "work" / "run",
        label=name,
        config=config,
        backbone=prepared[1],
        required=required,
        pairs=pairs,
        items=items,
        reader=tokenizer,
    )
    model = method.model(pairs, tokenizer, inputs)
    method.build(model, inputs)
    batch = PairBatch(
        **vars(lay_out(items, "packed", 0)),
        margin=torch.zeros(len(pairs)),
        weight=torch.ones(len(pairs)),
        pair_ids=tuple(p.pair_id for p in pairs),
        progress=0.5,
    )
    return method, model, batch


def gradients(method, model, batch):
    model.zero_grad()
    method.loss(model, batch).per_pair.mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_weight_0_is_bradley_terry_to_the_bit(prepared, tokenizer, pairs, tmp_path):
    actual = gradients(*made(prepared, tokenizer, pairs[:6], tmp_path, weight=0.0))
    expected = gradients(*made(prepared, tokenizer, pairs[:6], tmp_path, "bradley_terry"))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_weight_rises_from_0(prepared, tokenizer, pairs, tmp_path, teachers):
    settings = {"weight": 2.0, "warmup_fraction": 0.4}
    method, model, batch = made(
        prepared, tokenizer, pairs[:6], tmp_path, folder_of_teacher=teachers["joint_encoder"], **settings
    )
    losses = {progress: method.loss(model, replace(batch, progress=progress)) for progress in (0.0, 0.1, 0.4, 0.9)}
    alignment = losses[0.9].terms["alignment_loss"]
    assert (alignment > 1e-3).all()
    for progress, weight in ((0.0, 0.0), (0.1, 0.5), (0.4, 2.0), (0.9, 2.0)):
        expected = losses[progress].terms["preference_loss"] + weight * alignment
        torch.testing.assert_close(losses[progress].per_pair, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("teacher", ["joint_encoder", "joint_bidirectional"])
def test_cached_and_online_maps_give_the_same_loss_and_gradients(
    teacher, prepared, tokenizer, pairs, tmp_path, teachers
):
    folder = teachers[teacher]
    actual = [
        made(prepared, tokenizer, pairs[:6], tmp_path, folder_of_teacher=folder, online=online)
        for online in (False, True)
    ]
    losses = [method.loss(model, batch).per_pair for method, model, batch in actual]
    torch.testing.assert_close(losses[0], losses[1], atol=2e-4, rtol=0)
    mine, other = (gradients(*each) for each in actual)
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], atol=1e-4, rtol=1e-3)
    reports = [method.report() for method, _, _ in actual]
    assert all(report["teacher_attention_outside_text"] > 0 for report in reports)
    assert reports[0]["teacher_tokens"] > 0
    assert "teacher_tokens" not in reports[1]
    assert len(list((tmp_path / "work" / "teacher_maps").glob("*/maps.npy"))) == 1
    # Once stored, the teacher and its view of the pairs are given back.
    assert actual[0][0].student_teacher.teacher is None
    assert all(not pair.rows for pair in actual[0][0].student_teacher.pairs)


VARIANTS = [
    {"objective": "causal_kl"},
    {"objective": "received_mass"},
    {"objective": "readout"},
    {"objective": "virt"},
    {"objective": "relations"},
    {"scope": "intra"},
    {"scope": "inter"},
    {"scope": "separate", "intra_weight": 0.5, "inter_weight": 2.0},
    {"heads": "averaged"},
    {"objective": "causal_kl", "heads": "averaged"},
    {"shuffle": "rows"},
    {"student_layers": [1, 2], "teacher_layers": [-1, 1]},
    {"teacher": "uniform"},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: " ".join(map(str, s.values())))
def test_every_variant_pulls_the_queries_and_keys_of_its_layer(
    settings, prepared, tokenizer, pairs, tmp_path, teachers
):
    teacher = None if "teacher" in settings else teachers["joint_encoder"]
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, folder_of_teacher=teacher, **settings)
    model.zero_grad()
    alignment = method.loss(model, batch).terms["alignment_loss"]
    assert torch.isfinite(alignment).all()
    assert (alignment > 0).all()
    alignment.sum().backward()
    for layer in settings.get("student_layers", [1]):
        attention = model.backbone.layers[layer - 1].self_attn
        assert attention.q_proj.weight.grad.abs().max() > 0 < attention.k_proj.weight.grad.abs().max()
    assert model.classifier.score.weight.grad is None


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({"objective": "causal_kl"}, partial(objectives.row_kl, causal=True)),
        ({"objective": "causal_kl", "heads": "averaged"}, partial(objectives.averaged_row_kl, causal=True)),
        ({"objective": "received_mass"}, objectives.received_mass),
        ({"objective": "readout"}, objectives.readout),
        ({"objective": "virt"}, objectives.virt),
        ({"scope": "intra"}, partial(objectives.row_kl, scope="intra")),
        ({"heads": "averaged", "scope": "inter"}, partial(objectives.averaged_row_kl, scope="inter")),
        ({"shuffle": "rows"}, objectives.row_kl),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_settings_name_the_objective(settings, objective, prepared, tokenizer, pairs, tmp_path, teachers):
    folder = teachers["joint_encoder"]
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, folder_of_teacher=folder, **settings)
    actual = method.loss(model, batch).terms["alignment_loss"]
    (maps,) = method.student_teacher.maps
    student = method.student_teacher.student_attention(
        model(batch).attention[method.student_teacher.layers[0]], batch, list(range(6))
    )
    torch.testing.assert_close(actual, objective(student, maps.batch(list(range(6)), "cpu")))
    assert maps.shuffle == settings.get("shuffle", "none")
    plain = made(prepared, tokenizer, pairs[:6], tmp_path, folder_of_teacher=folder)
    assert (actual - plain[0].loss(*plain[1:]).terms["alignment_loss"]).abs().max() > 1e-5


def test_two_layers_are_the_mean_of_each_alone(prepared, tokenizer, pairs, tmp_path, teachers):
    def alignment(student_layers, teacher_layers):
        settings = {"student_layers": student_layers, "teacher_layers": teacher_layers}
        method, model, batch = made(
            prepared, tokenizer, pairs[:6], tmp_path, folder_of_teacher=teachers["joint_encoder"], **settings
        )
        return method.loss(model, batch).terms["alignment_loss"]

    together = alignment([1, 2], [-1, 1])
    torch.testing.assert_close(together, (alignment([1], [-1]) + alignment([2], [1])) / 2)
    assert (alignment([1], [-1]) - alignment([1], [1])).abs().max() > 1e-5


def test_the_heads_of_a_teacher_average_to_its_map(prepared, tokenizer, pairs, tmp_path, teachers):
    def teacher_maps(heads):
        method, _, _ = made(
            prepared, tokenizer, pairs[:6], tmp_path, folder_of_teacher=teachers["joint_encoder"], teacher_heads=heads
        )
        return method.student_teacher.maps[0].batch(list(range(6)), "cpu").map

    alone = [teacher_maps([head]) for head in (1, 2)]
    torch.testing.assert_close(teacher_maps([1, 2]), (alone[0] + alone[1]) / 2, atol=2e-3, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 0.01


@pytest.mark.parametrize("settings", [{"online": True}, {"objective": "relations"}], ids=str)
def test_layers_that_share_a_layer_of_the_teacher_read_it_once(
    settings, prepared, tokenizer, pairs, tmp_path, teachers, monkeypatch
):
    calls = []
    forward = JointModel.forward
    monkeypatch.setattr(JointModel, "forward", lambda *arguments: calls.append(1) or forward(*arguments))
    method, model, batch = made(
        prepared,
        tokenizer,
        pairs[:6],
        tmp_path,
        folder_of_teacher=teachers["joint_encoder"],
        student_layers=[1, 2],
        **settings,
    )
    method.loss(model, batch)
    assert len(calls) == 1


def test_the_read_tokens_are_those_that_the_rewards_are_read_from(prepared, tokenizer, pairs, tmp_path):
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, teacher="uniform", objective="readout")
    student = method.student_teacher.student_attention(
        model(batch).attention[method.student_teacher.layers[0]], batch, list(range(6))
    )
    flat = model(batch).attention[method.student_teacher.layers[0]].query[0]
    for pair in range(6):
        for k in range(2):
            expected = flat[:, batch.read_column[2 * pair + k]]
            torch.testing.assert_close(student.query[pair, :, student.read[pair, k]], expected)


def test_separate_is_the_weighted_sum_of_intra_and_inter(prepared, tokenizer, pairs, tmp_path, teachers):
    actual = {}
    for scope in ("intra", "inter", "separate"):
        settings = {"scope": scope, "intra_weight": 0.5, "inter_weight": 2.0}
        method, model, batch = made(
            prepared, tokenizer, pairs[:6], tmp_path, folder_of_teacher=teachers["joint_encoder"], **settings
        )
        actual[scope] = method.loss(model, batch).terms["alignment_loss"]
    torch.testing.assert_close(actual["separate"], 0.5 * actual["intra"] + 2.0 * actual["inter"])


def test_pairs_without_joint_text_count_but_are_not_aligned(prepared, tokenizer, pairs, tmp_path, teachers):
    short = type(tokenizer)(tokenizer.tokenizer, 64)
    prompt = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 4}]
    odd = replace(pairs[0], pair_id="odd", prompt=prompt, chosen="yes", rejected="no no no no no no no no no no no")
    for settings in ({}, {"objective": "relations"}, {"objective": "received_mass"}, {"objective": "readout"}):
        method, model, batch = made(
            prepared, short, [odd, pairs[1]], tmp_path, folder_of_teacher=teachers["joint_encoder"], **settings
        )
        loss = method.loss(model, batch)
        assert loss.terms["alignment_loss"][0] == 0 < loss.terms["alignment_loss"][1]
        loss.per_pair.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert method.report()["pairs_without_alignment"] == 1


def test_the_exported_model_has_no_trace_of_the_teacher(prepared, tmp_path, teachers):
    import shutil

    methods = {"bradley_terry": {}, "interaction_distillation": {"teacher": "joint_encoder"}, "joint_encoder": TEACHER}
    copy = tmp_path / "teacher"
    shutil.copytree(teachers["joint_encoder"].parent, copy)
    summary, model = train_variant(
        prepared, tmp_path, "interaction_distillation", methods, {"teacher": [copy / "model"]}
    )
    _, plain = train_variant(prepared, tmp_path, "bradley_terry", methods)
    weights, plain_weights = (load_file(folder / "model.safetensors") for folder in (model, plain))
    assert {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in plain_weights.items()}
    assert sorted(p.name for p in model.iterdir()) == sorted(p.name for p in plain.iterdir())
    assert (model / "config.json").read_text() == (plain / "config.json").read_text()
    shutil.rmtree(copy)
    from rm_methods.benchmarks.item import BenchmarkItem
    from rm_methods.scoring.scorer import ScoringSettings, load_scorer

    item = BenchmarkItem("i", "s", [{"role": "user", "content": "paint it red"}], ["It is red.", "It is blue."], 0)
    assert len(load_scorer(model, ScoringSettings(max_length=256, threads=1)).score([item])) == 2
    assert summary["report"]["pairs_without_alignment"] == 0


def test_mistakes_are_explained(prepared, tokenizer, pairs, tmp_path, teachers):
    def build(**settings):
        return made(prepared, tokenizer, pairs[:2], tmp_path, folder_of_teacher=teachers["joint_encoder"], **settings)

    with pytest.raises(UserError, match="student_layers: the model has 2 layers"):
        build(student_layers=[3])
    with pytest.raises(UserError, match=r"teacher_heads: the teacher has \d heads, so \[9\] do not exist"):
        build(teacher_heads=[1, 9])
    with pytest.raises(UserError, match="'relations' reads the vectors of all heads"):
        build(teacher_heads=[1], objective="relations")
    with pytest.raises(UserError, match="2 layers for 1 student layers"):
        build(teacher_layers=[1, 2])
    with pytest.raises(UserError, match="relation_heads: 3 does not divide the attention width of"):
        build(objective="relations", relation_heads=3)
    with pytest.raises(UserError, match="'relations' needs a teacher"):
        build(teacher="uniform", objective="relations")
    with pytest.raises(ConfigError, match="Did you mean 'joint_encoder'"):
        experiment_config(
            tmp_path, methods={"joint_encoder": {}, "interaction_distillation": {"teacher": "joint_encode"}}
        )
    with pytest.raises(ConfigError, match="'bradley_terry' is not a variant of kind 'joint'"):
        experiment_config(
            tmp_path, methods={"bradley_terry": {}, "interaction_distillation": {"teacher": "bradley_terry"}}
        )
    with pytest.raises(UserError, match="Train that variant first"):
        train_variant(
            prepared, tmp_path, "interaction_distillation", {"interaction_distillation": {}, "joint_encoder": {}}
        )


def test_theattention_width_is_that_of_all_heads():
    from transformers import BertConfig, Qwen3Config

    assert attention_width(Qwen3Config(hidden_size=2560, num_attention_heads=32, head_dim=128)) == 4096
    assert attention_width(BertConfig(hidden_size=64, num_attention_heads=4)) == 64


def test_an_encoder_that_is_not_there_is_named_with_its_own_key(prepared, tmp_path):
    methods = {"joint_encoder": {"source": "results/absent/runs/joint_encoder/seed0/model"}}
    with pytest.raises(UserError, match=r"joint_encoder\.source = 'results/absent.*No such folder exists here"):
        train_variant(prepared, tmp_path, "joint_encoder", methods)


def test_training_pairs_of_which_none_can_be_aligned_are_refused(prepared, tokenizer, pairs, tmp_path):
    call = with_records("", [{"name": "paint", "arguments": {}}])
    with_tools = [make_pair(pair.prompt, call, pair.rejected, split="train", source="x") for pair in pairs[:3]]
    with pytest.raises(UserError, match="no training pair can be aligned with the teacher"):
        made(prepared, tokenizer, with_tools, tmp_path, teacher="uniform")
    method, model, batch = made(prepared, tokenizer, [*with_tools, pairs[4]], tmp_path, teacher="uniform")
    alignment = method.loss(model, batch).terms["alignment_loss"]
    assert (alignment[:3] == 0).all()
    assert alignment[3] > 0
