"""Attention in the packed layout: each prompt attends to itself, each response to its prompt and itself.

Every token is a query once.

In the packed layout (rm_methods.reward_models.layouts) a prompt occurs once for all its responses and nothing is
padded.  Only attention needs to know which token sees which.  The function here is registered with the attention
interface of transformers, so it works for every model that uses this interface.  It puts prompts and responses of
similar length into buckets (`Regrouping`) and computes one after the other: on a CPU by matrix products of blocks of
queries (`_BlockProducts`), elsewhere by transformers' kernel, with a mask of responses x (prompt + response).

Shapes: T packed tokens; G groups (prompts or responses) of a bucket with Q queries and K keys; q queries of a block, k
keys that they see; h heads, n key heads, d head size; Z places in groups, F = h * d.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rm_methods.reward_models.activations import BLOCK, KEPT_LENGTH
from rm_methods.reward_models.attention_capture import AttentionCapture
from rm_methods.reward_models.layouts import AttentionMap, Regrouping

KERNEL = "sdpa"
NAME = "packed_sdpa"

# On a CPU. Another bucket costs about as much as padded scores of this many multiply-adds (docs/speed.md).
_BUCKET_COST = 6_000_000

_IS_LATER = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu(1)


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
    _, heads, _, size = query_1hTd.shape
    by_blocks = _multiplies_blocks(query_1hTd, options)
    regrouping = attention_map.regrouping(_BUCKET_COST // (heads * size) if by_blocks else None)
    queries = _grouped(query_1hTd, _Gather, regrouping)
    keys = _grouped(key_1hTd, _KeyGather, regrouping)
    values = _grouped(value_1hTd, _KeyGather, regrouping)
    outputs = []
    for bucket, query_GhQd, key_GnKd, value_GnKd in zip(regrouping.buckets, queries, keys, values, strict=True):
        if by_blocks:
            output_GQhd = block_products(
                query_GhQd, key_GnKd, value_GnKd, bucket.key_is_padding, options.get("scaling")
            )
        else:
            bias = bucket.bias(query_GhQd.dtype)
            output_GQhd = ALL_ATTENTION_FUNCTIONS[KERNEL](module, query_GhQd, key_GnKd, value_GnKd, bias, **options)[0]
        outputs.append(output_GQhd.flatten(0, 1).flatten(1))
    return _Read.apply(torch.cat(outputs), regrouping).unflatten(1, (heads, -1))[None], None


# No mask function is registered beside it: transformers then builds no mask.
ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)


def _grouped(x_1hTd: torch.Tensor, gather, regrouping: Regrouping) -> list[torch.Tensor]:
    """Tokens as [G, h, Q or K, d], a tensor for each bucket."""
    _, heads, count, size = x_1hTd.shape
    x_ZF = gather.apply(x_1hTd[0].transpose(0, 1).reshape(count, heads * size), regrouping)
    tokens = [bucket.queries if gather is _Gather else bucket.keys for bucket in regrouping.buckets]
    parts = x_ZF.split([places.numel() for places in tokens])
    return [
        part_ZF.view(*places.shape, heads, size).transpose(1, 2) for part_ZF, places in zip(parts, tokens, strict=True)
    ]


# torch's own backward of a gather scatters one token after the other on a CPU.  These gather in both directions.


class _KeyGather(torch.autograd.Function):
    """Tokens [T, F] to key places [Z, F]; a prompt token's gradient sums over its 1 + N places."""

    @staticmethod
    def forward(ctx, x_TF, regrouping):
        ctx.regrouping = regrouping
        return x_TF.index_select(0, regrouping.key_tokens)

    @staticmethod
    def backward(ctx, gradient_ZF):
        total_TF = gradient_ZF.index_select(0, ctx.regrouping.key_places)
        for places in ctx.regrouping.prompt_key_places:
            total_TF[: len(places)] += gradient_ZF.index_select(0, places)
        return total_TF, None


class _Gather(torch.autograd.Function):
    """Tokens [T, F] to query places [Z, F]; the gradient at padding is zero."""

    @staticmethod
    def forward(ctx, x_TF, regrouping):
        ctx.regrouping = regrouping
        return x_TF.index_select(0, regrouping.query_tokens)

    @staticmethod
    def backward(ctx, gradient_ZF):
        return gradient_ZF.index_select(0, ctx.regrouping.query_places), None


class _Read(torch.autograd.Function):
    """Query places [Z, F] to tokens [T, F]; values at padding are not read and get no gradient."""

    @staticmethod
    def forward(ctx, x_ZF, regrouping):
        ctx.regrouping = regrouping
        return x_ZF.index_select(0, regrouping.query_places)

    @staticmethod
    def backward(ctx, gradient_TF):
        gradient_ZF = gradient_TF.index_select(0, ctx.regrouping.query_tokens)
        if not ctx.regrouping.has_padding:
            return gradient_ZF, None
        return gradient_ZF.masked_fill_(~ctx.regrouping.query_is_token[:, None], 0), None


def tokens_of_pairs(x_1hTd: torch.Tensor, attention_map: AttentionMap) -> torch.Tensor:
    """Packed tokens as [B, h, P + N * Q, d]: items as [prompt | response 1 | ... | response N], each part padded."""
    parts = _grouped(x_1hTd, _Gather, attention_map.regrouping())
    responses = parts[-1]
    items = len(attention_map.prompt_lengths)
    _, heads, length, size = responses.shape
    responses = responses.reshape(items, -1, heads, length, size).transpose(1, 2).flatten(2, 3)
    return torch.cat([*parts[:-1], responses], dim=2)


def _attend(module, query, key, value, mask, **options):
    """Attention of plain rows."""
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if mask is None and is_causal and _multiplies_blocks(query, options):
        return block_products(query, key, value, None, options.get("scaling")), None
    return ALL_ATTENTION_FUNCTIONS[KERNEL](module, query, key, value, mask, **options)


def _multiplies_blocks(query: torch.Tensor, options: dict) -> bool:
    """Whether `block_products` computes the attention.

    Its definition has no dropout and no other option that changes weights.  Those go to the kernel of transformers,
    which follows them or refuses them.
    """
    changes_weights = any(options.get(name) is not None for name in ("softcap", "position_bias"))
    return query.device.type == "cpu" and not options.get("dropout") and not changes_weights


def block_products(
    query_GhQd: torch.Tensor,
    key_GnKd: torch.Tensor,
    value_GnKd: torch.Tensor,
    key_is_padding_GK: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Causal attention by matrix products of blocks of queries; equals `plain_attention` up to rounding.

    On a CPU it is faster than torch's fused kernel for the lengths of preference pairs (docs/speed.md).  Its memory is
    linear in the length.

    Args:
        query_GhQd: the last Q of the K tokens of each group; any float dtype.
        key_GnKd, value_GnKd: n divides h; heads that share a key head become its queries.  The head size of the values
            may be another.
        key_is_padding_GK: bool, True at keys that no query sees; not among the last Q; or None.
        scaling: of the scores; None is d ** -0.5.

    Returns:
        [G, Q, h, d], with the head size of the values.
    """
    scaling = query_GhQd.shape[-1] ** -0.5 if scaling is None else scaling
    return _BlockProducts.apply(query_GhQd, key_GnKd, value_GnKd, key_is_padding_GK, scaling)


def plain_attention(
    query_GhQd: torch.Tensor,
    key_GnKd: torch.Tensor,
    value_GnKd: torch.Tensor,
    key_is_padding_GK: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """The definition of `block_products`; same arguments, memory for all scores at once."""
    repeats = query_GhQd.shape[1] // key_GnKd.shape[1]
    key_GhKd, value_GhKd = (x.repeat_interleave(repeats, dim=1) for x in (key_GnKd, value_GnKd))
    scores_GhQK = query_GhQd @ key_GhKd.transpose(2, 3) * scaling
    queries, keys = scores_GhQK.shape[2:]
    is_later_QK = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    scores_GhQK = scores_GhQK.masked_fill(is_later_QK, -torch.inf)
    if key_is_padding_GK is not None:
        scores_GhQK = scores_GhQK.masked_fill(key_is_padding_GK[:, None, None], -torch.inf)
    return (scores_GhQK.softmax(-1) @ value_GhKd).transpose(1, 2)


class _BlockProducts(torch.autograd.Function):
    """Below, M = G * n products at once, each of B = h / n * q query rows."""

    @staticmethod
    def forward(ctx, query_GhQd, key_GnKd, value_GnKd, key_is_padding_GK, scaling):
        groups, heads, queries, _ = query_GhQd.shape
        key_heads, keys = key_GnKd.shape[1:3]
        key_MKd, value_MKd = (x.reshape(groups * key_heads, keys, x.shape[3]) for x in (key_GnKd, value_GnKd))
        ctx.shape = groups, key_heads, heads // key_heads, queries, keys
        ctx.scaling = scaling
        ctx.bias_M1K = _padding_bias(key_is_padding_GK, key_MKd)
        keeps = any(ctx.needs_input_grad) and keys <= KEPT_LENGTH
        kept = []
        output_GhQd = query_GhQd.new_empty(groups, queries, heads, value_MKd.shape[2]).transpose(1, 2)
        for start in range(0, queries, BLOCK):
            weights_MBk = _weights(ctx, _block_rows(ctx, query_GhQd, start), key_MKd, start)
            output_MBd = weights_MBk @ value_MKd[:, : weights_MBk.shape[2]]
            output_GhQd[:, :, start : start + BLOCK] = _by_head(ctx, output_MBd)
            if keeps:
                kept.append(weights_MBk)
        # Tensors kept in another way would outlive the backward pass, and recomputed activations would not drop them.
        ctx.save_for_backward(query_GhQd, key_MKd, value_MKd, *kept)
        return output_GhQd.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_GQhd):
        query_GhQd, key_MKd, value_MKd, *kept = ctx.saved_tensors
        gradient_GhQd = gradient_GQhd.transpose(1, 2)
        query_gradient_GhQd = torch.empty_like(query_GhQd)
        key_gradient_MKd = torch.empty_like(key_MKd)
        value_gradient_MKd = torch.empty_like(value_MKd)
        starts = range(0, query_GhQd.shape[2], BLOCK)
        # The last block sees all keys, so it comes first and needs no zeros to add to.
        for number, start in reversed(list(enumerate(starts))):
            add = torch.Tensor.copy_ if start == starts[-1] else torch.Tensor.add_
            query_MBd = _block_rows(ctx, query_GhQd, start)
            weights_MBk = kept[number] if kept else _weights(ctx, query_MBd, key_MKd, start)
            seen = weights_MBk.shape[2]
            gradient_MBd = _block_rows(ctx, gradient_GhQd, start)
            add(value_gradient_MKd[:, :seen], weights_MBk.transpose(1, 2) @ gradient_MBd)
            weights_gradient_MBk = gradient_MBd @ value_MKd[:, :seen].transpose(1, 2)
            scores_gradient_MBk = torch.ops.aten._softmax_backward_data(
                weights_gradient_MBk, weights_MBk, -1, weights_MBk.dtype
            )
            query_gradient_MBd = (scores_gradient_MBk @ key_MKd[:, :seen]).mul_(ctx.scaling)
            query_gradient_GhQd[:, :, start : start + BLOCK] = _by_head(ctx, query_gradient_MBd)
            key_gradient_MBd = (scores_gradient_MBk.transpose(1, 2) @ query_MBd).mul_(ctx.scaling)
            add(key_gradient_MKd[:, :seen], key_gradient_MBd)
        groups, key_heads, _, _, keys = ctx.shape
        key_shape = (groups, key_heads, keys, -1)
        return query_gradient_GhQd, key_gradient_MKd.view(key_shape), value_gradient_MKd.view(key_shape), None, None


def _padding_bias(key_is_padding_GK: torch.Tensor | None, key_MKd: torch.Tensor) -> torch.Tensor:
    """Additive mask [M, 1, K] or [1, 1, 1]."""
    zero = key_MKd.new_zeros(1, 1, 1)
    if key_is_padding_GK is None:
        return zero
    groups, keys = key_is_padding_GK.shape
    bias_GK = zero.expand(groups, 1, keys).masked_fill(key_is_padding_GK[:, None], torch.finfo(zero.dtype).min)
    return bias_GK.repeat_interleave(len(key_MKd) // groups, dim=0)


def _weights(ctx, query_MBd: torch.Tensor, key_MKd: torch.Tensor, start: int) -> torch.Tensor:
    """The attention weights [M, B, k] of the block of queries that begins at `start`."""
    _, _, repeats, queries, keys = ctx.shape
    length = query_MBd.shape[1] // repeats
    seen = keys - queries + start + length
    bias_M1k = ctx.bias_M1K[:, :, :seen]
    scores_MBk = torch.baddbmm(bias_M1k, query_MBd, key_MKd[:, :seen].transpose(1, 2), alpha=ctx.scaling)
    within_Mrqq = scores_MBk.view(len(key_MKd), repeats, length, seen)[:, :, :, seen - length :]
    within_Mrqq.masked_fill_(_IS_LATER[:length, :length], torch.finfo(scores_MBk.dtype).min)
    return scores_MBk.softmax(-1)


def _block_rows(ctx, x_GhQd: torch.Tensor, start: int) -> torch.Tensor:
    """The block of [G, h, Q, d] that begins at query `start`, as [M, B, d]."""
    groups, key_heads, repeats, _, _ = ctx.shape
    x_Ghqd = x_GhQd[:, :, start : start + BLOCK]
    return x_Ghqd.reshape(groups * key_heads, repeats * x_Ghqd.shape[2], x_Ghqd.shape[3])


def _by_head(ctx, x_MBd: torch.Tensor) -> torch.Tensor:
    """[M, B, d] as [G, h, q, d]."""
    groups, key_heads, repeats, _, _ = ctx.shape
    return x_MBd.view(groups, key_heads * repeats, -1, x_MBd.shape[2])
