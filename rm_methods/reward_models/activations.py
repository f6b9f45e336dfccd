"""Memory that a decoder's training keeps for its backward pass, by formula: for `rm-methods plan`, and for the check
before a training on a CPU."""

from __future__ import annotations

# Kept for the backward pass in bf16 autocast, bytes per token and layer for each unit of width:
# performance/activation_memory.py.
_PER_HIDDEN, _PER_INTERMEDIATE, _PER_ATTENTION, _PER_HEAD, _CONSTANT = 26, 8, 10, 4, 8
_LAYER_INPUT = 4  # the residual stream is fp32


def kept_bytes(
    *, hidden: int, intermediate: int, attention: int, heads: int, layers: int, recomputed: bool = False
) -> int:
    """Bytes per token of a micro-batch, without temporary tensors and copies of weights.

    Args:
        hidden, intermediate, layers, heads: as in the model's configuration.
        attention: width of all query heads together.
        recomputed: with recomputed activations.
    """
    layer = _PER_HIDDEN * hidden + _PER_INTERMEDIATE * intermediate + _PER_ATTENTION * attention
    layer += _PER_HEAD * heads + _CONSTANT
    return layers * _LAYER_INPUT * hidden + layer if recomputed else layers * layer


def kept_bytes_of(config, recomputed: bool = False) -> int | None:
    """`kept_bytes` of a model with this transformers configuration; None if it does not give the sizes."""
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
        heads=heads,
        layers=layers,
        recomputed=recomputed,
    )
