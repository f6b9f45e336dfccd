"""Alignment objectives: how far a student's attention is from a teacher's, with no aligned L x L map of the student ever built.

The student's *virtual* map is softmax(Q K^T / sqrt(d)) over prompt, chosen and rejected together, without a causal mask; it is only
aligned, never used in the forward pass (our reconstruction; the idea follows VIRT, arXiv 2112.04195).  The teacher's map A is over
groups (rm_methods.interaction.alignment).  A group's row goes to each of its student tokens, and its column mass is shared out evenly
among them, which gives a distribution over student tokens for every student token.  For token i of group u

    KL_i = sum_v A[u,v] log(A[u,v] / |v|) + logsumexp_j(s_ij) - sum_v A[u,v] q_i . mean_{j in v}(k_j) / sqrt(d).

The last sum is bilinear in pooled queries and keys, so all that is needed of the L x L scores is the log-sum-exp of each row, which is
computed in row blocks and recomputed in the backward pass: beside the teacher's G x G map, memory grows linearly with length.

Shapes: B pairs, h heads, L student tokens (padded), G groups (padded), d head size.  All sums are in fp32 or wider.
"""

from __future__ import annotations

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
        value: as key, or None where the objective does not use it.
        scaling: of the scores, usually d ** -0.5.
        group: int64 [B, L], group of each token, -1 for padding and for tokens outside the text.
        segment: int64 [B, L], PROMPT, CHOSEN or REJECTED for every token, also those outside the text; -1 for padding.
        read: int64 [B, 2], place of the tokens that the rewards of chosen and rejected are read from.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor | None
    scaling: float
    group: torch.Tensor
    segment: torch.Tensor
    read: torch.Tensor


@dataclass
class TeacherAttention:
    """A teacher's view of the same pairs, over groups.

    Attributes:
        map: [B, G, G], rows are distributions over the pair's groups (zero at padding), both orders averaged; None for `relations`.
        segment: int64 [B, G], -1 at padding.
        vectors: for `relations`: queries, keys and values pooled over groups, each [B, G, width]; else None.
    """

    map: torch.Tensor | None
    segment: torch.Tensor
    vectors: tuple[torch.Tensor, ...] | None = None


def visible_segments(scope: str) -> list[list[bool]]:
    """Which column segments a row segment is compared over: [row][column], in the order prompt, chosen, rejected.

    intra: a prompt row sees everything, a response row the prompt and itself.  inter: a response row sees the other response only,
    and prompt rows do not count.  joint: everything.
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
        causal: compare with the map that the student really uses: a token sees the prompt's and its own response's tokens up to itself
            (scope is then "intra" by nature).

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
    """KL between how much attention each group receives from teacher and student, in each sequence [prompt | response], [B].

    The student's map is the causal one that it really uses; the teacher's block is bidirectional.  Both are renormalized over the
    sequence's text, rows are averaged, and the two sequences are averaged.
    """
    total = 0.0
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
    """KL of the row that makes the reward: the student's last token against the mean of the teacher's rows of that response, [B].

    Columns are the prompt's and the response's text; mean over heads and over the two responses.
    """
    total = 0.0
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


def averaged_row_kl(student: StudentAttention, teacher: TeacherAttention, scope: str = "joint") -> torch.Tensor:
    """KL(teacher || student) of attention rows over groups, the student's probabilities averaged over heads first, [B].

    Weaker than `row_kl`, which asks every head to follow the teacher, and slower: the average of softmaxes is not bilinear, so the
    student's rows are computed and pooled row block by row block.
    """

    return _over_pooled_rows(student, teacher, scope, _kl)


def virt(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """Squared distance of the inter blocks, as in VIRT (arXiv 2112.04195), summed over columns, mean over response rows, [B].

    Blocks are renormalized per row and head-averaged; the student's are pooled to groups row block by row block.
    """
    return _over_pooled_rows(student, teacher, "inter", lambda wanted, pooled: (pooled - wanted).square().sum(-1))


def _over_pooled_rows(student: StudentAttention, teacher: TeacherAttention, scope: str, distance) -> torch.Tensor:
    """Mean over rows of distance(teacher's row, student's head-averaged row), both [B, rows, G]."""
    table = torch.tensor(visible_segments(scope), device=student.query.device)
    target_BGG, has_row_BG = _restricted(teacher, table)
    valid_BL, group_BL = _rows(student, has_row_BG)
    groups = teacher.segment.shape[1]

    def block(rows: slice, query, key, target):
        prob_BRL = (
            _block_scores(student, table, rows, query, key)[0].softmax(-1).mean(1) * (student.group >= 0)[:, None]
        )
        column_BRL = student.group.clamp(min=0)[:, None].expand_as(prob_BRL)
        pooled = prob_BRL.new_zeros(*prob_BRL.shape[:2], groups).scatter_add(2, column_BRL, prob_BRL)
        wanted = target.gather(1, group_BL[:, rows, None].expand(-1, -1, groups))
        return distance(wanted, pooled)

    distance_BL = _in_row_blocks(block, student, target_BGG)
    return _mean_over_rows(distance_BL[:, None], valid_BL)


def relations(student: StudentAttention, teacher: TeacherAttention, heads: int) -> torch.Tensor:
    """MiniLMv2 relations (arXiv 2012.15828): KL of softmax(x x^T / sqrt(d)) for queries, keys and values, mean over relation heads, [B].

    Vectors are pooled to groups first, heads are concatenated and cut again into `heads` relation heads, the number of both models.
    """
    groups = teacher.segment.shape[1]
    valid_BG = (teacher.segment >= 0) & (_rows_per_group(student, groups) > 0)
    total = 0.0
    for own, target in zip((student.query, student.key, student.value), teacher.vectors, strict=True):
        _, pooled = _pool(own, student.group, groups)
        mine = _relation_heads(pooled.transpose(1, 2).flatten(2), heads)
        theirs = _relation_heads(target.to(mine.dtype), heads)
        total = total + _relation_kl(mine, theirs, valid_BG)
    return total / 3


def _relation_heads(x_BGF: torch.Tensor, heads: int) -> torch.Tensor:
    return x_BGF.unflatten(-1, (heads, -1)).transpose(1, 2)


def _relation_kl(mine: torch.Tensor, theirs: torch.Tensor, valid_BG: torch.Tensor) -> torch.Tensor:
    def block(start: int, mine, theirs):
        stop = start + _ROWS_PER_BLOCK
        rows = []
        for x in (theirs, mine):
            score = x[:, :, start:stop] @ x.transpose(2, 3) * x.shape[-1] ** -0.5
            rows.append(score.masked_fill(~valid_BG[:, None, None], torch.finfo(score.dtype).min).log_softmax(-1))
        return torch.where(valid_BG[:, None, None], rows[0].exp() * (rows[0] - rows[1]), 0.0).sum(-1).mean(1)

    starts = range(0, mine.shape[2], _ROWS_PER_BLOCK)
    kl_BG = torch.cat([checkpoint(block, start, mine, theirs, use_reentrant=False) for start in starts], dim=1)
    return torch.where(valid_BG, kl_BG, 0.0).sum(-1) / valid_BG.sum(-1).clamp(min=1)


def _causal_row_kl(student: StudentAttention, teacher: TeacherAttention) -> torch.Tensor:
    """Row KL against the student's own causal map.

    The teacher's groups behind the token's own are dropped; the own group's mass goes to its tokens up to the row's own.
    """
    table = torch.tensor(visible_segments("intra"), device=student.query.device)
    groups = teacher.segment.shape[1]
    before = torch.ones(groups, groups, dtype=torch.bool, device=table.device).tril()
    target_BGG, has_row_BG = _restricted(teacher, table, before)
    valid_BL, group_BL = _rows(student, has_row_BG)
    size_BG, mean_key_BhGd = _pool(student.key, student.group, groups)
    # Groups come in the order of the text, so sums over a group's tokens up to a row's own are differences of running sums.
    in_text_BL = student.group >= 0
    before_group_BG = size_BG.cumsum(1) - size_BG
    count_BL = in_text_BL.cumsum(1) - before_group_BG.gather(1, group_BL)
    key_in_text = student.key * in_text_BL[:, None, :, None]
    sum_BhGd = mean_key_BhGd * size_BG[:, None, :, None]
    own_sum = key_in_text.cumsum(2) - _take(sum_BhGd.cumsum(2) - sum_BhGd, group_BL)
    count_BL = count_BL.clamp(min=1)
    own_mean = own_sum / count_BL[:, None, :, None]
    diagonal_BG = target_BGG.diagonal(dim1=1, dim2=2)
    earlier_BGG = target_BGG - torch.diag_embed(diagonal_BG)
    expected = _take(_expected_keys(earlier_BGG, mean_key_BhGd), group_BL)
    own_mass_BL = diagonal_BG.gather(1, group_BL)
    expected = expected + own_mass_BL[:, None, :, None] * own_mean
    match_BhL = (student.query * expected).sum(-1) * student.scaling
    earlier_entropy = (
        torch.special.xlogy(earlier_BGG, earlier_BGG / size_BG.clamp(min=1)[:, None]).sum(-1).gather(1, group_BL)
    )
    own_entropy = torch.special.xlogy(own_mass_BL, own_mass_BL / count_BL)
    lse_BhL = _row_log_sum_exp(student, table, causal=True)
    return _mean_over_rows((earlier_entropy + own_entropy)[:, None] + lse_BhL - match_BhL, valid_BL)


def _kl(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(wanted || found) over the last axis; entries where nothing is wanted count nothing and get no gradient."""
    return (torch.special.xlogy(wanted, wanted) - wanted * found.clamp(min=torch.finfo(found.dtype).tiny).log()).sum(-1)


def _restricted(teacher: TeacherAttention, table: torch.Tensor, pattern: torch.Tensor | None = None):
    """Teacher rows over the visible columns, renormalized [B, G, G], and which rows have any [B, G]."""
    segment = teacher.segment
    visible = table[segment.clamp(min=0)[:, :, None], segment.clamp(min=0)[:, None, :]]
    visible = visible & (segment >= 0)[:, :, None] & (segment >= 0)[:, None, :]
    if pattern is not None:
        visible = visible & pattern
    kept = teacher.map * visible
    mass = kept.sum(-1, keepdim=True)
    has_row = mass[..., 0] > 1e-12
    return kept / mass.clamp(min=1e-12), has_row


def _pool(x_BhLd: torch.Tensor, group_BL: torch.Tensor, groups: int):
    """Tokens per group [B, G], and their mean [B, h, G, d]."""
    batch, heads, _, size = x_BhLd.shape
    inside = (group_BL >= 0).to(x_BhLd.dtype)
    count = x_BhLd.new_zeros(batch, groups).scatter_add(1, group_BL.clamp(min=0), inside)
    index = group_BL.clamp(min=0)[:, None, :, None].expand(-1, heads, -1, size)
    total = x_BhLd.new_zeros(batch, heads, groups, size).scatter_add(2, index, x_BhLd * inside[:, None, :, None])
    return count, total / count.clamp(min=1)[:, None, :, None]


def _expected_keys(map_BGG: torch.Tensor, mean_key_BhGd: torch.Tensor) -> torch.Tensor:
    """The mean key that each row of a map looks at, [B, h, G, d]."""
    # Not a product with the map's heads expanded: that would copy the map for each head and keep it for the backward pass.
    return torch.einsum("bgv,bhvd->bhgd", map_BGG, mean_key_BhGd)


def _rows_per_group(student: StudentAttention, groups: int) -> torch.Tensor:
    inside = (student.group >= 0).to(student.query.dtype)
    return inside.new_zeros(len(inside), groups).scatter_add(1, student.group.clamp(min=0), inside)


def _rows(student: StudentAttention, has_row_BG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens are rows of the objective [B, L], and their groups (0 where there is none)."""
    group_BL = student.group.clamp(min=0)
    return (student.group >= 0) & has_row_BG.gather(1, group_BL), group_BL


def _take(x_BhGd: torch.Tensor, index_BL: torch.Tensor) -> torch.Tensor:
    return x_BhGd.gather(2, index_BL[:, None, :, None].expand(-1, x_BhGd.shape[1], -1, x_BhGd.shape[-1]))


def _mean_over_rows(value_BhL: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
    per_row = torch.where(valid_BL[:, None], value_BhL, 0.0).mean(1)
    return per_row.sum(-1) / valid_BL.sum(-1).clamp(min=1)


def _block_scores(student: StudentAttention, table, rows: slice, query, key, causal: bool = False):
    """Scores of some rows against all columns [B, h, rows, L], the lowest number where a row does not look, and where it looks.

    Not minus infinity: a row that sees nothing (padding) would be NaN, in the backward pass even where it is left out afterwards.
    """
    score = query[:, :, rows] @ key.transpose(2, 3) * student.scaling
    segment = student.segment.clamp(min=0)
    visible = table[segment[:, rows, None], segment[:, None, :]] & (student.group >= 0)[:, None, :]
    if causal:
        place = torch.arange(key.shape[2], device=key.device)
        visible = visible & (place[rows, None] >= place)
    return score.masked_fill(~visible[:, None], torch.finfo(score.dtype).min), visible[:, None]


def _in_row_blocks(block, student: StudentAttention, *extra: torch.Tensor) -> torch.Tensor:
    """Concatenate block(rows, query, key, *extra) along the rows (the last axis); blocks are recomputed in the backward pass."""
    blocks = _row_blocks(student.query.shape[2])
    return torch.cat(
        [checkpoint(block, rows, student.query, student.key, *extra, use_reentrant=False) for rows in blocks], dim=-1
    )


def _row_log_sum_exp(student: StudentAttention, table: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """Log-sum-exp of each row's visible scores, [B, h, L]; 0 where a row sees nothing."""
    return _RowLogSumExp.apply(student.query, student.key, student, table, causal)


class _RowLogSumExp(torch.autograd.Function):
    """Row block by row block in both directions.  By softmax, whose exponentials are several times faster on a CPU than logsumexp's."""

    @staticmethod
    def forward(ctx, query, key, student, table, causal):
        ctx.save_for_backward(query, key)
        ctx.student, ctx.table, ctx.causal = student, table, causal
        parts = []
        for rows in _row_blocks(query.shape[2]):
            score, visible = _block_scores(student, table, rows, query, key, causal)
            # The largest weight is exp(largest score - log-sum-exp).
            found = score.amax(-1) - score.softmax(-1).amax(-1).log()
            parts.append(torch.where(visible.any(-1), found, 0.0))
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx, gradient_BhL):
        query, key = ctx.saved_tensors
        query_gradient, key_gradient = torch.empty_like(query), torch.zeros_like(key)
        for rows in _row_blocks(query.shape[2]):
            score, visible = _block_scores(ctx.student, ctx.table, rows, query, key, ctx.causal)
            weight = torch.where(visible.any(-1), gradient_BhL[:, :, rows] * ctx.student.scaling, 0.0)[
                ..., None
            ] * score.softmax(-1)
            query_gradient[:, :, rows] = weight @ key
            key_gradient += weight.transpose(2, 3) @ query[:, :, rows]
        return query_gradient, key_gradient, None, None, None


def _row_blocks(length: int) -> list[slice]:
    return [slice(start, min(start + _ROWS_PER_BLOCK, length)) for start in range(0, length, _ROWS_PER_BLOCK)]


def _column_mass(student: StudentAttention, table: torch.Tensor, valid_BL: torch.Tensor) -> torch.Tensor:
    """Attention that each token receives from the valid rows in the causal map, [B, h, L]."""

    def block(rows, query, key):
        prob = _block_scores(student, table, rows, query, key, causal=True)[0].softmax(-1)
        return torch.where(valid_BL[:, None, rows, None], prob, 0.0).sum(2)

    total = 0.0
    for rows in _row_blocks(student.query.shape[2]):
        total = total + checkpoint(block, rows, student.query, student.key, use_reentrant=False)
    return total


def _masked_log_sum_exp(score: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp over visible columns; 0 where there is none."""
    return torch.where(visible.any(-1), score.masked_fill(~visible, torch.finfo(score.dtype).min).logsumexp(-1), 0.0)
