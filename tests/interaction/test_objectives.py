"""Every objective against the plain one that builds the whole map, values and gradients in fp64."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from rm_methods.interaction import naive_objectives, objectives
from rm_methods.interaction.objectives import StudentAttention, TeacherAttention, TeacherVectors
from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED

HEADS, SIZE = 3, 4


def made_up(seed=0, rows=((3, 4, 2), (1, 2, 5)), special=True):
    """Pairs with 1 to 3 tokens a group, a token outside the text at the end of each segment, and padding."""
    generator = torch.Generator().manual_seed(seed)
    group, segment, groups, read = [], [], [], []
    for counts in rows:
        g, s, total, ends = [], [], 0, []
        for kind, count in zip((PROMPT, CHOSEN, REJECTED), counts, strict=True):
            for _ in range(count):
                tokens = 1 + int(torch.randint(3, (1,), generator=generator))
                g += [total] * tokens
                s += [kind] * tokens
                total += 1
            if special:
                g.append(-1)
                s.append(kind)
            ends.append(len(g) - 1)
        group.append(g)
        segment.append(s)
        groups.append([k for k, count in zip((PROMPT, CHOSEN, REJECTED), counts, strict=True) for _ in range(count)])
        read.append(ends[1:])
    length, width = max(map(len, group)), max(map(len, groups))

    def pad(lists, to):
        return torch.tensor([x + [-1] * (to - len(x)) for x in lists])

    query, key, value = (
        torch.randn(len(rows), HEADS, length, SIZE, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )
    student = StudentAttention(
        query, key, value, SIZE**-0.5, pad(group, length), pad(segment, length), torch.tensor(read)
    )
    teacher_segment = pad(groups, width)
    valid = teacher_segment >= 0
    raw = (
        torch.rand(len(rows), width, width, generator=generator, dtype=torch.float64)
        * valid[:, None]
        * valid[..., None]
    )
    return student, TeacherAttention(raw / raw.sum(-1, keepdim=True).clamp(min=1e-9), teacher_segment)


def vectors(teacher):
    """Vectors over the groups of a made-up teacher, drawn from its map, so that a pair has the same ones in every
    batch."""
    x_BGF = [
        torch.einsum(
            "bgv,vf->bgf",
            teacher.map,
            torch.randn(
                teacher.map.shape[1], 2 * HEADS, generator=torch.Generator().manual_seed(k), dtype=torch.float64
            ),
        )
        * 3
        for k in range(3)
    ]
    return TeacherVectors(x_BGF[0], x_BGF[1], x_BGF[2], teacher.segment)


def relations(module):
    """Relations take the teacher's vectors instead of its map."""
    return lambda student, teacher: module.relations(student, vectors(teacher), 3)


# Each objective of a module, as a function of student and teacher.
CASES = {
    "row_kl joint": lambda module: module.row_kl,
    "row_kl intra": lambda module: partial(module.row_kl, scope="intra"),
    "row_kl inter": lambda module: partial(module.row_kl, scope="inter"),
    "row_kl averaged": lambda module: module.averaged_row_kl,
    "row_kl averaged inter": lambda module: partial(module.averaged_row_kl, scope="inter"),
    "row_kl averaged causal": lambda module: partial(module.averaged_row_kl, causal=True),
    "causal_kl": lambda module: partial(module.row_kl, causal=True),
    "received_mass": lambda module: module.received_mass,
    "readout": lambda module: module.readout,
    "virt": lambda module: module.virt,
    "relations": relations,
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("block", [2, 128])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_naive_ones(name, block, special, monkeypatch):
    monkeypatch.setattr(objectives, "_ROWS_PER_BLOCK", block)
    student, teacher = made_up(special=special)
    results = []
    for module in (objectives, naive_objectives):
        value = CASES[name](module)(student, teacher)
        assert value.shape == (2,)
        weights = torch.tensor([1.0, 2.5], dtype=torch.float64)
        gradients = torch.autograd.grad(
            (weights * value).sum(), [student.query, student.key, student.value], allow_unused=True
        )
        results.append((value.detach(), [torch.zeros_like(student.key) if g is None else g for g in gradients]))
    (blockwise, blockwise_gradients), (plain, plain_gradients) = results
    assert (plain > 1e-3).all()
    torch.testing.assert_close(blockwise, plain, atol=1e-9, rtol=1e-9)
    for blockwise_gradient, plain_gradient in zip(blockwise_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(blockwise_gradient, plain_gradient, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("module", [objectives, naive_objectives], ids=["blockwise", "plain"])
def test_row_kl_and_received_mass_by_hand(module):
    """One token per segment, one head: every softmax can be written down."""
    query = torch.tensor([[[[1.0], [2.0], [0.0]]]], dtype=torch.float64)
    key = torch.tensor([[[[0.0], [math.log(2)], [math.log(3)]]]], dtype=torch.float64)
    tokens = torch.tensor([[0, 1, 2]])
    student = StudentAttention(query, key, None, 1.0, tokens, tokens, torch.tensor([[1, 2]]))
    teacher = TeacherAttention(torch.full((1, 3, 3), 1 / 3, dtype=torch.float64), tokens)
    # Rows of the student: (1, 2, 3) / 6, (1, 4, 9) / 14, (1, 1, 1) / 3.
    rows = torch.tensor([[1 / 6, 2 / 6, 3 / 6], [1 / 14, 4 / 14, 9 / 14], [1 / 3, 1 / 3, 1 / 3]])
    expected = -math.log(3) - rows.log().mean()
    assert module.row_kl(student, teacher).item() == pytest.approx(expected.item(), abs=1e-6)
    # Inter: each response sees one token, so teacher and student agree.
    assert module.row_kl(student, teacher, "inter").item() == pytest.approx(0, abs=1e-12)
    # Causal rows: the prompt sees itself; chosen sees (1, 4) / 5; rejected sees prompt and itself, (1, 1) / 2.
    causal = (0 - math.log(2) - 0.5 * math.log(1 / 5 * 4 / 5) + 0) / 3
    assert module.row_kl(student, teacher, causal=True).item() == pytest.approx(causal, abs=1e-12)
    # Received: prompt (1 + 1/5) / 2 and chosen (4/5) / 2; prompt (1 + 1/2) / 2 and rejected (1/2) / 2; teacher 1/2
    # each.
    received = [-math.log(2) - 0.5 * math.log(share * (1 - share)) for share in (0.6, 0.75)]
    assert module.received_mass(student, teacher).item() == pytest.approx(sum(received) / 2, abs=1e-12)


def test_relations_without_values_are_an_error():
    student, teacher = made_up()
    with pytest.raises(ValueError, match="values are missing"):
        objectives.relations(replace(student, value=None), vectors(teacher), 3)


@pytest.mark.parametrize("scope", ["joint", "intra", "inter"])
def test_a_teacher_that_is_the_students_own_map_gives_zero(scope):
    student, teacher = made_up(special=False)
    # One token a group: the student's map over tokens is a map over groups.
    student.group = torch.where(student.group >= 0, torch.arange(student.group.shape[1])[None], -1)
    teacher.segment = student.segment
    visible = student.group >= 0
    score = (student.query @ student.key.transpose(2, 3) * student.scaling)[:, :1].detach()
    student.query, student.key = (
        student.query.detach()[:, :1].requires_grad_(),
        student.key.detach()[:, :1].requires_grad_(),
    )
    teacher.map = torch.where(visible[:, None], score[:, 0], -torch.inf).softmax(-1) * visible[..., None]
    value = objectives.row_kl(student, teacher, scope)
    torch.testing.assert_close(value, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    for gradient in torch.autograd.grad(value.sum(), [student.query, student.key]):
        assert gradient.abs().max() < 1e-9


def test_teacher_entries_behind_a_token_do_not_change_the_causal_objective():
    student, teacher = made_up()
    before = objectives.row_kl(student, teacher, causal=True)
    later = torch.ones_like(teacher.map).triu(1).bool()
    teacher.map = torch.where(later, teacher.map * 7, teacher.map)
    torch.testing.assert_close(objectives.row_kl(student, teacher, causal=True), before)


@pytest.mark.parametrize("name", CASES)
def test_a_pair_does_not_depend_on_its_batch(name):
    student, teacher = made_up()
    objective = CASES[name](objectives)
    together = objective(student, teacher)
    for b in range(2):
        part = slice(b, b + 1)
        alone = objective(student.select(part), TeacherAttention(teacher.map[part], teacher.segment[part]))
        torch.testing.assert_close(alone[0], together[b])
