"""Captures queries and keys of given layers in the attention interface of transformers: after rotary embedding, while
the forward pass keeps its fused kernel.  No module is patched and no hook is left behind.  The capture is a keyword
argument of one forward.  Our attention functions (`packed_attention`, `joint_attention`) store their arguments in it.

Works with recomputed activations: a recomputation writes the same values again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rm_methods.errors import UserError


@dataclass(frozen=True)
class LayerAttention:
    """The inputs of one attention layer.

    Attributes:
        query: [R, h, L, d], after rotary embedding, in the layout of the forward's batch (packed: R = 1, L = T).
        key, value: [R, key heads, L, d].
        scaling: of the scores, usually d ** -0.5.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float

    def repeated(self) -> LayerAttention:
        """The same with one key head for every query head (grouped-query attention)."""
        repeats = self.query.shape[1] // self.key.shape[1]
        key, value = (x if repeats == 1 else x.repeat_interleave(repeats, dim=1) for x in (self.key, self.value))
        return LayerAttention(self.query, key, value, self.scaling)


@dataclass
class AttentionCapture:
    """Collects the attention of given layers in one forward.

    Attributes:
        layers: layer numbers, from 0.
        captured: layer number to its attention.
        calls: attention layers that called `offer`.
    """

    layers: tuple[int, ...]
    captured: dict[int, LayerAttention] = field(default_factory=dict)
    calls: int = 0

    def offer(self, module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> None:
        """Called by the attention function of every layer, with its arguments."""
        # Some encoders do not number their layers; they are not recomputed in a backward pass, so counting calls works.
        number = getattr(module, "layer_idx", None)
        number = self.calls if number is None else number
        self.calls += 1
        if number in self.layers:
            self.captured[number] = LayerAttention(
                query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling
            )


def layer_numbers(layers: list[int], count: int, key: str) -> tuple[int, ...]:
    """Layers as people count them (1 is the first, -1 the last) as layer numbers from 0.

    Args:
        count: layers of the model.
        key: key path of the setting, for the message.

    Raises:
        UserError: a layer that does not exist.
    """
    wrong = [layer for layer in layers if layer == 0 or abs(layer) > count]
    if wrong:
        raise UserError(
            f"{key}: the model has {count} layers, so {wrong} do not exist. Use 1 to {count}, or -1 to {-count} from "
            "the end."
        )
    return tuple(layer - 1 if layer > 0 else count + layer for layer in layers)


def capture_obstacle(config) -> str | None:
    """Why the scores of a model's attention are not query times key, or None if they are."""
    if getattr(config, "attn_logit_softcapping", None):
        return f"'{config.model_type}' caps its attention scores (attn_logit_softcapping)"
    return None
