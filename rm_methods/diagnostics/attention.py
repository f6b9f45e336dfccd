"""A reward model's attention per sequence: that of the token with the reward, and the mass that each token receives.

It is computed from the queries and keys that a packed forward returns (`RewardModel.capture_attention`), in fp32 and
in blocks of rows. So memory stays linear in the length, and the forward keeps its fused kernel.

Shapes: L tokens of a sequence, b rows of a block, k keys that they see, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from rm_methods.errors import UserError
from rm_methods.reward_models.attention_capture import LayerAttention
from rm_methods.reward_models.layouts import token_positions
from rm_methods.reward_models.model import RewardModel
from rm_methods.reward_models.tokenization import TokenizedItem

_BLOCK_ROWS = 256


def packed_model(model: nn.Module) -> RewardModel:
    """The model, if packed rows are exact for it: diagnostics lay out every pair as one packed row.

    Raises:
        UserError: with the reason.
    """
    if not isinstance(model, RewardModel):
        raise UserError(f"{type(model).__name__}: diagnostics need a reward model that reads each response alone.")
    if model.layout("auto") != "packed":
        raise UserError(
            "Diagnostics compute each pair as one packed row, and this backbone is not exact in packed rows: "
            f"{model.packing_obstacle}. Use another backbone, or leave benchmarks out of diagnostics.benchmarks."
        )
    return model


def attention_mass(query_hLd: torch.Tensor, key_hLd: torch.Tensor, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of one sequence in one layer, averaged over heads.

    Returns:
        Two fp32 [L] that sum to 1: the attention of the last token over all tokens, and the mass that each token
        receives, which is the mean over the rows of the map (its column means).
    """
    length = query_hLd.shape[1]
    received_L = query_hLd.new_zeros(length, dtype=torch.float32)
    for start in range(0, length, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, length)
        scores_hbk = query_hLd[:, start:stop].float() @ key_hLd[:, :stop].float().transpose(1, 2) * scaling
        is_future_bk = torch.ones(scores_hbk.shape[1:], dtype=torch.bool, device=scores_hbk.device).triu(start + 1)
        weights_bk = scores_hbk.masked_fill_(is_future_bk, -torch.inf).softmax(-1).mean(0)
        received_L[:stop] += weights_bk.sum(0)
    return weights_bk[-1], received_L / length


def sequence_masses(attention: Mapping[int, LayerAttention], items: Sequence[TokenizedItem]) -> list[np.ndarray]:
    """Reward row and received mass of every sequence of a packed batch, averaged over heads and over the captured
    layers.

    Args:
        attention: of a forward over `items` in the packed layout.

    Returns:
        fp32 [2, L] for each sequence, items in order, responses of an item in order.
    """
    layers = [layer.repeated() for layer in attention.values()]
    masses = []
    for positions in token_positions(items, "packed"):
        tokens = torch.from_numpy(positions).to(layers[0].query.device)
        rows = []
        for layer in layers:
            query = layer.query[0].index_select(1, tokens)
            key = layer.key[0].index_select(1, tokens)
            rows.append(torch.stack(attention_mass(query, key, layer.scaling)))
        masses.append(torch.stack(rows).mean(0).cpu().numpy())
    return masses
