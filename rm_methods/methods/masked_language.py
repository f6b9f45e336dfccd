"""Masked-language modeling of joint rows: how a joint model learns the language of the pairs before it learns preferences.

Without it a small teacher learns only the surface cue, and its attention teaches nothing.  An encoder predicts a masked token where
it stands; a decoder without causal mask predicts it one place before (masked next-token prediction of LLM2Vec, arXiv 2404.05961),
because that is where its pretrained head looks.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from rm_methods.errors import UserError
from rm_methods.methods.contract import Loss
from rm_methods.reward_models.backbones import changed_logits
from rm_methods.reward_models.joint_model import check_positions
from rm_methods.reward_models.layouts import PairBatch, SequenceBatch

_MASKED, _REPLACED = 0.8, 0.1  # of the chosen tokens, the rest is kept, as in BERT (arXiv 1810.04805)


class MaskedLanguageModel(nn.Module):
    """A language model that reads plain rows in both directions.

    Args:
        language_model: `AutoModelForMaskedLM`, or a decoder-only `AutoModelForCausalLM`.
        decoder: the latter; its causal mask is taken away.
        autocast: dtype of matrix products, or None.

    Raises:
        UserError: a decoder that scales or caps its logits.
    """

    def __init__(self, language_model: nn.Module, decoder: bool, autocast: torch.dtype | None = None):
        super().__init__()
        self.language_model, self.decoder, self.autocast = language_model, decoder, autocast
        if decoder and (changed := changed_logits(language_model.config)):
            raise UserError(
                f"This backbone ('{language_model.config.model_type}') changes its logits ({changed}), which training on text does not. "
                "Set masked_language_epochs: 0, or use another backbone."
            )

    @property
    def config(self):
        """The configuration of the model inside; ZeRO-3 reads its width."""
        return self.language_model.config

    def layout(self, asked: str) -> str:
        """Plain rows, whatever is asked for."""
        return "plain"

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass."""
        self.language_model.activation_checkpointing_enable({"use_reentrant": False})

    def inner_weights(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """What a classifier on the same base has, too, by its names there; on the CPU.

        Args:
            state_dict: gathered weights, where the model's own are shards.
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
        """Weights by name, those that input and output embeddings share once: safetensors refuses them twice."""
        state = super().state_dict(*args, **kwargs)
        first_names = self._first_names()
        return {name: weight for name, weight in state.items() if first_names.get(name, name) == name}

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """The counterpart of `state_dict`."""
        shared = {name: state_dict[first] for name, first in self._first_names().items() if first in state_dict}
        return super().load_state_dict(shared | state_dict, strict, assign)

    def _first_names(self) -> dict[str, str]:
        """For each weight, the first name that it goes by."""
        first: dict[int, str] = {}
        # By identity: the shards of ZeRO-3 all lie at address 0.
        return {
            name: first.setdefault(id(weight), name) for name, weight in self.named_parameters(remove_duplicate=False)
        }

    def forward(self, input_ids: torch.Tensor, batch: SequenceBatch, places: torch.Tensor) -> torch.Tensor:
        """Logits fp32 [masked tokens, vocabulary] for the tokens at `places` bool [R, L] of rows with ids `input_ids` [R, L]."""
        is_token_RL = torch.arange(input_ids.shape[1], device=input_ids.device) <= batch.read_column[:, None]
        device_type = input_ids.device.type
        check_positions(self.config, input_ids.shape[1])
        # No cache of cast weights: as in RewardModel.forward.
        with torch.autocast(device_type, dtype=self.autocast, cache_enabled=False) if self.autocast else nullcontext():
            if not self.decoder:
                return (
                    self.language_model(input_ids=input_ids, attention_mask=is_token_RL.long()).logits[places].float()
                )
            hidden_RLH = self.language_model.base_model(
                input_ids=input_ids,
                position_ids=batch.position_ids,
                attention_mask=is_token_RL[:, None, None],
                use_cache=False,
            ).last_hidden_state
            return self.language_model.lm_head(hidden_RLH[:, :-1][places[:, 1:]]).float()


class MaskedLanguageModeling:
    """The loss, in the shape of a training method.

    Args:
        mask_id: stands for a masked token.
        special_ids: tokens that are never masked.
        vocabulary: number of tokens to draw replacements from.
        seed: with the pair and the progress of training it decides which tokens are masked, so a resumed run masks the same ones.
        probability: share of the tokens to predict.
    """

    def __init__(self, mask_id: int, special_ids: Sequence[int], vocabulary: int, seed: int, probability: float = 0.15):
        self.mask_id, self.vocabulary, self.seed, self.probability = mask_id, vocabulary, seed, probability
        self.special_ids = torch.tensor(sorted(special_ids))

    def loss(self, model, batch: PairBatch) -> Loss:
        """Mean negative log-likelihood of the masked tokens of each pair, fp32 [pairs]."""
        masked_RL, places_RL = self.mask(batch)
        logits = model(masked_RL, batch, places_RL)
        each = F.cross_entropy(logits, batch.input_ids[places_RL], reduction="none")
        pair_R = torch.arange(len(places_RL), device=each.device) // batch.responses
        pair = pair_R[:, None].expand_as(places_RL)[places_RL]
        zeros = each.new_zeros(len(places_RL) // batch.responses)
        return Loss(zeros.index_add(0, pair, each) / zeros.index_add(0, pair, torch.ones_like(each)).clamp(min=1))

    def mask(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids with some of them masked or replaced, and which are to be predicted: int64 and bool [R, L].

        Each row has random numbers of its own, so nothing depends on how pairs were put into micro-batches.
        """
        ids_RL, ends_R = batch.input_ids.cpu(), batch.read_column.tolist()
        chance_RL, fate_RL = torch.ones(2, *ids_RL.shape)
        drawn_RL = torch.zeros_like(ids_RL)
        for row, end in enumerate(ends_R):
            pair_id, order = batch.pair_ids[row // batch.responses], row % batch.responses
            seed = zlib.crc32(f"{self.seed} {batch.progress} {pair_id} {order}".encode())
            generator = torch.Generator().manual_seed(seed)
            # A decoder predicts a token from the place before it, so the first one of a row has none.
            chance_RL[row, 1 : end + 1] = torch.rand(end, generator=generator)
            fate_RL[row, 1 : end + 1] = torch.rand(end, generator=generator)
            drawn_RL[row, 1 : end + 1] = torch.randint(self.vocabulary, (end,), generator=generator)
        places_RL = (chance_RL < self.probability) & ~torch.isin(ids_RL, self.special_ids)
        masked_RL = torch.where(places_RL & (fate_RL < _MASKED), self.mask_id, ids_RL)
        masked_RL = torch.where(places_RL & (fate_RL >= 1 - _REPLACED), drawn_RL, masked_RL)
        return masked_RL.to(batch.input_ids.device), places_RL.to(batch.input_ids.device)
