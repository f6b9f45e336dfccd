"""AttnRM (our reconstruction): Bradley-Terry, and the token with the reward attends to the prompt.

    loss = -log sigmoid(r_chosen - r_rejected) + weight * mean over both responses of (A + dispersion * D)

    p     attention of the last token over all tokens, averaged over layers and heads
    c     context: the tokens of the prompt's messages, or of marked evidence in them
    log (default)   A = -log sum_c p_t        D = sd_c(p_t) / mean_c(p_t)
    linear          A = -mean_c p_t           D = sd_c(p_t)

Idea: Dou et al. 2025 (AttnRM, ACL 2025 long 285).  We read the abstract, and a machine-written summary that gives the
linear terms and says that a language model marks the relevant segments.  That p is the row of the last token, the log
form, and all defaults are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.preferences.pair import PreferencePair
from rm_methods.reward_models.attention_capture import LayerAttention, layer_numbers
from rm_methods.reward_models.layouts import SequenceBatch, token_positions
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem


def attention_of_reward_token(
    attention: LayerAttention, batch: SequenceBatch, items: Sequence[TokenizedItem]
) -> torch.Tensor:
    """The attention of the last token of each sequence in one layer, averaged over heads.

    Args:
        attention: captured in the forward of `batch`.
        items: of the batch, in its order.

    Returns:
        fp32 [S, L], rows are distributions over the tokens of a sequence; 0 after its end.
    """
    positions = token_positions(items, "plain" if batch.attention_map is None else "packed")
    index_SL, is_token_SL = _padded(positions, batch.longest)
    device = attention.query.device
    read_S = torch.tensor([tokens[-1] for tokens in positions], device=device)
    attention = attention.repeated()
    query_Shd = _flat(attention.query).index_select(0, read_S).float()
    key_Nhd = _flat(attention.key).index_select(0, index_SL.flatten().to(device))
    key_SLhd = key_Nhd.view(*index_SL.shape, *key_Nhd.shape[1:]).float()
    scores_ShL = torch.einsum("shd,slhd->shl", query_Shd, key_SLhd) * attention.scaling
    return scores_ShL.masked_fill(~is_token_SL.to(device)[:, None], -torch.inf).softmax(-1).mean(1)


def context_terms(
    attention_SL: torch.Tensor, context_SL: torch.Tensor, form: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A, D and the attention on the context.

    Args:
        attention_SL: fp32, rows are distributions.
        context_SL: bool, the tokens of the context.
        form: "log" or "linear".

    Returns:
        Three fp32 [S]: A, D, and the sum of attention on the context; all 0 where a sequence has no context.
    """
    count_S = context_SL.sum(1)
    mass_S = (attention_SL * context_SL).sum(1)
    mean_S = mass_S / count_S.clamp_min(1)
    # The norm has the gradient 0 at 0, where a square root has none: one token, or equal attention.
    deviation_S = torch.linalg.vector_norm((attention_SL - mean_S[:, None]) * context_SL, dim=1)
    deviation_S = deviation_S / count_S.clamp_min(1).sqrt()
    if form == "linear":
        return -mean_S, deviation_S, mass_S
    has_context_S = count_S > 0
    smallest = torch.finfo(attention_SL.dtype).tiny
    strength_S = -torch.where(has_context_S, mass_S, 1.0).clamp_min(smallest).log()
    return strength_S, deviation_S / mean_S.clamp_min(smallest), mass_S


def context_tokens(pair: PreferencePair, item: TokenizedItem, reader: ChatTokenizer, context: str) -> list[np.ndarray]:
    """The positions of the context's tokens in each sequence of a pair, int32.

    Args:
        context: "prompt" or "evidence"; a prompt that truncation cut has no evidence.

    Raises:
        UserError: the chat template changes a message's characters.
    """
    tokens = []
    for cut, messages in zip(item.prompt_cut, item.conversations, strict=True):
        starts = np.cumsum([0, *(len(message["content"]) + 1 for message in messages[:-1])])
        if context == "prompt":
            wanted = [(0, starts[-1])]
        elif cut:
            wanted = []
        else:
            wanted = [(starts[number] + start, starts[number] + end) for number, start, end in _evidence(pair)]
        first, last = reader.text_spans(messages).T
        is_context = np.zeros(len(first), dtype=bool)
        for start, end in wanted:
            is_context |= np.maximum(first, start) < np.minimum(last, end)
        tokens.append(np.flatnonzero(is_context).astype(np.int32))
    return tokens


class Method(TrainedMethod):
    """With weight 0 it is Bradley-Terry, to the bit.

    Attributes:
        items: tokenized training pairs, by pair id.
        context: positions of the context's tokens in both sequences of each pair, by pair id; empty with weight 0.
    """

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.items: dict[str, TokenizedItem] = {}
        self.context: dict[str, list[np.ndarray]] = {}

    def transform_pairs(self, pairs, inputs):
        if self.settings["weight"] and self.settings["context"] == "evidence":
            missing = sum("evidence_prompt" not in pair.meta for pair in pairs)
            if missing:
                raise UserError(
                    f"attn_rm.context: 'evidence' needs marked spans (meta.evidence_prompt, as in the controlled "
                    f"world), but {missing} of {len(pairs)} training pairs have none. Use 'prompt'."
                )
        return pairs

    def build(self, model, inputs):
        if not self.settings["weight"]:
            return
        depth = model.config.num_hidden_layers
        layers = self.settings["layers"]
        numbers = list(range(1, depth + 1)) if layers == "all" else layers
        model.capture_attention(layer_numbers(numbers, depth, "attn_rm.layers"))
        for pair, item in zip(inputs.pairs, inputs.items, strict=True):
            self.items[pair.pair_id] = item
            self.context[pair.pair_id] = context_tokens(pair, item, inputs.reader, self.settings["context"])

    def loss(self, model, batch):
        output = model(batch)
        preference = bradley_terry_loss(output.rewards, batch.margin)
        if not self.settings["weight"]:
            return Loss(preference)
        items = [self.items[pair_id] for pair_id in batch.pair_ids]
        rows = [attention_of_reward_token(layer, batch, items) for layer in output.attention.values()]
        attention_SL = torch.stack(rows).mean(0)
        context_SL = torch.zeros(attention_SL.shape, dtype=torch.bool)
        for s, tokens in enumerate(tokens for pair_id in batch.pair_ids for tokens in self.context[pair_id]):
            context_SL[s, tokens.tolist()] = True
        terms = context_terms(attention_SL, context_SL.to(attention_SL.device), self.settings["form"])
        strength, dispersion, mass = (term_S.view(-1, 2).mean(1) for term_S in terms)
        loss = preference + self.settings["weight"] * (strength + self.settings["dispersion"] * dispersion)
        return Loss(loss, {"preference_loss": preference, "context_attention": mass, "context_dispersion": dispersion})

    def report(self):
        """Number of responses without any token of context; they count in the preference loss only."""
        without = sum(not len(tokens) for both in self.context.values() for tokens in both)
        return {"responses_without_context": without} if self.context else {}


def _evidence(pair: PreferencePair) -> Sequence[tuple[int, int, int]]:
    """Spans of evidence in the prompt as (message, start, end); start and end in characters."""
    return pair.meta["evidence_prompt"]


def _flat(x_RhLd: torch.Tensor) -> torch.Tensor:
    """Tokens of all rows together, [R * L, h, d]."""
    return x_RhLd.transpose(1, 2).reshape(-1, x_RhLd.shape[1], x_RhLd.shape[3])


def _padded(positions: Sequence[np.ndarray], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions as int64 [S, length], padded with 0, and a mask that is true at tokens."""
    index = np.zeros((len(positions), length), dtype=np.int64)
    is_token = np.zeros(index.shape, dtype=bool)
    for s, tokens in enumerate(positions):
        index[s, : len(tokens)] = tokens
        is_token[s, : len(tokens)] = True
    return torch.from_numpy(index), torch.from_numpy(is_token)
