"""RM-Distiller without its generative teacher: a margin for the reward, and a divergence for the language model.

    loss = (r_chosen - r_rejected - scale * strength)^2 + weight * divergence
    divergence = T^2 * mean over the tokens of the chosen response of KL(pi_start || pi)

pi is a language-model head on the hidden states that give the reward, and pi_start is the same under the weights that
training starts from; both with logits divided by T.  Zhou et al. 2026 (arXiv 2601.14032), code
Joe-Hall-Lee/RM-Distiller, RewardTrainer/train/reward_models/distilrm_reward_trainer.py.  There, the strength is the
difference of a generative teacher's scores.  That teacher also replaces pi_start, and the text is its response.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.preferences.pair_numbers import label_strengths
from rm_methods.reward_models import language_head
from rm_methods.reward_models.language_head import LanguageHead, predicted_tokens


def margin_loss(rewards: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    """Squared error of the reward difference, fp32 [pairs].

    Args:
        rewards: fp32 [pairs, 2], column 0 chosen, column 1 rejected.
        margin: fp32 [pairs], the difference that is asked for.
    """
    return (rewards[:, 0] - rewards[:, 1] - margin).square()


def token_divergence(
    head: LanguageHead,
    states_MH: torch.Tensor,
    start_head: LanguageHead,
    start_states_MH: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """KL(pi_start || pi) of the distributions that M states predict, times the squared temperature, fp32 [M]."""
    log_policy_MV = (head(states_MH) / temperature).log_softmax(-1)
    log_start_MV = (start_head(start_states_MH) / temperature).log_softmax(-1)
    return temperature**2 * (log_start_MV.exp() * (log_start_MV - log_policy_MV)).sum(-1)


def mean_divergence(
    head: LanguageHead,
    states_MH: torch.Tensor,
    start_head: LanguageHead,
    start_states_MH: torch.Tensor,
    sequence_M: torch.Tensor,
    *,
    pairs: int,
    temperature: float,
) -> torch.Tensor:
    """The mean divergence over the tokens of each pair, fp32 [pairs]; 0 for a pair without tokens.

    Args:
        sequence_M: int64, the pair of each token.
    """
    at_once = max(1, language_head.LOGITS_AT_ONCE // head.projection.out_features)
    total = torch.zeros(pairs, device=states_MH.device)
    for first in range(0, len(sequence_M), at_once):
        part = slice(first, first + at_once)
        each_M = checkpoint(
            token_divergence,
            head,
            states_MH[part],
            start_head,
            start_states_MH[part],
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        total = total.index_add(0, sequence_M[part], each_M)
    return total / sequence_M.bincount(minlength=pairs).clamp(min=1)


class Method(TrainedMethod):
    def __init__(self, settings):
        super().__init__(settings)
        # The start of training is a copy of whole weights, made before ZeRO-3 shards the model.
        self.model_is_made_whole = settings["weight"] > 0

    def transform_pairs(self, pairs, inputs):
        if self.settings["preference"] == "margin":
            _strengths(pairs)  # raises before the pairs are tokenized
        return pairs

    def build(self, model, inputs):
        if self.settings["preference"] == "margin":
            ids = (pair.pair_id for pair in inputs.pairs)
            self.margin = {
                pair_id: self.settings["scale"] * strength
                for pair_id, strength in zip(ids, _strengths(inputs.pairs), strict=True)
            }
        if not self.settings["weight"]:
            return
        backbone = inputs.config["backbone"]
        model.language_head = self.head = language_head.language_head(
            model, inputs.backbone, backbone, inputs.seed, method="rm_distiller"
        )
        self.start = copy.deepcopy(model).eval().requires_grad_(False)

    def loss(self, model, batch):
        output = model(batch)
        preference = bradley_terry_loss(output.rewards)
        terms = {"preference_loss": preference}
        loss = preference
        if self.settings["preference"] == "margin":
            margin = output.rewards.new_tensor([self.margin[pair_id] for pair_id in batch.pair_ids])
            loss = margin_loss(output.rewards, margin)
            terms["margin_loss"] = loss
        if self.settings["weight"]:
            divergence = self._divergence(output.hidden_states, batch)
            loss = loss + self.settings["weight"] * divergence
            terms["divergence"] = divergence
        return Loss(loss, terms)

    def _divergence(self, hidden_states, batch) -> torch.Tensor:
        device = hidden_states.device
        with torch.no_grad():
            start = self.start.to(device)(batch).hidden_states
        places, _, sequence = (x.to(device) for x in predicted_tokens(batch.items, batch, (0,)))
        return mean_divergence(
            self.head,
            hidden_states.flatten(0, 1).index_select(0, places),
            self.start.language_head,
            start.flatten(0, 1).index_select(0, places),
            sequence,
            pairs=len(batch.items),
            temperature=self.settings["temperature"],
        )


def _strengths(pairs: Sequence) -> list[float]:
    instead = "Or set preference: bradley_terry, which keeps the divergence alone."
    strengths = label_strengths(pairs, "rm_distiller", instead)
    negative = [strength for strength in strengths if strength < 0]
    if negative:
        raise UserError(
            f"rm_distiller: strengths must not be negative, but {len(negative)} of {len(strengths)} training pairs "
            f"have one, the first {negative[0]:g}. Swap chosen and rejected of these pairs, or drop them."
        )
    return strengths
