"""Attention by blocks of matrix products against its definition, and buckets against one dense mask."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rm_methods.reward_models import packed_attention
from rm_methods.reward_models.layouts import AttentionMap, lay_out, token_positions
from rm_methods.reward_models.packed_attention import block_products, plain_attention
from rm_methods.reward_models.tokenization import TokenizedItem

SIZE = 8


def tensors(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@contextmanager
def kept_for_backward():
    """The tensors that autograd keeps, in a list."""
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def with_gradients(attention, inputs, *options):
    """The output, and the gradients of its weighted sum."""
    for tensor in inputs:
        tensor.grad = None
    output = attention(*inputs, *options)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    (output * weights).sum().backward()
    return [output.detach(), *(tensor.grad.clone() for tensor in inputs)]


@pytest.mark.parametrize("kept", [0, 512])
@pytest.mark.parametrize("block", [1, 3, 128])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (4, 9), (1, 6)])
def test_blocks_equal_the_definition(monkeypatch, kept, block, heads, key_heads, queries, keys):
    monkeypatch.setattr(packed_attention, "KEPT_LENGTH", kept)
    monkeypatch.setattr(packed_attention, "BLOCK", block)
    inputs = tensors((3, heads, queries, SIZE), (3, key_heads, keys, SIZE), (3, key_heads, keys, SIZE))
    # The second group's prompt is padded by two keys, as far as keys come before the queries.
    is_padding = torch.zeros(3, keys, dtype=torch.bool)
    is_padding[1, max(0, keys - queries - 2) : keys - queries] = True
    for padding in (None, is_padding):
        blocks = with_gradients(block_products, inputs, padding, 0.3)
        definition = with_gradients(plain_attention, inputs, padding, 0.3)
        for actual, expected in zip(blocks, definition, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_blocks_of_the_real_size_equal_the_definition():
    inputs = tensors((1, 2, 1100, SIZE), (1, 1, 1300, SIZE), (1, 1, 1300, SIZE))
    blocks = with_gradients(block_products, inputs, None, 0.3)
    definition = with_gradients(plain_attention, inputs, None, 0.3)
    for actual, expected in zip(blocks, definition, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_default_scaling():
    inputs = tensors((1, 2, 4, SIZE), (1, 2, 4, SIZE), (1, 2, 4, SIZE))
    torch.testing.assert_close(
        block_products(*inputs, None, None), plain_attention(*inputs, None, SIZE**-0.5), rtol=0, atol=1e-12
    )


class Layer:
    """What the attention interface of transformers passes as the module."""

    is_causal = True
    num_key_value_groups = 2


LENGTHS = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.integers(1, 12), min_size=2, max_size=2)), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, bucket_cost=st.sampled_from([0, 400, 10**9]))
def test_buckets_equal_one_dense_mask(lengths, bucket_cost):
    """Attention of packed tokens, for any division into buckets: each token sees the earlier ones of its sequence."""
    items = [
        TokenizedItem(
            tuple(np.arange(prompt + response, dtype=np.int32) for response in responses),
            prompt,
            (False, False),
            (False, False),
        )
        for prompt, responses in lengths
    ]
    batch = lay_out(items, "packed", 0)
    count = batch.real_tokens
    sees = torch.zeros(count, count, dtype=torch.bool)
    for positions in token_positions(items, "packed"):
        for number, position in enumerate(positions):
            sees[position, positions[: number + 1]] = True
    inputs = tensors((1, 4, count, SIZE), (1, 2, count, SIZE), (1, 2, count, SIZE - 3))

    def packed(query, key, value):
        attention_map = AttentionMap(batch.attention_map.prompt_lengths, batch.attention_map.response_lengths)
        return packed_attention.packed_attention(
            Layer, query, key, value, None, attention_map=attention_map, scaling=0.3
        )[0]

    def dense(query, key, value):
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~sees, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "_BUCKET_COST", bucket_cost)
        actual = with_gradients(packed, inputs)
        # The other path, which GPUs take: transformers' kernel with a mask.
        patch.setattr(packed_attention, "block_products", None)
        patch.setattr(packed_attention, "_multiplies_blocks", lambda *_: False)
        kernel = with_gradients(packed, inputs)
    expected = with_gradients(dense, inputs)
    for ours, fused, dense_one in zip(actual, kernel, expected, strict=True):
        torch.testing.assert_close(ours, dense_one, rtol=0, atol=1e-11)
        torch.testing.assert_close(fused, dense_one, rtol=0, atol=1e-11)


def test_similar_lengths_share_a_bucket():
    attention_map = AttentionMap([100, 10, 98], [5, 4, 50, 51, 5, 5])
    shapes = [tuple(bucket.keys.shape) for bucket in attention_map.regrouping(700).buckets]
    # Prompts of 100 and 98 tokens, and of 10; responses after 100 or 98 tokens, and after 10.
    assert shapes == [(2, 100), (1, 10), (4, 105), (2, 61)]
    assert len(attention_map.regrouping(0).buckets) == 8  # two responses of equal shape share one
    assert len(attention_map.regrouping().buckets) == 2


def test_memory_of_a_long_text_is_linear():
    """What autograd keeps of attention: 4 times as much for 4 times the tokens, not 16 times."""
    kept = []
    for length in (1024, 4096):
        inputs = tensors((1, 2, length, SIZE), (1, 1, length, SIZE), (1, 1, length, SIZE), dtype=torch.float32)
        with kept_for_backward() as tensors_kept:
            block_products(*inputs, None, None)
        kept.append(sum(tensor.numel() for tensor in tensors_kept))
    assert kept[1] == 4 * kept[0]


def test_autograd_knows_every_tensor_that_is_kept(monkeypatch):
    """Then recomputed activations drop them, and the backward pass frees them."""
    right = packed_attention._weights
    weights = []

    def recorded(*arguments):
        weights.append(right(*arguments))
        return weights[-1]

    monkeypatch.setattr(packed_attention, "_weights", recorded)
    inputs = tensors((1, 2, 200, SIZE), (1, 1, 300, SIZE), (1, 1, 300, SIZE))
    with kept_for_backward() as kept:
        output = block_products(*inputs, None, None)
    assert len(weights) == 2
    addresses = {tensor.data_ptr() for tensor in kept}
    assert {tensor.data_ptr() for tensor in weights} <= addresses
    output.sum().backward()
    assert len(weights) == 2  # not computed again
    with torch.no_grad(), kept_for_backward() as kept:
        block_products(*inputs, None, None)
    assert not kept


def test_values_may_have_another_head_size():
    """As in the attention of DeepSeek V2 and V3."""
    inputs = tensors((2, 4, 5, SIZE), (2, 2, 7, SIZE), (2, 2, 7, SIZE - 3))
    blocks = with_gradients(block_products, inputs, None, 0.3)
    definition = with_gradients(plain_attention, inputs, None, 0.3)
    assert blocks[0].shape == (2, 5, 4, SIZE - 3)
    for actual, expected in zip(blocks, definition, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (Layer, {"is_causal": False}),
        (type("Encoder", (Layer,), {"is_causal": False}), {}),
        (Layer, {"position_bias": torch.arange(36.0, dtype=torch.float64).view(1, 1, 6, 6)}),
        (Layer, {"softcap": 5.0}),
        (Layer, {"dropout": 0.5}),
    ],
)
def test_options_that_blocks_do_not_follow_reach_the_kernel(monkeypatch, layer, options):
    inputs = tensors((2, 4, 6, SIZE), (2, 2, 6, SIZE), (2, 2, 6, SIZE))

    def attend(function):
        torch.manual_seed(0)
        return function(layer, *inputs, None, **options)[0]

    kernel = ALL_ATTENTION_FUNCTIONS[packed_attention.KERNEL]
    if "softcap" in options:
        with pytest.raises(ValueError, match="does not support `softcap`"):
            attend(packed_attention.packed_attention)
        return
    torch.testing.assert_close(attend(packed_attention.packed_attention), attend(kernel), rtol=0, atol=0)
