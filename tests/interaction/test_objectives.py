"""Every objective against a naive one that builds the whole map, values and gradients in fp64."""

import pytest
import torch

from rm_methods.interaction import objectives
from rm_methods.interaction.objectives import StudentAttention, TeacherAttention
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
    vectors = tuple(
        torch.randn(len(rows), width, 2 * HEADS, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return student, TeacherAttention(raw / raw.sum(-1, keepdim=True).clamp(min=1e-9), teacher_segment, vectors)


def sees(row, column, scope):
    if scope == "joint":
        return True
    if scope == "inter":
        return {row, column} == {CHOSEN, REJECTED}
    return row == PROMPT or column in (PROMPT, row)


def naive(student, teacher, b, score_row, columns, row_group, restrict):
    """KL(teacher row spread over tokens || student row) by definition, mean over heads."""
    group = student.group[b].tolist()
    weights = {
        v: teacher.map[b, row_group, v]
        for v in range(teacher.map.shape[1])
        if teacher.segment[b, v] >= 0 and restrict(v)
    }
    mass = sum(weights.values())
    inside = [j for j in columns if group[j] in weights]
    target = torch.stack([weights[group[j]] / mass / sum(group[i] == group[j] for i in inside) for j in inside])
    log_student = score_row[:, columns].log_softmax(-1)[:, [columns.index(j) for j in inside]]
    return (target * (target.log() - log_student)).sum(-1).mean()


def scores(student, b):
    return student.query[b] @ student.key[b].transpose(1, 2) * student.scaling


def naive_row_kl(student, teacher, scope, causal):
    found = []
    for b in range(len(student.group)):
        group, segment, rows = student.group[b].tolist(), student.segment[b].tolist(), []
        for i in [i for i, g in enumerate(group) if g >= 0]:
            visible = "intra" if causal else scope
            columns = [
                j
                for j, g in enumerate(group)
                if g >= 0 and sees(segment[i], segment[j], visible) and (j <= i or not causal)
            ]
            if not columns:
                continue

            def restrict(v, i=i, b=b, group=group, segment=segment, visible=visible):
                return sees(segment[i], int(teacher.segment[b, v]), visible) and (v <= group[i] or not causal)

            rows.append(naive(student, teacher, b, scores(student, b)[:, i], columns, group[i], restrict))
        found.append(torch.stack(rows).mean())
    return torch.stack(found)


def naive_received_mass(student, teacher):
    found = []
    for b in range(len(student.group)):
        group, segment, total = student.group[b].tolist(), student.segment[b].tolist(), 0.0
        for response in (CHOSEN, REJECTED):
            tokens = [j for j, g in enumerate(group) if g >= 0 and segment[j] in (PROMPT, response)]
            kept = sorted({group[j] for j in tokens})
            mine, theirs = torch.zeros(len(kept), dtype=torch.float64), torch.zeros(len(kept), dtype=torch.float64)
            for i in tokens:
                columns = [j for j in tokens if j <= i]
                row = scores(student, b)[:, i][:, columns].softmax(-1).mean(0)
                pooled = [
                    sum((row[k] for k, j in enumerate(columns) if group[j] == v), torch.tensor(0.0)) for v in kept
                ]
                mine = mine + torch.stack([p.double() for p in pooled]) / len(tokens)
                wanted = teacher.map[b, group[i], kept]
                theirs = theirs + wanted / wanted.sum() / len(tokens)
            total = total + (theirs * (theirs / mine).log()).sum()
        found.append(total / 2)
    return torch.stack(found)


def naive_readout(student, teacher):
    found = []
    for b in range(len(student.group)):
        group, segment, total = student.group[b].tolist(), student.segment[b].tolist(), 0.0
        for k, response in enumerate((CHOSEN, REJECTED)):
            columns = [j for j, g in enumerate(group) if g >= 0 and segment[j] in (PROMPT, response)]
            kept = sorted({group[j] for j in columns})
            rows = [v for v in range(teacher.map.shape[1]) if teacher.segment[b, v] == response]
            wanted = torch.stack([teacher.map[b, u, kept] / teacher.map[b, u, kept].sum() for u in rows]).mean(0)
            target = torch.stack([wanted[kept.index(group[j])] / group.count(group[j]) for j in columns])
            log_student = scores(student, b)[:, student.read[b, k]][:, columns].log_softmax(-1)
            total = total + (target * (target.log() - log_student)).sum(-1).mean()
        found.append(total / 2)
    return torch.stack(found)


def naive_virt(student, teacher):
    found = []
    for b in range(len(student.group)):
        group, segment, rows = student.group[b].tolist(), student.segment[b].tolist(), []
        for i in [i for i, g in enumerate(group) if g >= 0 and segment[i] != PROMPT]:
            other = REJECTED if segment[i] == CHOSEN else CHOSEN
            columns = [j for j, g in enumerate(group) if g >= 0 and segment[j] == other]
            row = scores(student, b)[:, i][:, columns].softmax(-1).mean(0)
            kept = sorted({group[j] for j in columns})
            pooled = torch.stack([sum(row[k] for k, j in enumerate(columns) if group[j] == v) for v in kept])
            wanted = teacher.map[b, group[i], kept]
            rows.append((pooled - wanted / wanted.sum()).square().sum())
        found.append(torch.stack(rows).mean())
    return torch.stack(found)


def naive_averaged_row_kl(student, teacher, scope):
    found = []
    for b in range(len(student.group)):
        group, segment, rows = student.group[b].tolist(), student.segment[b].tolist(), []
        for i in [i for i, g in enumerate(group) if g >= 0]:
            columns = [j for j, g in enumerate(group) if g >= 0 and sees(segment[i], segment[j], scope)]
            kept = sorted({group[j] for j in columns})
            if kept:
                row = scores(student, b)[:, i][:, columns].softmax(-1).mean(0)
                pooled = torch.stack([sum(row[k] for k, j in enumerate(columns) if group[j] == v) for v in kept])
                wanted = teacher.map[b, group[i], kept] / teacher.map[b, group[i], kept].sum()
                rows.append((wanted * (wanted / pooled).log()).sum())
        found.append(torch.stack(rows).mean())
    return torch.stack(found)


def naive_relations(student, teacher, heads):
    found = []
    for b in range(len(student.group)):
        groups, total = int((teacher.segment[b] >= 0).sum()), 0.0
        for own, target in zip((student.query, student.key, student.value), teacher.vectors, strict=True):
            pooled = torch.stack([own[b][:, student.group[b] == g].mean(1).flatten() for g in range(groups)])
            for mine, theirs in zip(pooled.chunk(heads, -1), target[b, :groups].chunk(heads, -1), strict=True):
                log_mine, log_theirs = ((x @ x.T / x.shape[-1] ** 0.5).log_softmax(-1) for x in (mine, theirs))
                total = total + (log_theirs.exp() * (log_theirs - log_mine)).sum(-1).mean() / heads / 3
        found.append(total)
    return torch.stack(found)


CASES = {
    "row_kl joint": (lambda s, t: objectives.row_kl(s, t, "joint"), lambda s, t: naive_row_kl(s, t, "joint", False)),
    "row_kl intra": (lambda s, t: objectives.row_kl(s, t, "intra"), lambda s, t: naive_row_kl(s, t, "intra", False)),
    "row_kl inter": (lambda s, t: objectives.row_kl(s, t, "inter"), lambda s, t: naive_row_kl(s, t, "inter", False)),
    "row_kl averaged": (objectives.averaged_row_kl, lambda s, t: naive_averaged_row_kl(s, t, "joint")),
    "row_kl averaged inter": (
        lambda s, t: objectives.averaged_row_kl(s, t, "inter"),
        lambda s, t: naive_averaged_row_kl(s, t, "inter"),
    ),
    "causal_kl": (lambda s, t: objectives.row_kl(s, t, causal=True), lambda s, t: naive_row_kl(s, t, "intra", True)),
    "received_mass": (objectives.received_mass, naive_received_mass),
    "readout": (objectives.readout, naive_readout),
    "virt": (objectives.virt, naive_virt),
    "relations": (lambda s, t: objectives.relations(s, t, 3), lambda s, t: naive_relations(s, t, 3)),
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("block", [2, 128])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_naive_ones(name, block, special, monkeypatch):
    monkeypatch.setattr(objectives, "_ROWS_PER_BLOCK", block)
    student, teacher = made_up(special=special)
    found = []
    for objective in CASES[name]:
        value = objective(student, teacher)
        assert value.shape == (2,)
        weights = torch.tensor([1.0, 2.5], dtype=torch.float64)
        gradients = torch.autograd.grad(
            (weights * value).sum(), [student.query, student.key, student.value], allow_unused=True
        )
        found.append((value.detach(), [torch.zeros_like(student.key) if g is None else g for g in gradients]))
    assert (found[1][0] > 1e-3).all()
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-9, rtol=1e-9)
    for mine, reference in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-9, rtol=1e-7)


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
    together = CASES[name][0](student, teacher)
    for b in range(2):
        alone = StudentAttention(
            *(x[b : b + 1] for x in (student.query, student.key, student.value)),
            student.scaling,
            *(x[b : b + 1] for x in (student.group, student.segment, student.read)),
        )
        of_pair = TeacherAttention(
            teacher.map[b : b + 1], teacher.segment[b : b + 1], tuple(v[b : b + 1] for v in teacher.vectors)
        )
        torch.testing.assert_close(CASES[name][0](alone, of_pair)[0], together[b])
