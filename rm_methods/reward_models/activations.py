"""Memory that a decoder's training keeps for its backward pass, by formula: for `rm-methods plan`, and for the check
before a training on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rm_methods.reward_models.tokenization import TokenizedItem

# Kept for the backward pass in bf16 autocast, bytes per token and layer for each unit of width:
# performance/activation_memory.py.  Half of the tokens are the prompt, whose keys and values each response copies.
_PER_HIDDEN, _PER_INTERMEDIATE, _PER_ATTENTION, _PER_KEY_VALUE, _PER_HEAD, _CONSTANT = 26, 8, 12, 8, 4, 8
_PER_KEY = 2  # on a CPU, for each key that a query sees
_LAYER_INPUT = 4  # the residual stream is fp32

# Attention on a CPU (rm_methods.reward_models.packed_attention).  Queries of a block: longer groups skip the keys that
# none of a block's queries sees.
BLOCK = 128
# In keys.  Attention weights of longer groups are computed again in the backward pass: their memory would grow with the
# square of the length, and up to here keeping them is faster.
KEPT_LENGTH = 512


def kept_bytes(
    *,
    hidden: int,
    intermediate: int,
    attention: int,
    key_value: int,
    heads: int,
    layers: int,
    recomputed: bool = False,
    keys: float = 0,
) -> int:
    """Bytes per token of a micro-batch, without temporary tensors and copies of weights.

    Args:
        hidden, intermediate, layers, heads: as in the model's configuration.
        attention: width of all query heads together.
        key_value: width of all key heads together, which is that of the values.
        recomputed: with recomputed activations.
        keys: attention weights that are kept, per token and head: `attention_weights` on a CPU; none with a fused
            kernel, as on a GPU.
    """
    layer = _PER_HIDDEN * hidden + _PER_INTERMEDIATE * intermediate + _PER_ATTENTION * attention
    layer += _PER_KEY_VALUE * key_value + _PER_HEAD * heads + _CONSTANT + round(_PER_KEY * keys * heads)
    return layers * _LAYER_INPUT * hidden + layer if recomputed else layers * layer


def attention_weights(items: Sequence[TokenizedItem], layout: str) -> int:
    """Attention weights of one head that a CPU keeps for the backward pass of a micro-batch of `items`.

    Longer groups than `KEPT_LENGTH` keep none.  The padding of buckets is not counted.

    Args:
        layout: "packed" or "plain".
    """
    if layout == "plain":
        rows = [length for item in items for length in item.lengths]
        groups = [(max(rows), max(rows))] * len(rows)
    else:
        groups = [(item.shared, item.shared) for item in items]
        groups += [(length - item.shared, length) for item in items for length in item.lengths]
    return sum(_weights(queries, keys) for queries, keys in groups if keys <= KEPT_LENGTH)


def _weights(queries: int, keys: int) -> int:
    """Attention weights of a group, whose last keys are its queries."""
    ends = [min(start + BLOCK, queries) for start in range(0, queries, BLOCK)]
    return sum((end - start) * (keys - queries + end) for start, end in zip([0, *ends], ends, strict=False))


def kept_bytes_of(config, recomputed: bool = False, keys: float = 0, frozen: int = 0) -> int | None:
    """`kept_bytes` of a model with this transformers configuration; None if it does not give the sizes.

    Args:
        frozen: number of lower layers that keep nothing.
    """
    config = config.get_text_config()
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    hidden, intermediate, heads, layers = (getattr(config, name, None) for name in names)
    if not (hidden and intermediate and heads and layers):
        return None
    head_size = getattr(config, "head_dim", None) or hidden // heads
    return kept_bytes(
        hidden=hidden,
        intermediate=intermediate,
        attention=heads * head_size,
        key_value=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        heads=heads,
        layers=layers - frozen,
        recomputed=recomputed,
        keys=keys,
    )
