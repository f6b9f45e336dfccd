"""Count what a training step keeps for its backward pass: the numbers behind the memory table of docs/scaling.md.

Usage (any machine, under a minute, no weights):
    python performance/activation_memory.py

Llama shapes of several sizes run one packed forward in bf16 autocast.  Every tensor that autograd saves is counted
once; weights and their bf16 copies are counted separately.  A least-squares fit over the shapes gives bytes per token
and layer as a sum of widths.  The residual shows whether the formula is complete.  Attention is torch's fused kernel,
as on a GPU.  Temporary tensors that no backward needs are not counted.
"""

from __future__ import annotations

import json

import numpy as np

# hidden, intermediate, heads, key-value heads (fewer than heads, as in every large Llama), head size
SHAPES = (
    (128, 352, 4, 2, 32), (192, 320, 8, 4, 32), (256, 352, 4, 2, 64), (256, 704, 8, 2, 32), (192, 704, 4, 2, 64),
    (256, 1024, 4, 2, 128), (320, 512, 8, 4, 64),
)  # fmt: skip
TERMS = ("hidden", "intermediate", "attention width", "key-value width", "heads", "constant")


def saved_bytes(shape: tuple[int, ...], layers: int, tokens: int, checkpointing: bool) -> tuple[int, int]:
    """Bytes saved for the backward pass of one packed forward of one pair: (activations, copies of weights).

    Half of the tokens are the prompt, which both responses share.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from rm_methods.reward_models.layouts import lay_out
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.reward_models.tokenization import TokenizedItem

    hidden, intermediate, heads, key_value_heads, head_size = shape
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_size,
        pad_token_id=0,
    )
    config.num_labels = 1
    model = RewardModel(
        AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa"), torch.bfloat16
    ).train()
    if checkpointing:
        model.recompute_activations()
    weight_addresses = {p.untyped_storage().data_ptr() for p in model.parameters()}
    weight_shapes = {tuple(s) for p in model.parameters() if p.dim() == 2 for s in (p.shape, p.shape[::-1])}
    counted: dict[int, tuple[int, bool]] = {}
    kept = []

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weight_addresses:
            counted[storage.data_ptr()] = (
                storage.nbytes(),
                tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in weight_shapes,
            )
            kept.append(tensor)  # so that no other tensor gets its address
        return tensor

    random = np.random.default_rng(0)
    prompt = random.integers(1, 299, tokens // 2)
    sequences = tuple(np.concatenate([prompt, random.integers(1, 299, tokens // 4)]) for _ in range(2))
    batch = lay_out([TokenizedItem(sequences, len(prompt), (False, False), (False, False))], "packed", 0)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(batch).rewards.sum()
    return sum(n for n, weight in counted.values() if not weight), sum(n for n, weight in counted.values() if weight)


def bytes_per_token_and_layer(shape: tuple[int, ...], checkpointing: bool) -> float:
    """Slope over layers and tokens: terms that do not grow with both cancel."""
    at = {
        (layers, tokens): saved_bytes(shape, layers, tokens, checkpointing)[0]
        for layers in (2, 4)
        for tokens in (248, 504)
    }
    return (at[4, 504] - at[2, 504] - at[4, 248] + at[2, 248]) / 2 / 256


def fit(checkpointing: bool) -> dict[str, float]:
    """Bytes per token and layer for each unit of each term, and the largest residual relative to the value."""
    widths = np.array([[h, i, n * d, k * d, n, 1] for h, i, n, k, d in SHAPES], dtype=float)
    values = np.array([bytes_per_token_and_layer(shape, checkpointing) for shape in SHAPES])
    solution, *_ = np.linalg.lstsq(widths, values, rcond=None)
    residual = float(np.abs(widths @ solution - values).max() / values.max())
    return {term: round(float(x), 3) for term, x in zip(TERMS, solution, strict=True)} | {
        "largest relative residual": round(residual, 5)
    }


def main() -> None:
    import torch

    from rm_methods.reward_models import packed_attention

    packed_attention._multiplies_blocks = lambda *_: False  # transformers' kernel, which a GPU takes
    torch.set_num_threads(1)
    print("bytes saved per token and layer, for each unit of width (bf16 autocast, fp32 weights):")
    for checkpointing in (False, True):
        print(f"  gradient checkpointing {'on ' if checkpointing else 'off'}: {json.dumps(fit(checkpointing))}")
    shape = SHAPES[0]
    parameters = 4 * (2 * shape[0] * shape[2] * shape[4] + 2 * shape[0] * shape[3] * shape[4] + 3 * shape[0] * shape[1])
    for checkpointing in (False, True):
        copies = saved_bytes(shape, 4, 504, checkpointing)[1]
        print(
            f"  bf16 copies of weights kept, checkpointing {'on ' if checkpointing else 'off'}: "
            f"{copies / parameters:.2f} bytes/parameter"
        )


if __name__ == "__main__":
    main()
