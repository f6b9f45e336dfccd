"""Masked-language modeling of joint rows: a joint model learns the language of the pairs before it learns preferences.

Without it, a small teacher learns only the surface cue, and its attention teaches nothing.  An encoder predicts a
masked token at its position.  A decoder without causal mask predicts it one position before (masked next-token
prediction of LLM2Vec, arXiv 2404.05961), because its pretrained head predicts the next token.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from rm_methods.errors import UserError
from rm_methods.methods.contract import Loss
from rm_methods.reward_models.backbones import changed_logits
from rm_methods.reward_models.joint_model import check_positions
from rm_methods.reward_models.layouts import PairBatch, SequenceBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Shares of the tokens to predict; the rest is kept, as in BERT (arXiv 1810.04805).
_MASKED = 0.8
_REPLACED = 0.1


def mask_token(tokenizer) -> int:
    """The mask token, or, as in LLM2Vec, the underscore: a token that pretraining has seen as a blank to fill in."""
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    return tokenizer("_", add_special_tokens=False)["input_ids"][0]


class MaskedLanguageModel(nn.Module):
    """A language model that reads plain rows in both directions.

    Args:
        language_model: from `AutoModelForMaskedLM`, or a decoder from `AutoModelForCausalLM`.
        decoder: whether it is a decoder, whose causal mask is removed.
        autocast: dtype of matrix products, or None.

    Raises:
        UserError: a decoder that scales or caps its logits.
    """

    def __init__(self, language_model: PreTrainedModel, decoder: bool, autocast: torch.dtype | None = None):
        super().__init__()
        self.language_model = language_model
        self.decoder = decoder
        self.autocast = autocast
        changed = changed_logits(language_model.config) if decoder else None
        if changed:
            raise UserError(
                f"This backbone ('{language_model.config.model_type}') changes its logits ({changed}), which training "
                "on text does not. Set masked_language_epochs: 0, or use another backbone."
            )

    @property
    def config(self):
        """The configuration of the model inside; ZeRO-3 reads its width."""
        return self.language_model.config

    def layout(self, setting: str) -> str:
        """Plain rows, whatever the setting."""
        return "plain"

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass."""
        self.language_model.activation_checkpointing_enable({"use_reentrant": False})

    def inner_weights(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The weights that a classifier on the same base also has, by their names there; on the CPU.

        Args:
            state_dict: gathered weights, if the model holds shards.
        """
        base = self.language_model.base_model
        prefix = next(name for name, module in self.named_modules() if module is base) + "."
        weights = self.state_dict() if state_dict is None else state_dict
        return {
            name.removeprefix(prefix): weight.contiguous().cpu()
            for name, weight in weights.items()
            if name.startswith(prefix)
        }

    def state_dict(self, *args, **kwargs):
        """Weights by name; shared ones have one name, because safetensors refuses them twice."""
        state = super().state_dict(*args, **kwargs)
        first_names = self._first_names()
        return {name: weight for name, weight in state.items() if first_names.get(name, name) == name}

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """The counterpart of `state_dict`."""
        shared = {name: state_dict[first] for name, first in self._first_names().items() if first in state_dict}
        return super().load_state_dict(shared | state_dict, strict, assign)

    def _first_names(self) -> dict[str, str]:
        """For each name of a weight, the first of its names."""
        first: dict[int, str] = {}
        # By identity, not by address: all shards of ZeRO-3 have address 0.
        return {
            name: first.setdefault(id(weight), name) for name, weight in self.named_parameters(remove_duplicate=False)
        }

    def forward(self, input_ids: torch.Tensor, batch: SequenceBatch, is_predicted: torch.Tensor) -> torch.Tensor:
        """Logits of the predicted tokens, fp32 [predicted tokens, vocabulary].

        Args:
            input_ids: int64 [R, L], with tokens masked.
            batch: the plain rows.
            is_predicted: bool [R, L].
        """
        is_token_RL = torch.arange(input_ids.shape[1], device=input_ids.device) <= batch.read_column[:, None]
        device_type = input_ids.device.type
        check_positions(self.config, input_ids.shape[1])
        # No cache of cast weights, as in RewardModel.forward.
        with torch.autocast(device_type, dtype=self.autocast, cache_enabled=False) if self.autocast else nullcontext():
            if not self.decoder:
                output = self.language_model(input_ids=input_ids, attention_mask=is_token_RL.long())
                return output.logits[is_predicted].float()
            hidden_RLH = self.language_model.base_model(
                input_ids=input_ids,
                position_ids=batch.position_ids,
                attention_mask=is_token_RL[:, None, None],
                use_cache=False,
            ).last_hidden_state
            return self.language_model.lm_head(hidden_RLH[:, :-1][is_predicted[:, 1:]]).float()


class MaskedLanguageModeling:
    """The loss of masked-language modeling; used like a training method.

    Args:
        mask_id: replaces a masked token.
        special_ids: tokens that are never masked.
        vocabulary: number of tokens to draw replacements from.
        seed: decides, with the pair and the progress of training, which tokens are masked; a resumed run masks the
            same.
        probability: share of the tokens to predict.
    """

    depends_on_cut = False
    passes = 1

    def __init__(
        self, mask_id: int, special_ids: Sequence[int], *, vocabulary: int, seed: int, probability: float = 0.15
    ):
        self.mask_id = mask_id
        self.vocabulary = vocabulary
        self.seed = seed
        self.probability = probability
        self.special_ids = torch.tensor(sorted(special_ids))

    def loss(self, model, batch: PairBatch) -> Loss:
        """Mean negative log-likelihood of the predicted tokens of each pair, fp32 [pairs]."""
        masked_RL, is_predicted_RL = self.mask(batch)
        logits = model(masked_RL, batch, is_predicted_RL)
        each_M = F.cross_entropy(logits, batch.input_ids[is_predicted_RL], reduction="none")
        pair_R = torch.arange(len(is_predicted_RL), device=each_M.device) // batch.responses
        pair_M = pair_R[:, None].expand_as(is_predicted_RL)[is_predicted_RL]
        zeros = each_M.new_zeros(len(is_predicted_RL) // batch.responses)
        count = zeros.index_add(0, pair_M, torch.ones_like(each_M))
        return Loss(zeros.index_add(0, pair_M, each_M) / count.clamp(min=1))

    def mask(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids with some of them masked or replaced, and which are to be predicted: int64 and bool [R, L].

        Each row has separate random numbers, so the result does not depend on the micro-batch that a pair is in.
        """
        ids_RL = batch.input_ids.cpu()
        chance_RL = torch.ones(ids_RL.shape)
        fate_RL = torch.ones(ids_RL.shape)
        drawn_RL = torch.zeros_like(ids_RL)
        for row, end in enumerate(batch.read_column.tolist()):
            pair_id = batch.pair_ids[row // batch.responses]
            order = row % batch.responses
            seed = zlib.crc32(f"{self.seed} {batch.progress} {pair_id} {order}".encode())
            generator = torch.Generator().manual_seed(seed)
            # A decoder predicts a token from the position before it, so the first token of a row is never predicted.
            chance_RL[row, 1 : end + 1] = torch.rand(end, generator=generator)
            fate_RL[row, 1 : end + 1] = torch.rand(end, generator=generator)
            drawn_RL[row, 1 : end + 1] = torch.randint(self.vocabulary, (end,), generator=generator)
        is_predicted_RL = (chance_RL < self.probability) & ~torch.isin(ids_RL, self.special_ids)
        masked_RL = torch.where(is_predicted_RL & (fate_RL < _MASKED), self.mask_id, ids_RL)
        masked_RL = torch.where(is_predicted_RL & (fate_RL >= 1 - _REPLACED), drawn_RL, masked_RL)
        return masked_RL.to(batch.input_ids.device), is_predicted_RL.to(batch.input_ids.device)
