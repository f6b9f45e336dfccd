"""Encoder reward models: a classifier on an encoder (BERT, DeBERTa, ModernBERT) that scores one response.

Without a chat template, a row is the pair of texts (prompt, response) as the tokenizer joins them, such as
`[CLS] prompt [SEP] response [SEP]`.  So the model cards of OpenAssistant's DeBERTa reward models read it
(`OpenAssistant/reward-model-deberta-v3-large-v2`).  The messages of a prompt are joined by newlines, tools and
calls among them as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rm_methods.errors import UserError
from rm_methods.preferences.pair import Message
from rm_methods.preferences.tool_calls import prompt_text, readable
from rm_methods.reward_models.joint_model import JointOutput, check_positions
from rm_methods.reward_models.layout_probe import LayoutProbe, probe_joint_model
from rm_methods.reward_models.layouts import SequenceBatch
from rm_methods.reward_models.tokenization import TokenizedItem


class TextPairReader:
    """Reads (prompt, response) as a pair of texts.

    Too long a prompt loses its start, and then the response its end.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        max_length: longest row in tokens.
    """

    def __init__(self, tokenizer, max_length: int):
        if not tokenizer.is_fast:
            raise UserError(f"{tokenizer.name_or_path}: only fast tokenizers are supported.")
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def pad_id(self) -> int:
        """Id used for padding."""
        return self.tokenizer.pad_token_id or 0

    def encode(self, items: Iterable[tuple[Sequence[Message], Sequence[str]]]) -> list[TokenizedItem]:
        """Tokenize (prompt, responses) items.  Every response is kept; what was cut is marked."""
        return [self._item(prompt_text(prompt), [readable(text) for text in texts]) for prompt, texts in items]

    def _item(self, prompt: str, responses: Sequence[str]) -> TokenizedItem:
        rows = []
        for response in responses:
            ids = self.tokenizer(prompt, response, verbose=False)["input_ids"]
            kept_prompt, kept_response = prompt, response
            if len(ids) > self.max_length:
                kept_prompt = self._without_tokens(prompt, len(ids) - self.max_length, from_start=True)
                ids = self.tokenizer(kept_prompt, response, verbose=False)["input_ids"]
            if len(ids) > self.max_length:
                kept_response = self._without_tokens(response, len(ids) - self.max_length, from_start=False)
                ids = self.tokenizer(kept_prompt, kept_response, verbose=False)["input_ids"]
            rows.append((np.asarray(ids, dtype=np.int32), kept_prompt != prompt, kept_response != response))
        sequences, prompt_cut, response_cut = zip(*rows, strict=True)
        unchanged = (False,) * len(rows)
        return TokenizedItem(
            sequences=sequences,
            shared=0,
            prompt_cut=prompt_cut,
            response_cut=response_cut,
            prompt_changed=unchanged,
            response_changed=unchanged,
        )

    def _without_tokens(self, text: str, count: int, *, from_start: bool) -> str:
        """The text without `count` tokens at one end."""
        spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = spans["offset_mapping"]
        if count >= len(offsets):
            return ""
        return text[offsets[count][0] :] if from_start else text[: offsets[-count - 1][1]]


class EncoderRewardModel(nn.Module):
    """An encoder with a classification head, one output of which is the reward.

    Args:
        classifier: a sequence-classification model that reads a row without a causal mask.
        output: number of the output, from 0.
        separator: id of the token that ends the prompt, if the model has types of tokens: 0 up to it, 1 after it.
        autocast: dtype of matrix products, or None for that of the weights.
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        output: int,
        separator: int | None = None,
        autocast: torch.dtype | None = None,
    ):
        super().__init__()
        self.classifier = classifier
        self.output = output
        self.separator = separator
        self.autocast = autocast
        self.layout_probe: LayoutProbe | None = None

    @property
    def config(self):
        """The configuration of the model inside."""
        return self.classifier.config

    def layout(self, requested: str) -> str:
        """Always "plain": a prompt's states depend on the response.

        The first call measures whether padding changes the scores.

        Raises:
            UserError: it does.
        """
        if self.layout_probe is None:
            self.layout_probe = probe_joint_model(self)
        return "plain"

    def forward(self, batch: SequenceBatch) -> JointOutput:
        """Rewards, fp32 [items, N], of items laid out as plain rows."""
        length = batch.input_ids.shape[1]
        check_positions(self.config, length)
        is_token_RL = torch.arange(length, device=batch.input_ids.device) <= batch.read_column[:, None]
        types = {}
        if self.separator is not None:
            is_separator_RL = batch.input_ids == self.separator
            after_RL = is_separator_RL.cumsum(1) - is_separator_RL.long()
            types = {"token_type_ids": (after_RL > 0).long() * is_token_RL}
        device_type = batch.input_ids.device.type
        with torch.autocast(device_type, dtype=self.autocast, cache_enabled=False) if self.autocast else nullcontext():
            output = self.classifier(input_ids=batch.input_ids, attention_mask=is_token_RL.long(), **types)
        return JointOutput(output.logits[:, self.output].float().view(-1, batch.responses))
