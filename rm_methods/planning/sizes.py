"""Formulas for the memory and disk of a training run: for `rm-methods plan` and for the check before optimizer states
are offloaded.

Weights, gradients and the optimizer are fp32 (the backbone is autocast, docs/architecture.md), so a parameter takes 20
bytes under ZeRO: 4 for the weight, 4 for the gradient, 4 for the optimizer's copy of the weight, 8 for its moments.  A
parameter that LoRA freezes takes only the first 4.  DeepSpeed's estimators
(`estimate_zero2/zero3_model_states_mem_needs`) are made for 16-bit weights, 18 bytes; `performance/memory_table.py`
prints both.  Stages: Rajbhandari et al. 2020 (arXiv 1910.02054), section 5.  Sizes are bytes; a parameter count is a
number of scalars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_methods.reward_models.activations import kept_bytes
from rm_methods.system.memory import GRADIENT, MASTER, MOMENTS, WEIGHT, offloaded_bytes

# DeepSpeed's defaults for stages 1 and 2, in numbers: two buffers to reduce gradients (overlap_comm), one to gather
# weights.
_BUCKET = 500_000_000
_LIVE = 1_000_000_000  # numbers that stage 3 keeps gathered at most
CHECKPOINTS_ON_DISK = 3  # two are kept, and one is being written


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes.

    Attributes:
        parameters: all of them.
        embedding: those of the embedding table, which is in no matrix product.
        largest_layer: direct parameters of the largest module, which ZeRO-3 gathers whole.
        hidden, intermediate, layers, heads: as in the model's configuration.
        attention: width of all query heads together.
        key_value: width of all key heads together, which is that of the values.
        trainable: parameters that are trained: all, adapters and head (LoRA), or the last layers and the head.
        frozen_layers: layers that are not trained and keep nothing for the backward pass.
    """

    parameters: int
    embedding: int
    largest_layer: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    attention: int
    key_value: int
    trainable: int
    frozen_layers: int = 0


def shape_of(config, lora: Mapping[str, Any] | None = None, trained_layers: int | None = None) -> Shape:
    """The shape of a reward model on a backbone with this transformers configuration, without memory for its weights.

    Args:
        lora: the resolved `training.lora`.
        trained_layers: the resolved `training.trained_layers`.

    Raises:
        UserError: LoRA names layers that the backbone does not have, or it has no more than `trained_layers`.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from rm_methods.reward_models.frozen_layers import freeze_lower_layers
    from rm_methods.reward_models.lora import trainable_parameters

    config.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    direct = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    parameters = sum(p.numel() for p in model.parameters())
    frozen = freeze_lower_layers(model, trained_layers) if trained_layers else 0
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    heads, hidden = config.num_attention_heads, config.hidden_size
    head_size = getattr(config, "head_dim", None) or hidden // heads
    return Shape(
        parameters=parameters,
        embedding=model.get_input_embeddings().weight.numel(),
        largest_layer=max(direct),
        hidden=hidden,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=heads,
        attention=heads * head_size,
        key_value=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        trainable=trainable if lora is None else trainable_parameters(model, lora),
        frozen_layers=frozen,
    )


def model_state_bytes(
    parameters: int,
    largest_layer: int,
    zero: Mapping[str, Any] | None,
    ranks: int,
    nodes: int = 1,
    trainable: int | None = None,
) -> tuple[int, int]:
    """Weights, gradients, optimizer and DeepSpeed's buffers: (bytes of a GPU, bytes of a node's main memory).

    Args:
        zero: `zero_optimization` of a DeepSpeed configuration; None for training without DeepSpeed.
        ranks: over all nodes.
        trainable: parameters that are trained; None: all.
    """
    trainable = parameters if trainable is None else trainable
    if zero is None or zero.get("stage", 0) == 0:
        exchanged = GRADIENT * trainable if ranks > 1 else 0  # buckets of the gradients
        return WEIGHT * parameters + (GRADIENT + MOMENTS) * trainable + exchanged, 0
    stage = zero["stage"]
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    buckets = 0 if stage == 3 else (2 * GRADIENT + WEIGHT) * min(_BUCKET, trainable)
    gpu = WEIGHT * parameters // (ranks if stage == 3 else 1) + buckets
    gpu += GRADIENT * trainable // (ranks if stage >= 2 else 1)
    if stage == 3:
        gpu += WEIGHT * min(parameters, max(largest_layer, zero.get("stage3_max_live_parameters", _LIVE)))
    if not offloads:
        return gpu + (MASTER + MOMENTS) * trainable // ranks, 0
    return gpu, offloaded_bytes(trainable, nodes)


def activation_bytes(shape: Shape, tokens: int, recomputed: bool) -> int:
    """Memory that a micro-batch keeps for its backward pass in bf16 autocast, without temporary tensors.

    Without recomputation every weight's bf16 copy is kept, too.
    """
    kept = tokens * kept_bytes(
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        attention=shape.attention,
        key_value=shape.key_value,
        heads=shape.heads,
        layers=shape.layers - shape.frozen_layers,
        recomputed=recomputed,
    )
    return kept if recomputed else kept + 2 * (shape.parameters - shape.embedding)


def checkpoint_bytes(parameters: int, zero: Mapping[str, Any] | None, trainable: int | None = None) -> int:
    """Size of one checkpoint for resuming: the whole weights and the optimizer's state; under ZeRO also the
    optimizer's copy of the weights.

    Below stage 3, DeepSpeed writes the weights a second time.  From stage 2 on, it writes frozen weights once more.

    Args:
        zero, trainable: as for `model_state_bytes`.
    """
    trainable = parameters if trainable is None else trainable
    stage = None if zero is None else zero.get("stage", 0)
    weights = {None: 1, 0: 2, 1: 2, 2: 2, 3: 1}[stage] * parameters + (parameters - trainable if stage in (2, 3) else 0)
    return WEIGHT * weights + (MOMENTS + (MASTER if stage else 0)) * trainable


def model_bytes(parameters: int) -> int:
    """The published model folder: fp32 safetensors."""
    return WEIGHT * parameters
