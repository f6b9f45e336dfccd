"""Log-probabilities, entropies and hidden states of given responses under a language model.

Shapes: B responses, P the longest prompt, T the longest response, V vocabulary, H hidden size.  A row is
`[pad ... prompt | response ... pad]`, so that every response starts in the same column.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch


def left_padded(prompt_ids: Sequence[Sequence[int]], pad_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as int64 [B, P], padded on the left, and their attention mask, int64 [B, P]."""
    longest = max(len(ids) for ids in prompt_ids)
    input_ids = torch.full((len(prompt_ids), longest), pad_id, dtype=torch.long)
    is_token = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompt_ids):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        is_token[row, longest - len(ids) :] = 1
    return input_ids.to(device), is_token.to(device)


def read_responses(
    model,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: torch.Tensor,
    mask: torch.Tensor,
    pad_id: int,
    autocast=None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward over prompts with their responses.

    Args:
        response_ids: int64 [B, T], padded on the right.
        mask: bool [B, T], true at tokens of the response.
        autocast: dtype of matrix products, or None.

    Returns:
        logits fp32 [B, T, V] of the distributions that the response's tokens were drawn from, and the last hidden
        states fp32 [B, T, H] that give them.
    """
    prompt_BP, is_prompt_BP = left_padded(prompt_ids, pad_id, response_ids.device)
    attention_mask = torch.cat([is_prompt_BP, mask.long()], dim=1)
    with torch.autocast(response_ids.device.type, dtype=autocast) if autocast else nullcontext():
        output = model(
            input_ids=torch.cat([prompt_BP, response_ids], dim=1),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            output_hidden_states=True,
            # Each token is predicted one position earlier: from the prompt's last one to the response's last but one.
            logits_to_keep=response_ids.shape[1] + 1,
        )
    hidden = output.hidden_states[-1][:, -response_ids.shape[1] - 1 : -1]
    return output.logits[:, :-1].float(), hidden.float()


def token_log_probabilities(logits: torch.Tensor, response_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token of the responses, fp32 [B, T]; 0 outside of `mask`."""
    log_probabilities = logits.gather(-1, response_ids[..., None])[..., 0] - logits.logsumexp(-1)
    return torch.where(mask, log_probabilities, 0.0)


def token_entropies(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Entropy of each token's distribution in nats, fp32 [B, T]; 0 outside of `mask`."""
    log_probabilities = logits.log_softmax(-1)
    return torch.where(mask, -(log_probabilities.exp() * log_probabilities).sum(-1), 0.0)
