"""PairRM checkpoints (LLM-Blender, arXiv 2306.02561; `llm-blender/PairRM-hf`): a DeBERTa-v3 encoder that compares.

A row is `[CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> first [SEP] [CLS] <|candidate2|> second [SEP]`; the
states at the source mark and at a candidate's mark give its score, and the logit is the difference of the two scores
(yuchenlin/LLM-Blender, llm_blender/pair_ranker/pairrm.py).  Names of weights and configuration keys are those of
the published format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import DebertaV2Model
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel

_MARKS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")


class PairRM(DebertaV2PreTrainedModel):
    """The model; its output has logits [R, 1]: how much better the first candidate is."""

    base_model_prefix = "pretrained_model"

    def __init__(self, config):
        super().__init__(config)
        dropout = getattr(config, "drop_out", 0.0)
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(config.hidden_size, getattr(config, "n_tasks", 1)),
        )
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, output_attentions: bool = False, **options
    ):
        """Logits of rows [R, L] that hold each mark once."""
        output = self.pretrained_model(
            input_ids=input_ids, attention_mask=attention_mask, output_attentions=output_attentions
        )
        row = torch.arange(len(input_ids), device=input_ids.device)
        source, first, second = (
            output.last_hidden_state[row, (input_ids == getattr(self.config, mark)).int().argmax(1)] for mark in _MARKS
        )
        scores = [self.head_layer(torch.cat([source, candidate], dim=-1)) for candidate in (first, second)]
        return SequenceClassifierOutput(
            logits=(scores[0] - scores[1]).mean(-1, keepdim=True), attentions=output.attentions
        )


def is_pairrm(config: Mapping[str, Any]) -> bool:
    """Whether a configuration (the content of config.json) is that of a PairRM checkpoint."""
    return all(config.get(mark) is not None for mark in _MARKS)


def pairrm_opening(config, start: int) -> tuple[tuple[int, int], ...]:
    """The tokens before the source, the first and the second candidate; `start` is the id of CLS."""
    return tuple((start, getattr(config, mark)) for mark in _MARKS)
