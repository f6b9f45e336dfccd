"""Alignment objectives: distances of a student's attention from a teacher's, without the student's L x L map.

The student's *virtual* map is softmax(Q K^T / sqrt(d)) over prompt, chosen and rejected together, without a causal
mask.  It is only compared, never used in the forward pass (our reconstruction; the idea follows VIRT, arXiv
2112.04195).  The teacher's map A is over groups (rm_methods.interaction.alignment).  Each student token of a group
gets the group's row, and the mass of a column is divided evenly among the tokens of its group.  This gives every
student token a distribution over student tokens.  For token i of group u

    KL_i = sum_v A[u,v] log(A[u,v] / |v|) + logsumexp_j(s_ij) - sum_v A[u,v] q_i . mean_{j in v}(k_j) / sqrt(d).

The last sum is bilinear in pooled queries and keys, so the only thing needed from the L x L scores is the log-sum-exp
of each row.  It is computed in blocks of rows and recomputed in the backward pass, so memory beside the teacher's G x
G map grows linearly with length.  `naive_objectives` has the same objectives as plain formulas.

Shapes: B pairs, h heads, L student tokens (padded), G groups (padded), d head size.  All sums are in fp32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED

_ROWS_PER_BLOCK = 128


@dataclass
class StudentAttention:
    """Queries and keys of one student layer, regrouped per pair as [prompt | chosen | rejected].

    Attributes:
        query, key: [B, h, L, d]; keys of grouped-query heads are repeated.
        value: like key, or None if the objective does not use it.
        scaling: of the scores, usually d ** -0.5.
        group: int64 [B, L], group of each token, -1 for padding and for tokens outside the text.
        segment: int64 [B, L], PROMPT, CHOSEN or REJECTED for every token, also those outside the text; -1 for padding.
        read: int64 [B, 2], positions of the tokens that the rewards of chosen and rejected are read from.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor | None
    scaling: float
    group: torch.Tensor
    segment: torch.Tensor
    read: torch.Tensor

    def select(self, pairs: torch.Tensor | slice) -> StudentAttention:
        """The attention of some pairs of the batch, by their positions int64 [pairs] or as a slice."""
        return StudentAttention(
            query=self.query[pairs],
            key=self.key[pairs],
            value=None if self.value is None else self.value[pairs],
            scaling=self.scaling,
            group=self.group[pairs],
            segment=self.segment[pairs],
            read=self.read[pairs],
        )


@dataclass
class TeacherAttention:
    """A teacher's attention over groups, for the same pairs.

    Attributes:
        map: [B, G, G], rows are distributions over the pair's groups (zero at padding), both orders averaged.
        segment: int64 [B, G], -1 at padding.
    """

    map: torch.Tensor
    segment: torch.Tensor


@dataclass
class TeacherVectors:
    """A teacher's vectors pooled over groups, for the same pairs, in one order of the two responses.

    Attributes:
        query, key, value: [B, G, width], heads concatenated.
        segment: int64 [B, G], -1 at padding.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    segment: torch.Tensor


def visible_segments(scope: str) -> list[list[bool]]:
    """Which column segments are compared for each row segment: [row][column], in the order prompt, chosen, rejected.

    joint: all segments.  intra: a prompt row sees all segments, a response row the prompt and its response.  inter: a
    response row sees only the other response, and prompt rows do not count.
    """
    return {
        "joint": [[True, True, True]] * 3,
        "intra": [[True, True, True], [True, True, False], [True, False, True]],
        "inter": [[False, False, False], [False, False, True], [False, True, False]],
    }[scope]


def row_kl(
    student: StudentAttention, teacher: TeacherAttention, scope: str = "joint", causal: bool = False
) -> torch.Tensor:
    """KL(teacher || student) of attention rows, mean over student tokens in the text and over heads.

    Args:
        scope: "joint", "intra" or "inter": columns that are compared; teacher rows are renormalized over them.
        causal: compare with the map that the student uses in its forward pass: a token sees the tokens of the prompt
            and of its response up to itself.  The scope is then always "intra".

    Returns:
        [B], in nats.
    """
    if causal:
        return _causal_row_kl(student, teacher)
    table = torch.tensor(visible_segments(scope), device=student.query.device)
    target_BGG, has_row_BG = _restricted(teacher, table)
    size_BG, mean_key_BhGd = _pool(student.key, student.group, teacher.segment.shape[1])
    present = size_BG > 0
    entropy_BG = torch.special.xlogy(target_BGG, target_BGG / size_BG.clamp(min=1)[:, None]).sum(-1)
    valid_BL, group_BL = _rows(student, has_row_BG & present)
    expected_BhGd = _expected_keys(target_BGG, mean_key_BhGd)
    match_BhL = (student.query * _take(expected_BhGd, group_BL)).sum(-1) * student.scaling
    lse_BhL = _row_log_sum_exp(student, table)
    kl_BhL = entropy_BG.gather(1, group_BL)[:, None] + lse_BhL - match_BhL
    return _mean_over_rows(kl_BhL, valid_BL)


def received_mass(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """KL between the attention that each group receives in [prompt | response], mean over both responses, [B].

    The student's map is the causal one of its forward pass; the teacher's block is bidirectional.  Both are
    renormalized over the text of the sequence, rows are averaged, and then the two sequences.
    """
    total = student.query.new_zeros(len(student.query))
    groups = teacher.segment.shape[1]
    for response in (CHOSEN, REJECTED):
        table = torch.zeros(3, 3, dtype=torch.bool, device=student.query.device)
        for row in (PROMPT, response):
            table[row, [PROMPT, response]] = True
        target_BGG, has_row_BG = _restricted(teacher, table)
        row_count = _rows_per_group(student, groups)
        weight_BG = row_count * has_row_BG
        weight_BG = weight_BG / weight_BG.sum(-1, keepdim=True).clamp(min=1)
        target_BG = (weight_BG[..., None] * target_BGG).sum(1)
        valid_BL, group_BL = _rows(student, has_row_BG)
        mass_BhL = _column_mass(student, table, valid_BL)
        mass_BG = torch.zeros_like(target_BG).scatter_add(1, group_BL, mass_BhL.mean(1) * (student.group >= 0))
        mass_BG = mass_BG / valid_BL.sum(-1, keepdim=True).clamp(min=1)
        total = total + _kl(target_BG, mass_BG)
    return total / 2


def readout(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """KL of the row that a reward is read from against the mean of the teacher's rows of that response, [B].

    Columns are the text of the prompt and of the response; mean over heads and over the two responses.
    """
    total = student.query.new_zeros(len(student.query))
    groups = teacher.segment.shape[1]
    size_BG, mean_key_BhGd = _pool(student.key, student.group, groups)
    for k, response in enumerate((CHOSEN, REJECTED)):
        table = torch.zeros(3, 3, dtype=torch.bool, device=student.query.device)
        table[response, [PROMPT, response]] = True
        target_BGG, has_row_BG = _restricted(teacher, table)
        weight_BG = has_row_BG.to(target_BGG.dtype)
        weight_BG = weight_BG / weight_BG.sum(-1, keepdim=True).clamp(min=1)
        target_BG = (weight_BG[..., None] * target_BGG).sum(1)
        query_Bhd = student.query[torch.arange(len(student.query)), :, student.read[:, k]]
        score_BhL = torch.einsum("bhd,bhld->bhl", query_Bhd, student.key) * student.scaling
        columns_BL = (student.group >= 0) & ((student.segment == PROMPT) | (student.segment == response))
        lse_Bh = _masked_log_sum_exp(score_BhL, columns_BL[:, None])
        match_Bh = torch.einsum("bhd,bg,bhgd->bh", query_Bhd, target_BG, mean_key_BhGd) * student.scaling
        entropy_B = torch.special.xlogy(target_BG, target_BG / size_BG.clamp(min=1)).sum(-1)
        kl_Bh = entropy_B[:, None] + lse_Bh - match_Bh
        total = total + torch.where(has_row_BG.any(-1), kl_Bh.mean(1), 0.0)
    return total / 2


def averaged_row_kl(
    student: StudentAttention, teacher: TeacherAttention, scope: str = "joint", causal: bool = False
) -> torch.Tensor:
    """KL(teacher || student) of attention rows over groups, the student's probabilities averaged over heads first, [B].

    `scope` and `causal` are as for `row_kl`; of a token's group, the causal map has only the tokens up to this one.
    Weaker than `row_kl`, which asks every head to follow the teacher.  Also slower: an average of softmaxes is not
    bilinear, so the student's rows are computed and pooled in blocks.
    """
    return _over_pooled_rows(student, teacher, "intra" if causal else scope, _kl, causal)


def used_map_kl(student: StudentAttention, teacher: StudentAttention) -> torch.Tensor:
    """KL(teacher || student) of the maps that both models use, each averaged over heads first; mean over rows, [B].

    A row sees the tokens of its prompt and response up to itself.  Columns of the teacher that the student does not
    see, as with the map of another pair, are dropped, and its rows are made distributions again.

    Args:
        teacher: the attention of a causal model over the same columns, with any number of heads; no gradient.
    """
    table = torch.tensor(visible_segments("intra"), device=student.query.device)

    def block(rows: slice, query: torch.Tensor, key: torch.Tensor, teacher_key: torch.Tensor) -> torch.Tensor:
        score_BhRL, visible_B1RL = _block_scores(student, table, rows, query, key, causal=True)
        teacher_BhRL, seen_B1RL = _block_scores(teacher, table, rows, teacher.query, teacher_key, causal=True)
        target_BRL = teacher_BhRL.softmax(-1).mean(1) * (visible_B1RL & seen_B1RL)[:, 0]
        target_BRL = target_BRL / target_BRL.sum(-1, keepdim=True).clamp(min=1e-12)
        return _kl(target_BRL, score_BhRL.softmax(-1).mean(1))

    kl_BL = _in_row_blocks(block, student, teacher.key)
    return _mean_over_rows(kl_BL[:, None], (student.group >= 0) & (teacher.group >= 0))


def virt(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """Squared distance of the inter blocks (VIRT, arXiv 2112.04195), sum over columns, mean over response rows, [B].

    Blocks are renormalized per row and averaged over heads; the student's are pooled to groups in blocks of rows.
    """
    return _over_pooled_rows(student, teacher, "inter", lambda target, pooled: (pooled - target).square().sum(-1))


def _over_pooled_rows(
    student: StudentAttention,
    teacher: TeacherAttention,
    scope: str,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    causal: bool = False,
) -> torch.Tensor:
    """Mean over rows of distance(teacher's row, student's head-averaged row), both [B, rows, G]."""
    table = torch.tensor(visible_segments(scope), device=student.query.device)
    groups = teacher.segment.shape[1]
    before = torch.ones(groups, groups, dtype=torch.bool, device=table.device).tril() if causal else None
    target_BGG, has_row_BG = _restricted(teacher, table, before)
    valid_BL, group_BL = _rows(student, has_row_BG)

    def block(rows: slice, query: torch.Tensor, key: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        score_BhRL, _ = _block_scores(student, table, rows, query, key, causal)
        prob_BRL = score_BhRL.softmax(-1).mean(1) * (student.group >= 0)[:, None]
        column_BRL = student.group.clamp(min=0)[:, None].expand_as(prob_BRL)
        pooled_BRG = prob_BRL.new_zeros(prob_BRL.shape[0], prob_BRL.shape[1], groups)
        pooled_BRG = pooled_BRG.scatter_add(2, column_BRL, prob_BRL)
        target_BRG = target.gather(1, group_BL[:, rows, None].expand(-1, -1, groups))
        return distance(target_BRG, pooled_BRG)

    distance_BL = _in_row_blocks(block, student, target_BGG)
    return _mean_over_rows(distance_BL[:, None], valid_BL)


def relations(student: StudentAttention, teacher: TeacherVectors, heads: int) -> torch.Tensor:
    """MiniLMv2 relations (arXiv 2012.15828): KL of softmax(x x^T / sqrt(d)), mean over relation heads and over x, [B].

    x is the queries, the keys and the values, pooled to groups.  The heads of each model are concatenated and divided
    again into `heads` relation heads, the same number for both models.

    Raises:
        ValueError: the student's values are missing.
    """
    if student.value is None:
        raise ValueError("relations: the student's values are missing; regroup its attention with them.")
    groups = teacher.segment.shape[1]
    valid_BG = (teacher.segment >= 0) & (_rows_per_group(student, groups) > 0)
    total = student.query.new_zeros(len(student.query))
    for student_tokens, teacher_groups in (
        (student.query, teacher.query),
        (student.key, teacher.key),
        (student.value, teacher.value),
    ):
        _, pooled_BhGd = _pool(student_tokens, student.group, groups)
        student_heads = _relation_heads(pooled_BhGd.transpose(1, 2).flatten(2), heads)
        teacher_heads = _relation_heads(teacher_groups.to(student_heads.dtype), heads)
        total = total + _relation_kl(student_heads, teacher_heads, valid_BG)
    return total / 3


def _relation_heads(x_BGF: torch.Tensor, heads: int) -> torch.Tensor:
    return x_BGF.unflatten(-1, (heads, -1)).transpose(1, 2)


def _relation_kl(student_BhGd: torch.Tensor, teacher_BhGd: torch.Tensor, valid_BG: torch.Tensor) -> torch.Tensor:
    def log_relations(x: torch.Tensor, rows: slice) -> torch.Tensor:
        score = x[:, :, rows] @ x.transpose(2, 3) * x.shape[-1] ** -0.5
        return score.masked_fill(~valid_BG[:, None, None], torch.finfo(score.dtype).min).log_softmax(-1)

    def block(rows: slice, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        log_target = log_relations(teacher, rows)
        difference = log_target - log_relations(student, rows)
        return torch.where(valid_BG[:, None, None], log_target.exp() * difference, 0.0).sum(-1).mean(1)

    blocks = [
        checkpoint(block, rows, student_BhGd, teacher_BhGd, use_reentrant=False)
        for rows in _row_blocks(student_BhGd.shape[2])
    ]
    kl_BG = torch.cat(blocks, dim=1)
    return torch.where(valid_BG, kl_BG, 0.0).sum(-1) / valid_BG.sum(-1).clamp(min=1)


def _causal_row_kl(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """Row KL against the causal map of the student's forward pass.

    The teacher's groups after the token's group are dropped; the mass of the token's group goes to its tokens up to
    this one.
    """
    table = torch.tensor(visible_segments("intra"), device=student.query.device)
    groups = teacher.segment.shape[1]
    before = torch.ones(groups, groups, dtype=torch.bool, device=table.device).tril()
    target_BGG, has_row_BG = _restricted(teacher, table, before)
    valid_BL, group_BL = _rows(student, has_row_BG)
    size_BG, mean_key_BhGd = _pool(student.key, student.group, groups)
    # Groups are in the order of the text, so a sum over a group's tokens up to a row's token is a difference of
    # running sums.
    in_text_BL = student.group >= 0
    before_group_BG = size_BG.cumsum(1) - size_BG
    count_BL = in_text_BL.cumsum(1) - before_group_BG.gather(1, group_BL)
    key_in_text = student.key * in_text_BL[:, None, :, None]
    sum_BhGd = mean_key_BhGd * size_BG[:, None, :, None]
    partial_sum_BhLd = key_in_text.cumsum(2) - _take(sum_BhGd.cumsum(2) - sum_BhGd, group_BL)
    count_BL = count_BL.clamp(min=1)
    partial_mean_BhLd = partial_sum_BhLd / count_BL[:, None, :, None]
    diagonal_BG = target_BGG.diagonal(dim1=1, dim2=2)
    earlier_BGG = target_BGG - torch.diag_embed(diagonal_BG)
    expected_BhLd = _take(_expected_keys(earlier_BGG, mean_key_BhGd), group_BL)
    diagonal_BL = diagonal_BG.gather(1, group_BL)
    expected_BhLd = expected_BhLd + diagonal_BL[:, None, :, None] * partial_mean_BhLd
    match_BhL = (student.query * expected_BhLd).sum(-1) * student.scaling
    earlier_entropy_BG = torch.special.xlogy(earlier_BGG, earlier_BGG / size_BG.clamp(min=1)[:, None]).sum(-1)
    diagonal_entropy_BL = torch.special.xlogy(diagonal_BL, diagonal_BL / count_BL)
    entropy_BL = earlier_entropy_BG.gather(1, group_BL) + diagonal_entropy_BL
    lse_BhL = _row_log_sum_exp(student, table, causal=True)
    return _mean_over_rows(entropy_BL[:, None] + lse_BhL - match_BhL, valid_BL)


def _kl(target: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """KL(target || probability) over the last axis; entries where the target is 0 count nothing and get no gradient."""
    log_probability = probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
    return (torch.special.xlogy(target, target) - target * log_probability).sum(-1)


def _restricted(
    teacher: TeacherAttention, table: torch.Tensor, pattern: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher rows over the visible columns, renormalized [B, G, G], and which rows have any [B, G].

    Args:
        table: bool [3, 3], which segments are visible to each segment.
        pattern: bool [G, G], further limits what is visible.
    """
    segment = teacher.segment
    visible = table[segment.clamp(min=0)[:, :, None], segment.clamp(min=0)[:, None, :]]
    visible = visible & (segment >= 0)[:, :, None] & (segment >= 0)[:, None, :]
    if pattern is not None:
        visible = visible & pattern
    kept = teacher.map * visible
    mass = kept.sum(-1, keepdim=True)
    has_row = mass[..., 0] > 1e-12
    return kept / mass.clamp(min=1e-12), has_row


def _pool(x_BhLd: torch.Tensor, group_BL: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens per group [B, G], and their mean [B, h, G, d]."""
    batch, heads, _, size = x_BhLd.shape
    inside = (group_BL >= 0).to(x_BhLd.dtype)
    count = x_BhLd.new_zeros(batch, groups).scatter_add(1, group_BL.clamp(min=0), inside)
    index = group_BL.clamp(min=0)[:, None, :, None].expand(-1, heads, -1, size)
    total = x_BhLd.new_zeros(batch, heads, groups, size).scatter_add(2, index, x_BhLd * inside[:, None, :, None])
    return count, total / count.clamp(min=1)[:, None, :, None]


def _expected_keys(map_BGG: torch.Tensor, mean_key_BhGd: torch.Tensor) -> torch.Tensor:
    """The mean key that each row of a map looks at, [B, h, G, d]."""
    # A product with the map expanded over heads would copy the map for each head and keep it for the backward pass.
    return torch.einsum("bgv,bhvd->bhgd", map_BGG, mean_key_BhGd)


def _rows_per_group(student: StudentAttention, groups: int) -> torch.Tensor:
    inside = (student.group >= 0).to(student.query.dtype)
    return inside.new_zeros(len(inside), groups).scatter_add(1, student.group.clamp(min=0), inside)


def _rows(student: StudentAttention, has_row_BG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens are rows of the objective [B, L], and their groups (0 for none)."""
    group_BL = student.group.clamp(min=0)
    return (student.group >= 0) & has_row_BG.gather(1, group_BL), group_BL


def _take(x_BhGd: torch.Tensor, index_BL: torch.Tensor) -> torch.Tensor:
    return x_BhGd.gather(2, index_BL[:, None, :, None].expand(-1, x_BhGd.shape[1], -1, x_BhGd.shape[-1]))


def _mean_over_rows(value_BhL: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
    per_row = torch.where(valid_BL[:, None], value_BhL, 0.0).mean(1)
    return per_row.sum(-1) / valid_BL.sum(-1).clamp(min=1)


def _block_scores(
    student: StudentAttention,
    table: torch.Tensor,
    rows: slice,
    query: torch.Tensor,
    key: torch.Tensor,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of some rows against all columns [B, h, rows, L], and which columns each row sees, bool [B, 1, rows, L].

    Where a row does not see a column, the score is the lowest number.  With minus infinity, a row that sees nothing
    (padding) would be NaN, and so would its gradient, even if the row is left out afterward.
    """
    score = query[:, :, rows] @ key.transpose(2, 3) * student.scaling
    segment = student.segment.clamp(min=0)
    visible = table[segment[:, rows, None], segment[:, None, :]] & (student.group >= 0)[:, None, :]
    if causal:
        position = torch.arange(key.shape[2], device=key.device)
        visible = visible & (position[rows, None] >= position)
    return score.masked_fill(~visible[:, None], torch.finfo(score.dtype).min), visible[:, None]


def _in_row_blocks(
    block: Callable[[slice, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    student: StudentAttention,
    target: torch.Tensor,
) -> torch.Tensor:
    """Concatenate block(rows, query, key, target) along the last axis; the backward pass recomputes blocks."""
    length = student.query.shape[2]
    if length <= 2 * _ROWS_PER_BLOCK:  # too short for the memory to matter; recomputing takes a third more time
        return block(slice(0, length), student.query, student.key, target)
    blocks = [
        checkpoint(block, rows, student.query, student.key, target, use_reentrant=False) for rows in _row_blocks(length)
    ]
    return torch.cat(blocks, dim=-1)


def _row_log_sum_exp(student: StudentAttention, table: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """Log-sum-exp of each row's visible scores, [B, h, L]; 0 where a row sees nothing."""
    return _RowLogSumExp.apply(student.query, student.key, student, table, causal)


class _RowLogSumExp(torch.autograd.Function):
    """In blocks of rows, forward and backward.

    Uses softmax, whose exponentials are several times faster on a CPU than those of logsumexp.
    """

    @staticmethod
    def forward(ctx, query, key, student, table, causal):
        ctx.save_for_backward(query, key)
        ctx.student = student
        ctx.table = table
        ctx.causal = causal
        parts = []
        for rows in _row_blocks(query.shape[2]):
            score, visible = _block_scores(student, table, rows, query, key, causal)
            # The largest weight is exp(largest score - log-sum-exp).
            log_sum_exp = score.amax(-1) - score.softmax(-1).amax(-1).log()
            parts.append(torch.where(visible.any(-1), log_sum_exp, 0.0))
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx, gradient_BhL):
        query, key = ctx.saved_tensors
        query_gradient = torch.empty_like(query)
        key_gradient = torch.zeros_like(key)
        for rows in _row_blocks(query.shape[2]):
            score, visible = _block_scores(ctx.student, ctx.table, rows, query, key, ctx.causal)
            upstream = torch.where(visible.any(-1), gradient_BhL[:, :, rows] * ctx.student.scaling, 0.0)
            weight = upstream[..., None] * score.softmax(-1)
            query_gradient[:, :, rows] = weight @ key
            key_gradient += weight.transpose(2, 3) @ query[:, :, rows]
        return query_gradient, key_gradient, None, None, None


def _row_blocks(length: int) -> list[slice]:
    return [slice(start, min(start + _ROWS_PER_BLOCK, length)) for start in range(0, length, _ROWS_PER_BLOCK)]


def _column_mass(student: StudentAttention, table: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
    """Attention that each token receives from the valid rows in the causal map, [B, h, L]."""

    def block(rows: slice, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        prob = _block_scores(student, table, rows, query, key, causal=True)[0].softmax(-1)
        return torch.where(valid_BL[:, None, rows, None], prob, 0.0).sum(2)

    total = student.query.new_zeros(student.query.shape[:3])
    for rows in _row_blocks(student.query.shape[2]):
        total = total + checkpoint(block, rows, student.query, student.key, use_reentrant=False)
    return total


def _masked_log_sum_exp(score: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp over visible columns; 0 for none."""
    return torch.where(visible.any(-1), score.masked_fill(~visible, torch.finfo(score.dtype).min).logsumexp(-1), 0.0)
