import math

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.interaction import objectives
from rm_methods.interaction.objectives import StudentAttention, used_map_kl
from rm_methods.reward_models.backbones import load_tokenizer, prepare_backbone
from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED
from tests.conftest import experiment_config
from tests.methods.test_interaction_distillation import gradients, made

NAME = "attention_transfer"


def attention(scores, segment):
    """Attention whose scores are given: heads x tokens x tokens; queries are the rows, keys unit vectors."""
    query = torch.tensor(scores, dtype=torch.float64)[None]
    key = torch.eye(query.shape[2], dtype=torch.float64).expand(1, len(scores), -1, -1)
    segment = torch.tensor([segment])
    return StudentAttention(query, key, None, 1.0, segment, segment, torch.tensor([[0, 0]]))


def test_the_distance_by_hand():
    """One token per segment: the prompt sees itself, each response the prompt and itself."""
    segment = [PROMPT, CHOSEN, REJECTED]
    zero = [0.0, 0.0, 0.0]
    # Both heads of the student: even rows.  The teacher looks with 1 head at the prompt: 3/4 and 9/10.
    student = attention([[zero, zero, zero]] * 2, segment)
    teacher = attention([[zero, [math.log(3), 0.0, 0.0], [math.log(9), 5.0, 0.0]]], segment)
    chosen = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    rejected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    expected = torch.tensor([(0 + chosen + rejected) / 3], dtype=torch.float64)
    torch.testing.assert_close(used_map_kl(student, teacher), expected)


def test_heads_are_averaged_before_they_are_compared():
    """Two heads that look at opposite tokens are, on average, an even row."""
    segment = [PROMPT, CHOSEN, REJECTED]
    one, other = [0.0, 0.0, 0.0], [[math.log(3), 0.0, 0.0], [0.0, math.log(3), 0.0]]
    heads = [[one, row, one] for row in other]
    even = attention([[one, one, one]], segment)
    assert used_map_kl(attention(heads, segment), even).item() == pytest.approx(0, abs=1e-12)
    assert used_map_kl(attention(heads[:1], segment), even).item() > 0.04


def made_up(lengths, seed, heads=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    prompt, response = 4, 5
    segment = torch.full((len(lengths), prompt + 2 * response), -1)
    for b, (p, c, r) in enumerate(lengths):
        segment[b, :p] = PROMPT
        segment[b, prompt : prompt + c] = CHOSEN
        segment[b, prompt + response : prompt + response + r] = REJECTED
    query, key = (
        torch.randn(len(lengths), heads, segment.shape[1], 3, generator=generator, dtype=dtype, requires_grad=True)
        for _ in range(2)
    )
    return StudentAttention(query, key, None, 3**-0.5, segment, segment, torch.zeros(len(lengths), 2))


def plain_rows(attention, b, row):
    """The columns that a row sees, and its head-averaged probabilities over them."""
    kinds = attention.segment[b].tolist()
    columns = [j for j in range(row + 1) if kinds[j] == kinds[row] or kinds[j] == PROMPT]
    scores = attention.query[b, :, row] @ attention.key[b].transpose(1, 2)[:, :, columns]
    scores = torch.stack([attention.query[b, h, row] @ attention.key[b, h, columns].T for h in range(scores.shape[0])])
    return columns, (scores * attention.scaling).softmax(-1).mean(0)


@pytest.mark.parametrize("block", [2, 128])
@pytest.mark.parametrize("other_pair", [False, True])
def test_the_distance_is_that_of_the_plain_formula(block, other_pair, monkeypatch):
    monkeypatch.setattr(objectives, "_ROWS_PER_BLOCK", block)
    student = made_up([(4, 5, 2), (2, 3, 5)], 0)
    teacher = made_up([(3, 4, 5), (4, 5, 1)] if other_pair else [(4, 5, 2), (2, 3, 5)], 1, heads=3)
    expected = []
    for b in range(2):
        distances = []
        for row in range(student.segment.shape[1]):
            if student.segment[b, row] < 0 or teacher.segment[b, row] < 0:
                continue
            columns, probability = plain_rows(student, b, row)
            seen, target = plain_rows(teacher, b, row)
            both = [j for j in columns if j in seen and teacher.segment[b, j] >= 0]
            target = torch.stack([target[seen.index(j)] for j in both])
            target = target / target.sum()
            distances.append((target * (target / probability[[columns.index(j) for j in both]]).log()).sum())
        expected.append(torch.stack(distances).mean())
    actual = used_map_kl(student, teacher)
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-10, rtol=1e-10)
    mine = torch.autograd.grad(actual.sum(), [student.query, student.key])
    plain = torch.autograd.grad(torch.stack(expected).sum(), [student.query, student.key])
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_weight_0_is_bradley_terry_to_the_bit(prepared, tokenizer, pairs, tmp_path):
    actual = gradients(*made(prepared, tokenizer, pairs[:6], tmp_path, NAME, weight=0.0))
    expected = gradients(*made(prepared, tokenizer, pairs[:6], tmp_path, "bradley_terry"))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_loss_is_bradley_terry_and_the_weighted_distance(prepared, tokenizer, pairs, tmp_path):
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, NAME, weight=3.0)
    start = method.loss(model, batch)
    assert start.terms["attention_distance"].abs().max() < 1e-7  # the student is its own start
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.self_attn.q_proj.weight.mul_(30)
    loss = method.loss(model, batch)
    assert (loss.terms["attention_distance"] > 1e-4).all()
    torch.testing.assert_close(loss.per_pair, loss.terms["preference_loss"] + 3 * loss.terms["attention_distance"])
    loss.terms["attention_distance"].sum().backward()
    for layer in model.backbone.layers:
        assert layer.self_attn.q_proj.weight.grad.abs().max() > 0 < layer.self_attn.k_proj.weight.grad.abs().max()
    assert model.classifier.score.weight.grad is None


def test_shuffled_maps_are_those_of_another_pair(prepared, tokenizer, pairs, tmp_path):
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, NAME, shuffle=True)
    assert sorted(method.partner) == sorted(method.partner.values()) == sorted(batch.pair_ids)
    assert all(pair_id != other for pair_id, other in method.partner.items())
    assert (method.loss(model, batch).terms["attention_distance"] > 1e-6).all()  # although the teacher is the start


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A backbone with the shape of the world's language model and random weights, in the form of `prepared`."""
    folder = tmp_path_factory.mktemp("world")
    config = experiment_config(folder, backbone={"source": "world_scratch"})
    prepare_backbone(config["backbone"], [], folder / "backbone")
    return None, folder / "backbone", config


def test_a_language_model_teaches(world, pairs, tmp_path):
    tokenizer = load_tokenizer(world[1], 256)
    method, model, batch = made(world, tokenizer, pairs[:6], tmp_path, NAME, teacher="world")
    assert (method.loss(model, batch).terms["attention_distance"] > 0.01).all()
    with torch.no_grad():
        model.classifier.load_state_dict(method.teacher.classifier.state_dict())
    assert method.loss(model, batch).terms["attention_distance"].abs().max() < 1e-6


def test_two_layers_are_the_mean_of_each_alone(world, pairs, tmp_path):
    tokenizer = load_tokenizer(world[1], 256)

    def distance(student_layers, teacher_layers):
        settings = {"teacher": "world", "student_layers": student_layers, "teacher_layers": teacher_layers}
        method, model, batch = made(world, tokenizer, pairs[:6], tmp_path, NAME, **settings)
        return method.loss(model, batch).terms["attention_distance"]

    together = distance([1, 2], [-1, 1])
    torch.testing.assert_close(together, (distance([1], [-1]) + distance([2], [1])) / 2)
    assert (distance([1], [2]) - distance([2], [1])).abs().max() > 0.01


def test_mistakes_are_explained(prepared, tokenizer, pairs, tmp_path):
    def build(**settings):
        return made(prepared, tokenizer, pairs[:2], tmp_path, NAME, **settings)

    with pytest.raises(UserError, match=r"teacher = 'world': \d+ tokens of this experiment's backbone have other ids"):
        build(teacher="world")
    with pytest.raises(UserError, match="student_layers: the model has 2 layers"):
        build(student_layers=[3], teacher_layers=[1])
    with pytest.raises(UserError, match="2 student_layers and 1 teacher_layers"):
        build(teacher_layers=[1])
    with pytest.raises(UserError, match=r"attention_transfer\.teacher"):
        build(teacher="absent/model")
