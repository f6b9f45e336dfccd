"""Attention by blocks of matrix products against its definition, and buckets against one dense mask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_methods.reward_models import packed_attention
from rm_methods.reward_models.layouts import AttentionMap, lay_out, token_positions
from rm_methods.reward_models.packed_attention import block_products, plain_attention
from rm_methods.reward_models.tokenization import TokenizedItem

SIZE = 8


def tensors(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


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
    monkeypatch.setattr(packed_attention, "_KEPT_LENGTH", kept)
    monkeypatch.setattr(packed_attention, "_BLOCK", block)
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
    inputs = tensors((1, 4, count, SIZE), (1, 2, count, SIZE), (1, 2, count, SIZE))

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
        saved = block_products(*inputs, None, None).grad_fn
        while not hasattr(saved, "kept"):
            saved = saved.next_functions[0][0]
        assert saved.kept == []
        kept.append(sum(tensor.numel() for tensor in saved.saved_tensors))
    assert kept[1] == 4 * kept[0]
