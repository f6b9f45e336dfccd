"""The alignment objectives written as their formulas, one token row at a time.

`objectives` computes the same values and gradients in blocks, without ever holding a whole map; the tests compare the
two in fp64.  This module is slow and meant for reading.

For token i of group u, the student's row over the columns C_i that it sees, and the teacher's row over the same
tokens, are

    s_i = softmax over j in C_i of q_i . k_j * scaling                  one row per head
    t_i(j) = A[u, v] / (tokens of group v in C_i),  v the group of j    made a distribution over C_i

Shapes: h heads, L student tokens, G groups, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from rm_methods.interaction.objectives import StudentAttention, TeacherAttention, TeacherVectors, visible_segments
from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED


@dataclass(frozen=True)
class _Pair:
    """One pair of a batch.

    Attributes:
        scores: [h, L, L], rows look at columns.
        member: [L, G], 1 if a token is in a group.
        group, segment: of each student token, as in `StudentAttention`.
        read: the tokens whose states give the rewards of chosen and rejected.
        teacher_map: [G, G].
        teacher_segment: of each group, -1 at padding.
    """

    scores: torch.Tensor
    member: torch.Tensor
    group: list[int]
    segment: list[int]
    read: list[int]
    teacher_map: torch.Tensor
    teacher_segment: list[int]

    @property
    def text(self) -> list[int]:
        """The tokens that are in a group."""
        return [token for token, group in enumerate(self.group) if group >= 0]

    def text_of(self, *segments: int) -> list[int]:
        """The tokens of some segments that are in a group."""
        return [token for token in self.text if self.segment[token] in segments]

    def student_row(self, row: int, columns: list[int]) -> torch.Tensor:
        """The student's attention over groups, mean over heads, [G]."""
        return self.scores[:, row, columns].softmax(-1).mean(0) @ self.member[columns]

    def teacher_row(self, group: int, columns: list[int]) -> torch.Tensor:
        """The teacher's attention over the groups of the columns, made a distribution, [G]."""
        kept = self.teacher_map[group] * self.member[columns].amax(0)
        return kept / kept.sum()


def row_kl(
    student: StudentAttention, teacher: TeacherAttention, scope: str = "joint", causal: bool = False
) -> torch.Tensor:
    """Mean over rows and heads of KL(t_i || s_i), [B]."""
    visible = visible_segments("intra" if causal else scope)

    def distance(pair: _Pair, row: int, columns: list[int]) -> torch.Tensor:
        return _kl_over_tokens(pair, row, columns, pair.teacher_row(pair.group[row], columns))

    return _over_pairs(student, teacher, lambda pair: _mean_over_rows(pair, visible, causal, distance))


def averaged_row_kl(
    student: StudentAttention, teacher: TeacherAttention, scope: str = "joint", causal: bool = False
) -> torch.Tensor:
    """Mean over rows of KL over groups, the student's probabilities averaged over heads first, [B]."""

    def distance(pair: _Pair, row: int, columns: list[int]) -> torch.Tensor:
        return _kl(pair.teacher_row(pair.group[row], columns), pair.student_row(row, columns))

    visible = visible_segments("intra" if causal else scope)
    return _over_pairs(student, teacher, lambda pair: _mean_over_rows(pair, visible, causal, distance))


def virt(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """Mean over response rows of the squared distance over the groups of the other response, [B]."""

    def distance(pair: _Pair, row: int, columns: list[int]) -> torch.Tensor:
        return (pair.student_row(row, columns) - pair.teacher_row(pair.group[row], columns)).square().sum()

    visible = visible_segments("inter")
    return _over_pairs(student, teacher, lambda pair: _mean_over_rows(pair, visible, False, distance))


def received_mass(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """KL between the attention that each group receives in [prompt | response], mean over both responses, [B].

    The student's rows are causal, the teacher's are not.
    """

    def distance(pair: _Pair, response: int) -> torch.Tensor:
        tokens = pair.text_of(PROMPT, response)
        received_from_student = [pair.student_row(row, [j for j in tokens if j <= row]) for row in tokens]
        received_from_teacher = [pair.teacher_row(pair.group[row], tokens) for row in tokens]
        return _kl(torch.stack(received_from_teacher).mean(0), torch.stack(received_from_student).mean(0))

    return _over_pairs(student, teacher, lambda pair: (distance(pair, CHOSEN) + distance(pair, REJECTED)) / 2)


def readout(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """KL of the row that a reward is read from against the mean of the teacher's rows of that response, [B].

    Mean over heads and both responses.
    """

    def distance(pair: _Pair, response: int, read: int) -> torch.Tensor:
        columns = pair.text_of(PROMPT, response)
        rows = [group for group, segment in enumerate(pair.teacher_segment) if segment == response]
        target = torch.stack([pair.teacher_row(group, columns) for group in rows]).mean(0)
        return _kl_over_tokens(pair, read, columns, target)

    def of_pair(pair: _Pair) -> torch.Tensor:
        return (distance(pair, CHOSEN, pair.read[0]) + distance(pair, REJECTED, pair.read[1])) / 2

    return _over_pairs(student, teacher, of_pair)


def relations(student: StudentAttention, teacher: TeacherVectors, heads: int) -> torch.Tensor:
    """KL of the rows of softmax(x x^T / sqrt(d)), mean over groups, relation heads and x (query, key, value), [B].

    The student's values must be present.
    """
    assert student.value is not None
    distances = []
    for b, segment in enumerate(teacher.segment):
        groups = int((segment >= 0).sum())
        terms = []
        for tokens, target in (
            (student.query, teacher.query),
            (student.key, teacher.key),
            (student.value, teacher.value),
        ):
            pooled = [tokens[b][:, student.group[b] == group].mean(1).flatten() for group in range(groups)]
            student_heads = torch.stack(pooled).chunk(heads, -1)
            teacher_heads = target[b, :groups].chunk(heads, -1)
            for student_head, teacher_head in zip(student_heads, teacher_heads, strict=True):
                student_log = (student_head @ student_head.T / student_head.shape[-1] ** 0.5).log_softmax(-1)
                teacher_log = (teacher_head @ teacher_head.T / teacher_head.shape[-1] ** 0.5).log_softmax(-1)
                terms.append((teacher_log.exp() * (teacher_log - student_log)).sum(-1).mean())
        distances.append(torch.stack(terms).mean())
    return torch.stack(distances)


def _mean_over_rows(
    pair: _Pair,
    visible: list[list[bool]],
    causal: bool,
    distance: Callable[[_Pair, int, list[int]], torch.Tensor],
) -> torch.Tensor:
    """Mean of distance(pair, row, the columns that it sees) over the rows that see any."""
    distances = []
    for row in pair.text:
        columns = [
            column
            for column in pair.text
            if visible[pair.segment[row]][pair.segment[column]] and (column <= row or not causal)
        ]
        if columns:
            distances.append(distance(pair, row, columns))
    return torch.stack(distances).mean()


def _kl_over_tokens(pair: _Pair, row: int, columns: list[int], target: torch.Tensor) -> torch.Tensor:
    """KL(target || student's row), the target of a group divided evenly among its tokens; mean over heads."""
    member = pair.member[columns]
    target_of_token = member @ (target / member.sum(0).clamp(min=1))
    log_student = pair.scores[:, row, columns].log_softmax(-1)
    return (torch.special.xlogy(target_of_token, target_of_token) - target_of_token * log_student).sum(-1).mean()


def _kl(target: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """KL(target || probability) over the entries where the target is above 0."""
    kept = target > 0
    return (target[kept] * (target[kept] / probability[kept]).log()).sum()


def _over_pairs(
    student: StudentAttention, teacher: TeacherAttention, objective: Callable[[_Pair], torch.Tensor]
) -> torch.Tensor:
    return torch.stack([objective(pair) for pair in _pairs(student, teacher)])


def _pairs(student: StudentAttention, teacher: TeacherAttention) -> Iterator[_Pair]:
    groups = torch.arange(teacher.segment.shape[1], device=student.group.device)
    for b, group in enumerate(student.group):
        yield _Pair(
            scores=student.query[b] @ student.key[b].transpose(1, 2) * student.scaling,
            member=(group[:, None] == groups).to(student.query.dtype),
            group=group.tolist(),
            segment=student.segment[b].tolist(),
            read=student.read[b].tolist(),
            teacher_map=teacher.map[b],
            teacher_segment=teacher.segment[b].tolist(),
        )
