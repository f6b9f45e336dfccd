"""Attention in the packed layout: each prompt attends to itself, each response to its prompt and itself.

Every token is a query once.

In the packed layout (rm_methods.reward_models.layouts) a prompt occurs once for all its responses and nothing is
padded.  Only attention needs to know which token sees which.  The function here is registered with the attention
interface of transformers, so it works for every model that uses this interface.  It calls their kernel twice, for
prompts and for responses, and no mask is larger than responses x (prompt + response).

Shapes: T packed tokens; I items with prompts of padded length P; S sequences with responses of padded length Q; h
heads, d head size; Z places in groups, F = h * d.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rm_methods.reward_models.attention_capture import AttentionCapture
from rm_methods.reward_models.layouts import AttentionMap

KERNEL = "sdpa"
NAME = "packed_sdpa"

# On a CPU, bf16 matrix products of whole groups are about twice as fast as torch's fused kernel while the scores fit
# into the cache (docs/speed.md). In keys; groups of a micro-batch this long were still faster than with the fused
# kernel and a mask.
_CPU_UNFUSED_LENGTH = 1024


def packed_attention(
    module,
    query_1hTd,
    key_1hTd,
    value_1hTd,
    attention_mask,
    attention_map: AttentionMap | None = None,
    capture: AttentionCapture | None = None,
    **options,
):
    """The attention of one layer; signature and result follow the attention interface of transformers.

    Args:
        attention_map: of the batch (`SequenceBatch.attention_map`); None for plain rows, which attend causally as
            usual.
        capture: gets the queries and keys of the layers that it asks for.

    Returns:
        (output [1, T, h, d], None).
    """
    if capture is not None:
        capture.offer(module, query_1hTd, key_1hTd, value_1hTd, options.get("scaling"))
    device = query_1hTd.device.type
    if torch.is_autocast_enabled(device):
        # Rotary embedding gives fp32; the kernel would cast anyway, after the gathering below.
        query_1hTd, key_1hTd, value_1hTd = (
            x.to(torch.get_autocast_dtype(device)) for x in (query_1hTd, key_1hTd, value_1hTd)
        )
    if attention_map is None:
        return _attend(module, query_1hTd, key_1hTd, value_1hTd, attention_mask, **options)
    attention_map.used = True
    query_prompts, query_responses = _grouped(query_1hTd, _queries, attention_map, attention_map.responses)
    (key_prompts, keys), (value_prompts, values) = (
        _grouped(x_1hTd, _KeyGather.apply, attention_map, attention_map.keys) for x_1hTd in (key_1hTd, value_1hTd)
    )
    outputs = []
    if attention_map.prompts.numel():
        outputs.append(_attend(module, query_prompts, key_prompts, value_prompts, None, **options)[0])
    bias = attention_map.bias(query_responses.dtype)
    outputs.append(_attend(module, query_responses, keys, values, bias, **options)[0])
    heads, size = outputs[0].shape[2:]
    out_ZF = torch.cat([output.reshape(-1, heads * size) for output in outputs])
    return _read(out_ZF, attention_map).view(1, -1, heads, size), None


# No mask function is registered beside it: transformers then builds no mask.
ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)


def _grouped(x_1hTd: torch.Tensor, gather, attention_map: AttentionMap, second: torch.Tensor) -> list[torch.Tensor]:
    """Tokens as [I, h, P, d] and [S, h, Q or P + Q, d]."""
    _, heads, count, size = x_1hTd.shape
    x_ZF = gather(x_1hTd[0].transpose(0, 1).reshape(count, heads * size), attention_map)
    groups = x_ZF.split([attention_map.prompts.numel(), second.numel()])
    shapes = (attention_map.prompts.shape, second.shape)
    return [g.view(*shape, heads, size).transpose(1, 2) for g, shape in zip(groups, shapes, strict=True)]


# torch's own backward of a gather scatters one token after the other on a CPU.  These gather in both directions.


class _KeyGather(torch.autograd.Function):
    """Tokens [T, F] to key places [I * P + S * (P + Q), F]; a prompt token's gradient sums over its 1 + N places."""

    @staticmethod
    def forward(ctx, x_TF, attention_map):
        ctx.map = attention_map
        return x_TF.index_select(0, torch.cat([attention_map.prompts.flatten(), attention_map.keys.flatten()]))

    @staticmethod
    def backward(ctx, gradient_ZF):
        total_TF = gradient_ZF.index_select(0, ctx.map.key_places)
        for places in ctx.map.prompt_key_places:
            total_TF[: len(places)] += gradient_ZF.index_select(0, places)
        return total_TF, None


class _Gather(torch.autograd.Function):
    """Rows [N, F] at `places` [M].

    The gradient of a row is that at its place in `back` [N], and zero where `counts` (bool [N]) is False.
    """

    @staticmethod
    def forward(ctx, x_NF, places, back, counts):
        ctx.back = back
        ctx.counts = counts
        return x_NF.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient_MF):
        gradient_NF = gradient_MF.index_select(0, ctx.back)
        return gradient_NF if ctx.counts is None else gradient_NF.masked_fill(~ctx.counts[:, None], 0), None, None, None


def _queries(x_TF: torch.Tensor, attention_map: AttentionMap) -> torch.Tensor:
    """Tokens [T, F] to query places [I * P + S * Q, F]."""
    return _Gather.apply(x_TF, attention_map.queries, attention_map.query_places, None)


def _read(x_ZF: torch.Tensor, attention_map: AttentionMap) -> torch.Tensor:
    """Query places [I * P + S * Q, F] to tokens [T, F]; values at padding are not read and get no gradient."""
    return _Gather.apply(x_ZF, attention_map.query_places, attention_map.queries, attention_map.query_is_token)


def tokens_of_pairs(x_1hTd: torch.Tensor, attention_map: AttentionMap) -> torch.Tensor:
    """Packed tokens as [B, h, P + N * Q, d]: items as [prompt | response 1 | ... | response N], each part padded."""
    prompts, responses = _grouped(x_1hTd, _queries, attention_map, attention_map.responses)
    items, heads, _, size = prompts.shape
    responses = responses.reshape(items, -1, heads, responses.shape[2], size).transpose(1, 2).flatten(2, 3)
    return torch.cat([prompts, responses], dim=2)


def _attend(module, query, key, value, bias, **options):
    short = key.shape[2] <= _CPU_UNFUSED_LENGTH
    if (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and short
        and (bias is None or bias.is_floating_point())
    ):
        return _attend_unfused(query, key, value, bias, **options)
    return ALL_ATTENTION_FUNCTIONS[KERNEL](module, query, key, value, bias, **options)


def _attend_unfused(query_ShQd, key_SkLd, value_SkLd, bias_S1QL, scaling=None, dropout=0.0, **options):
    """Attention by plain matrix products, causal without a bias; heads that share a key head become its queries."""
    rows, heads, length, size = query_ShQd.shape
    key_heads, key_length = key_SkLd.shape[1:3]
    groups = heads // key_heads
    if bias_S1QL is None:
        lowest = torch.finfo(query_ShQd.dtype).min
        bias_S1QL = (
            torch.full((length, key_length), lowest, dtype=query_ShQd.dtype).triu(1).expand(rows, 1, length, key_length)
        )
    bias = (
        bias_S1QL[:, :, None]
        .expand(rows, key_heads, groups, length, key_length)
        .reshape(rows * key_heads, groups * length, key_length)
    )
    query = query_ShQd.reshape(rows * key_heads, groups * length, size)
    key, value = (x.reshape(rows * key_heads, key_length, size) for x in (key_SkLd, value_SkLd))
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=size**-0.5 if scaling is None else scaling)
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ value).view(rows, heads, length, size).transpose(1, 2), None
