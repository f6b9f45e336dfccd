"""A language-model head on the hidden states of a reward model, and log-probabilities of whole responses under it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.reward_models.backbones import RECORD, changed_logits, load_language_model
from rm_methods.reward_models.layouts import SequenceBatch, token_positions
from rm_methods.reward_models.tokenization import TokenizedItem

if TYPE_CHECKING:
    from rm_methods.reward_models.model import RewardModel

# 256 MiB in fp32.  More tokens are done in parts, whose logits are computed again in the backward pass.
LOGITS_AT_ONCE = 2**26


class LanguageHead(nn.Module):
    """Logits over the vocabulary.

    Args:
        weight, bias: of the output embedding, [V, H] and [V] or None; copied.
        autocast: dtype of the matrix product, or None for the weights' own.
        softcap: logits are squashed into (-softcap, softcap), as Gemma 2 does; None leaves them.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        autocast: torch.dtype | None = None,
        softcap: float | None = None,
    ):
        super().__init__()
        self.projection = nn.utils.skip_init(
            nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype
        )
        self.projection.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        self.autocast = autocast
        self.softcap = softcap

    def forward(self, states_MH: torch.Tensor) -> torch.Tensor:
        """fp32 [M, V]."""
        with torch.autocast(states_MH.device.type, dtype=self.autocast) if self.autocast else nullcontext():
            logits_MV = self.projection(states_MH).float()
        if self.softcap is None:
            return logits_MV
        return self.softcap * torch.tanh(logits_MV / self.softcap)


def has_one_prompt(item: TokenizedItem) -> bool:
    """Whether both responses of a pair follow the same prompt in the model.

    If the prompt was cut for one response only, the shared tokens end within the prompt.  Then `predicted_tokens`
    counts the rest of the prompt as part of the response.
    """
    return item.shared > 0 and item.conversations[0][:-1] == item.conversations[1][:-1]


def predicted_tokens(
    items: Sequence[TokenizedItem], batch: SequenceBatch, responses: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The response tokens (with the template's closing tokens) of a micro-batch, and where each is predicted.

    Args:
        items: those of the batch, in its order.
        responses: which of each item, 0 chosen, 1 rejected.

    Returns:
        int64 [M] each: position of the state that predicts the token, in the flattened hidden states of the batch; the
        token; number of the sequence it belongs to, counted over the requested responses, items in order.  The last
        token of the prompt predicts the first of the response.
    """
    rows = token_positions(items, "plain" if batch.attention_map is None else "packed")
    positions: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    sequence: list[np.ndarray] = []
    for b, item in enumerate(items):
        for k in responses:
            row = rows[b * batch.responses + k]
            start = max(item.shared, 1)  # the first token of a text is predicted by nothing
            positions.append(row[start - 1 : -1])
            tokens.append(item.sequences[k][start:])
            sequence.append(np.full(len(row) - start, len(sequence)))
    return _int64(positions), _int64(tokens), _int64(sequence)


def _int64(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def summed_log_probabilities(
    head: LanguageHead,
    hidden_states: torch.Tensor,
    items: Sequence[TokenizedItem],
    batch: SequenceBatch,
    responses: Sequence[int],
) -> torch.Tensor:
    """Log-probability of each whole response given its prompt, fp32 [items, requested responses].

    Args:
        hidden_states: [R, L, H] of the batch, packed or plain; the rest as for `predicted_tokens`.
    """
    device = hidden_states.device
    positions, tokens, sequence = (x.to(device) for x in predicted_tokens(items, batch, responses))
    states_MH = hidden_states.flatten(0, 1).index_select(0, positions)
    at_once = max(1, LOGITS_AT_ONCE // head.projection.out_features)
    total = torch.zeros(len(items) * len(responses), device=device)
    for start in range(0, len(tokens), at_once):
        part = slice(start, start + at_once)
        if len(tokens) > at_once and torch.is_grad_enabled():
            each_M = checkpoint(
                _token_log_probabilities,
                head,
                states_MH[part],
                tokens[part],
                use_reentrant=False,
                preserve_rng_state=False,
            )
        else:
            each_M = _token_log_probabilities(head, states_MH[part], tokens[part])
        total = total.index_add(0, sequence[part], each_M)
    return total.view(len(items), len(responses))


def _token_log_probabilities(head: LanguageHead, states_MH: torch.Tensor, tokens_M: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(head(states_MH), tokens_M, reduction="none")


def language_head(
    model: RewardModel, folder: Path, backbone: dict[str, Any], seed: int, *, method: str
) -> LanguageHead:
    """A copy of the backbone's output embedding: its input embeddings if they are tied, otherwise its language head.

    Args:
        model: its backbone has the weights that training starts from.
        folder, backbone: of the prepared backbone, and the section of the configuration.
        seed: draws the head of a tiny backbone.
        method: for messages.

    Raises:
        UserError: the backbone scales its logits, or its output embedding reads states of another width.
    """
    config = model.config
    scaled = changed_logits(config)
    softcap = scaled.pop("final_logit_softcapping", None)
    if scaled:
        raise UserError(
            f"{method}: this backbone ('{config.model_type}') scales its logits ({scaled}). The language-model head "
            "of this method cannot. Use another backbone or another method."
        )
    bias = None
    if getattr(config, "tie_word_embeddings", False):
        weight = _whole(cast(torch.Tensor, model.classifier.get_input_embeddings().weight))
    elif read_json(folder / RECORD)["kind"] == "tiny":
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(config.vocab_size, config.hidden_size, generator=generator) * config.initializer_range
    else:
        output = load_language_model(folder, backbone, seed).get_output_embeddings()
        weight = _whole(output.weight)
        if output.bias is not None:
            bias = _whole(output.bias)
    if weight.shape[1] != model.hidden_size:
        raise UserError(
            f"{method}: the output embedding of this backbone ('{config.model_type}') reads {weight.shape[1]} numbers, "
            f"but its last layer gives {model.hidden_size}. Use another backbone or another method."
        )
    return LanguageHead(weight, bias, model.autocast, softcap)


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    """The values of a parameter that ZeRO-3 may have sharded."""
    whole: AbstractContextManager = nullcontext()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        whole = deepspeed.zero.GatheredParameters([parameter])
    with whole:
        return parameter.detach().cpu().clone()
