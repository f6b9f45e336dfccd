"""A model that reads prompt and two responses together and says which response is better.

Three kinds: an encoder (any `AutoModelForSequenceClassification` with one output), a decoder without its causal mask
(after LLM2Vec, arXiv 2404.05961), and an unchanged decoder (after RLHFlow, arXiv 2405.07863).  Both orders of a pair
are always computed, so the preference is antisymmetric by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rm_methods.errors import ListsFields, UserError
from rm_methods.files import read_json, write_json, written_atomically
from rm_methods.reward_models.attention_capture import AttentionCapture, LayerAttention, capture_obstacle
from rm_methods.reward_models.joint_reader import DecoderReader, EncoderReader
from rm_methods.reward_models.layout_probe import LayoutProbe, check_length, probe_joint_model
from rm_methods.reward_models.layouts import SequenceBatch
from rm_methods.reward_models.loading import (
    learned_positions,
    outside_of_zero3,
    pretrained_config,
    pretrained_model,
    pretrained_tokenizer,
)
from rm_methods.reward_models.model import classifier_weights
from rm_methods.reward_models.model_folder import JOINT_RECORD
from rm_methods.reward_models.pairrm import PairRM, is_pairrm, pairrm_opening

KERNEL = "sdpa"
NAME = "joint_sdpa"


def joint_attention(module, query, key, value, attention_mask, capture: AttentionCapture | None = None, **options):
    """The kernel of transformers, which also gives `capture` the queries and keys of the layers that it asks for."""
    if capture is not None:
        capture.offer(module, query, key, value, options.get("scaling"))
    return ALL_ATTENTION_FUNCTIONS[KERNEL](module, query, key, value, attention_mask, **options)


ALL_ATTENTION_FUNCTIONS.register(NAME, joint_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[KERNEL])


@dataclass
class JointOutput(ListsFields):
    """The result of one forward.

    Attributes:
        rewards: fp32 [pairs, 2]: logits that the first response is better, with chosen first and with rejected first;
            NaN if the model reads both responses and the batch does not say where the first one ends.
        attention: layer number to the inputs of that layer, for the layers asked for.
        maps: layer number to attention weights [R, h, L, L], instead of `attention` if a model gives only these.
    """

    rewards: torch.Tensor
    attention: dict[int, LayerAttention] = field(default_factory=dict)
    maps: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def margins(self) -> torch.Tensor:
        """Logit that the chosen response is the better one, averaged over both orders, fp32 [pairs]."""
        return (self.rewards[:, 0] - self.rewards[:, 1]) / 2


class JointModel(nn.Module):
    """Encoder or decoder with one output.

    Args:
        classifier: a sequence-classification model with `num_labels=1`.
        decoder: whether it is decoder-only, so that the reward is read at each row's last token.
        autocast: dtype of matrix products, or None for that of the weights.
        causal: whether a decoder keeps its causal mask; otherwise the mask is removed.
        reads_responses: the logit of a decoder is the head's value at the end of the first response minus that at the
            end of the second, as PairRM compares (arXiv 2306.02561); otherwise it is the value at the row's last token.

    Raises:
        UserError: a decoder whose mask cannot be removed.
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        decoder: bool,
        autocast: torch.dtype | None = None,
        causal: bool = False,
        reads_responses: bool = False,
    ):
        super().__init__()
        self.classifier: PreTrainedModel = classifier
        self.decoder = decoder
        self.autocast = autocast
        self.causal = causal
        self.reads_responses = reads_responses
        self.layout_probe: LayoutProbe | None = None
        _keep_head_in_fp32(classifier)
        own_kernel = (
            classifier.config._attn_implementation in (KERNEL, NAME) and classifier._can_set_attn_implementation()
        )
        if decoder and not causal and (not own_kernel or getattr(classifier.config, "sliding_window", None)):
            raise UserError(
                f"The causal mask of {type(classifier).__name__} with attention "
                f"'{classifier.config._attn_implementation}' cannot be removed. Use a backbone with transformers' "
                "attention interface, attention: sdpa and no sliding window, or a joint encoder."
            )
        if own_kernel:
            classifier.set_attn_implementation(NAME)

    @property
    def config(self):
        """The configuration of the model inside."""
        return self.classifier.config

    @property
    def backbone(self) -> nn.Module:
        """The model without its head."""
        return self.classifier.base_model

    def layout(self, requested: str) -> str:
        """Always "plain": the two orders of a pair share nothing.

        The first call measures whether padding changes the logits.

        Raises:
            UserError: it does.
        """
        if self.layout_probe is None and not any(
            hasattr(parameter, "ds_id") for parameter in self.classifier.parameters()
        ):
            self.layout_probe = probe_joint_model(self)
        return "plain"

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass."""
        self.classifier.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, batch: SequenceBatch, layers: tuple[int, ...] = ()) -> JointOutput:
        """Preferences of pairs laid out as plain rows, two a pair (both orders).

        Args:
            layers: layers whose attention is returned (numbers from 0).

        Raises:
            UserError: attention is asked for and cannot be read.
        """
        length = batch.input_ids.shape[1]
        check_positions(self.config, length)
        check_length(self.classifier, length)
        is_token_RL = torch.arange(length, device=batch.input_ids.device) <= batch.read_column[:, None]
        # Without our mask a decoder is causal, and never reaches the padding after a row's end.
        mask = None if self.causal else is_token_RL[:, None, None]
        own_kernel = self.config._attn_implementation == NAME
        obstacle = capture_obstacle(self.config)
        if (
            self.causal
            and getattr(self.config, "sliding_window", None)
            and not getattr(self.config, "layer_types", None)
        ):
            obstacle = obstacle or f"'{self.config.model_type}' sees a window only, not the whole pair"
        if layers and obstacle:
            raise UserError(f"The teacher's attention cannot be read: {obstacle}. Use another teacher.")
        capture = AttentionCapture(layers)
        options: dict[str, Any] = {}
        if layers:
            options = {"capture": capture} if own_kernel else {"output_attentions": True}
        device_type = batch.input_ids.device.type
        # No cache of cast weights: as in RewardModel.forward.
        with torch.autocast(device_type, dtype=self.autocast, cache_enabled=False) if self.autocast else nullcontext():
            if self.decoder:
                hidden_RLH = self.classifier.base_model(
                    input_ids=batch.input_ids,
                    position_ids=batch.position_ids,
                    attention_mask=mask,
                    use_cache=False,
                    **options,
                ).last_hidden_state
                logits_R = self._logits(hidden_RLH, batch)
                maps = None
            else:
                output = self.classifier(input_ids=batch.input_ids, attention_mask=is_token_RL.long(), **options)
                logits_R = output.logits[:, 0]
                maps = output.get("attentions")
        captured = capture.captured
        reads_maps = bool(layers) and not captured
        if reads_maps and (maps is None or not maps or any(x is None for x in maps)):
            raise UserError(
                f"The teacher's attention cannot be read: {type(self.classifier).__name__} with attention "
                f"'{self.config._attn_implementation}' gives none. Load it with attention 'sdpa' or 'eager'."
            )
        return JointOutput(
            logits_R.view(-1, 2), captured, {layer: maps[layer] for layer in layers} if maps and reads_maps else {}
        )

    def _logits(self, hidden_RLH: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
        """A decoder's logits that the first response is better, fp32 [R]."""
        head = cast(nn.Module, self.classifier.score)
        last_R = head(hidden_RLH[batch.read_row, batch.read_column])[:, 0]
        if not self.reads_responses:
            return last_R
        if batch.first_column is None:
            return torch.full_like(last_R, float("nan"))
        return head(hidden_RLH[batch.read_row, batch.first_column])[:, 0] - last_R

    def attention_map(
        self, batch: SequenceBatch, layer: int, heads: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, LayerAttention | None]:
        """Attention of a layer, averaged over heads.

        Args:
            heads: numbers from 0 of those to average; None for all.

        Returns:
            fp32 [R, L, L], rows are distributions over real tokens; and the queries and keys that it was computed from,
            None if the model gives only weights.
        """
        with torch.no_grad():
            output = self(batch, (layer,))
            if layer not in output.attention:
                maps_RhLL = output.maps[layer].float()
                if heads is not None:
                    maps_RhLL = maps_RhLL[:, list(heads)]
                return maps_RhLL.mean(1), None
            attention = output.attention[layer].repeated()
            is_token_RL = (
                torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device) <= batch.read_column[:, None]
            )
            hidden_RLL = ~is_token_RL[:, None].expand(-1, is_token_RL.shape[1], -1)
            if self.causal:
                hidden_RLL = hidden_RLL | ~torch.ones_like(hidden_RLL).tril()
            total_RLL = torch.zeros(hidden_RLL.shape, device=hidden_RLL.device)
            # One head at a time: the scores of all heads are many times as large as their mean.
            heads = range(attention.query.shape[1]) if heads is None else heads
            for head in heads:
                query_RLd = attention.query[:, head].float()
                scores_RLL = query_RLd @ attention.key[:, head].float().transpose(1, 2) * attention.scaling
                total_RLL += scores_RLL.masked_fill_(hidden_RLL, float("-inf")).softmax(-1)
            return total_RLL / len(heads), attention

    def save(self, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the classifier as transformers loads it, and the record that makes the folder a joint model."""
        with written_atomically(folder) as path:
            self.classifier.save_pretrained(path, state_dict=classifier_weights(state_dict))
            record = {"decoder": self.decoder, "causal": self.causal, "reads_responses": self.reads_responses}
            write_json(path / JOINT_RECORD, record)


def check_positions(config, length: int) -> None:
    """Refuse joint rows of so many tokens if a model with this configuration has fewer positions."""
    limit = learned_positions(config)
    if limit is not None and length > limit:
        raise UserError(
            f"A joint row has {length} tokens, but the model has {limit} positions. A row holds the prompt and both "
            f"responses: set training.max_length to at most {limit // 2}, or use a backbone with rotary positions."
        )


class _Fp32Linear(nn.Linear):
    """A linear layer that computes in fp32 under autocast, too: bf16 logits make ties and round small differences.

    Args:
        linear: gives its parameters.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _keep_head_in_fp32(classifier: nn.Module) -> None:
    """Replace the head: the last linear layer with one output, whatever its name."""
    heads = [
        (name, module)
        for name, module in classifier.named_modules()
        if type(module) is nn.Linear and module.out_features == 1
    ]
    if heads:
        name, head = heads[-1]
        parent, _, attribute = name.rpartition(".")
        setattr(classifier.get_submodule(parent), attribute, _Fp32Linear(head.float()))


def load_joint(
    folder: str | Path, max_length: int, precision: str = "fp32"
) -> tuple[JointModel, EncoderReader | DecoderReader]:
    """A saved joint model, in evaluation mode on its device, and its reader.

    Args:
        max_length: a decoder's longest sequence, prompt and one response, in tokens; an encoder has its own limit.
        precision: "fp32" or "bf16" (autocast).

    Raises:
        UserError: not a joint model.
    """
    from transformers import AutoModelForSequenceClassification

    from rm_methods.reward_models.tokenization import ChatTokenizer

    folder = Path(folder)
    if (folder / JOINT_RECORD).exists():
        record = read_json(folder / JOINT_RECORD)
    elif (folder / "config.json").is_file() and is_pairrm(read_json(folder / "config.json")):
        record = {"decoder": False}
    else:
        raise UserError(
            f"{folder}: not a joint model ({JOINT_RECORD} is missing). Name the model folder of a run of a joint "
            "method."
        )
    decoder = record["decoder"]
    reader: EncoderReader | DecoderReader
    with outside_of_zero3():
        tokenizer = pretrained_tokenizer(folder)
        if decoder:
            classifier, _ = pretrained_model(AutoModelForSequenceClassification, folder, num_labels=1)
            reader = DecoderReader(ChatTokenizer(tokenizer, max_length))
        else:
            classifier = load_encoder(folder)
            reader = encoder_reader(tokenizer, classifier.config)
    autocast = torch.bfloat16 if precision == "bf16" else None
    model = JointModel(
        classifier,
        decoder,
        autocast=autocast,
        causal=record.get("causal", False),
        reads_responses=record.get("reads_responses", False),
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), reader


def load_encoder(
    source: str | Path, *, new_head: bool = False, revision: str | None = None, setting: str | None = None
) -> nn.Module:
    """A classifier with one output from a hub id or folder: a PairRM checkpoint, or any encoder.

    Args:
        new_head: an encoder may have no head yet; one with random weights is made.

    Raises:
        UserError: as for `pretrained_model`.
    """
    from transformers import AutoModelForSequenceClassification

    if is_pairrm(pretrained_config(source, revision=revision, setting=setting).to_dict()):
        model, _ = pretrained_model(PairRM, source, revision=revision, setting=setting)
        return model
    model, _ = pretrained_model(
        AutoModelForSequenceClassification,
        source,
        new_head=new_head,
        revision=revision,
        setting=setting,
        num_labels=1,
    )
    return model


def encoder_reader(tokenizer, config) -> EncoderReader:
    """The reader of an encoder with this configuration."""
    opening = pairrm_opening(config, tokenizer.cls_token_id) if is_pairrm(config.to_dict()) else None
    return EncoderReader(tokenizer, encoder_length(config), opening)


def encoder_length(config, default: int = 512) -> int:
    """Positions that an encoder can read."""
    length = max(getattr(config, "max_position_embeddings", None) or 0, 0) or default
    # RoBERTa and related models number positions from the one after the pad id.
    return length - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else length
