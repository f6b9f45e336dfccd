"""A policy with its frozen reference, read as a reward model: DPO's implicit reward.

    r(x, y) = beta * sum over the tokens of y of [log pi(y_t | x, y_<t) - log pi_ref(y_t | x, y_<t)]

Rafailov et al. 2023 (arXiv 2305.18290), section 4, without the part that depends on the prompt alone.  The tokens of y
are all tokens after the beginning that the responses of an item share.  They include the closing tokens of the chat
template.

The model folder is a causal language model, which transformers loads.  It has two more files: the reference's weights
under the same names, and a record of how the reward is computed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rm_methods.errors import UserError, first_line
from rm_methods.files import read_json, write_json, written_atomically
from rm_methods.reward_models.language_head import LanguageHead, summed_log_probabilities
from rm_methods.reward_models.layouts import SequenceBatch
from rm_methods.reward_models.loading import pretrained_model
from rm_methods.reward_models.model import RewardModel, RewardOutput, classifier_weights
from rm_methods.reward_models.model_folder import IMPLICIT_REWARD_RECORD

REFERENCE_FILE = "reference.safetensors"


class ImplicitRewardModel(RewardModel):
    """A policy and its reference, which never changes.

    The policy is trained; its scalar head is not used and not saved.

    Args:
        classifier: holds the policy's backbone.
        head: of the policy.
        reference, reference_head: of the same shape; None copies the policy.
        beta: factor of the reward.
        average: use the mean over the response's tokens instead of the sum.
        autocast: as for `RewardModel`.
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        head: LanguageHead,
        *,
        reference: PreTrainedModel | None = None,
        reference_head: LanguageHead | None = None,
        beta: float,
        average: bool = False,
        autocast: torch.dtype | None = None,
    ):
        super().__init__(classifier, autocast)
        self.language_head = head
        self.reference = RewardModel(copy.deepcopy(classifier) if reference is None else reference, autocast)
        self.reference_head = copy.deepcopy(head) if reference_head is None else reference_head
        self.beta = beta
        self.average = average
        classifier.score.requires_grad_(False)
        for part in (self.reference, self.reference_head):
            part.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ImplicitRewardModel:
        """As for any module, but the reference stays in evaluation mode: it has no dropout."""
        super().train(mode)
        self.reference.eval()
        return self

    def freeze_lower_layers(self, trained: int, folder: Path | None = None) -> None:
        """As for `RewardModel`; policy and reference have the same frozen layers, so they share stored states."""
        super().freeze_lower_layers(trained, folder)
        self.reference.freeze_lower_layers(trained, folder)

    def layout(self, requested: str) -> str:
        """As for `RewardModel`; the reference has the same architecture, so it takes the same layouts."""
        used = super().layout(requested)
        self.reference.layout(requested)
        return used

    def forward(self, batch: SequenceBatch, reference_SN: torch.Tensor | None = None) -> RewardOutput:
        """Implicit rewards of all responses of a batch.

        Args:
            batch: with its items.
            reference_SN: fp32 [items, responses], what `reference_log_probabilities` gave for this batch; None computes
                it.
        """
        output = super().forward(batch)
        if reference_SN is None:
            reference_SN = self.reference_log_probabilities(batch)
        responses = range(batch.responses)
        policy_SN = summed_log_probabilities(self.language_head, output.hidden_states, batch.items, batch, responses)
        ratio_SN = policy_SN - reference_SN
        if self.average:
            counts = [[max(length - max(item.shared, 1), 1) for length in item.lengths] for item in batch.items]
            ratio_SN = ratio_SN / ratio_SN.new_tensor(counts)
        return replace(output, rewards=self.beta * ratio_SN)

    @torch.no_grad()
    def reference_log_probabilities(self, batch: SequenceBatch) -> torch.Tensor:
        """Summed log-probability of each response under the reference, fp32 [items, responses]."""
        hidden = self.reference(batch).hidden_states
        return summed_log_probabilities(self.reference_head, hidden, batch.items, batch, range(batch.responses))

    def save(self, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the policy as a causal language model, with the reference's weights and the record beside it.

        Args:
            state_dict: gathered weights of this module (under ZeRO-3 the module's own tensors are only shards).
        """
        from safetensors.torch import save_file

        weights = self.state_dict() if state_dict is None else state_dict
        policy = causal_weights(self.config, weights)
        inner = "reference."
        of_reference = {name.removeprefix(inner): w for name, w in weights.items() if name.startswith(inner)}
        head = "reference_head."
        of_reference |= {
            f"language_head.{name.removeprefix(head)}": w for name, w in weights.items() if name.startswith(head)
        }
        language_model = _empty_language_model(self.config)
        language_model.load_state_dict(policy, assign=True)
        with written_atomically(folder) as path:
            language_model.save_pretrained(path)
            save_file(causal_weights(self.config, of_reference), path / REFERENCE_FILE, {"format": "pt"})
            write_json(path / IMPLICIT_REWARD_RECORD, {"beta": self.beta, "average": self.average})


def causal_weights(config, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a causal language model, on the CPU, out of those of a classifier and a language-model head.

    Args:
        config: of the classifier.
        weights: their names begin with `classifier.` or `language_head.projection.`; others are ignored.

    Raises:
        UserError: the causal language model of this architecture has other tensors.
    """
    empty = _empty_language_model(config)
    head = _name_of_head(empty)
    named = dict(classifier_weights(weights) or {})
    named.pop("score.weight", None)
    prefix = "language_head.projection."
    named |= {f"{head}.{name.removeprefix(prefix)}": w for name, w in weights.items() if name.startswith(prefix)}
    if wrong := sorted(named.keys() ^ empty.state_dict().keys()):
        raise UserError(
            f"{type(empty).__name__}: {len(wrong)} tensors of the policy and of the causal language model of "
            f"transformers do not fit, such as {wrong[0]}. Use another backbone."
        )
    return {name: w.detach().cpu().contiguous() for name, w in named.items()}


def load_implicit_reward_model(
    folder: Path, *, attention: str = "auto", autocast: torch.dtype | None = None
) -> ImplicitRewardModel:
    """Load a saved policy with its reference, in evaluation mode.

    Raises:
        UserError: the files are damaged, or the reference is not of the policy's shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    record = _read_record(folder / IMPLICIT_REWARD_RECORD)
    policy, _ = pretrained_model(AutoModelForCausalLM, folder, attention=attention)
    reference = copy.deepcopy(policy)
    try:
        reference.load_state_dict(load_file(folder / REFERENCE_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder / REFERENCE_FILE}: the reference of the policy cannot be read ({first_line(error)}). Copy the "
            "folder again, or train the run again."
        ) from error
    model = ImplicitRewardModel(
        _classifier_of(policy),
        _head_of(policy, autocast),
        reference=_classifier_of(reference),
        reference_head=_head_of(reference, autocast),
        autocast=autocast,
        **record,
    )
    return model.eval()


def _read_record(file: Path) -> dict[str, Any]:
    record = read_json(file)
    if not isinstance(record, dict) or record.keys() != {"beta", "average"}:
        raise UserError(f"{file}: must have the keys beta and average and no others. Copy the folder again.")
    beta = record["beta"]
    is_number = isinstance(beta, int | float) and not isinstance(beta, bool)
    if not is_number or not 0 < beta < math.inf or not isinstance(record["average"], bool):
        raise UserError(
            f"{file}: beta must be a number above 0, and average true or false, not {beta!r:.40} and "
            f"{record['average']!r:.40}. Copy the folder again."
        )
    return record


def _empty_language_model(config) -> PreTrainedModel:
    """The causal language model of a configuration, whose output embedding is not tied, without memory for weights."""
    config = copy.deepcopy(config)
    config.tie_word_embeddings = False
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _name_of_head(language_model: PreTrainedModel) -> str:
    output = language_model.get_output_embeddings()
    return next(name for name, module in language_model.named_modules() if module is output)


def _head_of(language_model: PreTrainedModel, autocast: torch.dtype | None) -> LanguageHead:
    output = language_model.get_output_embeddings()
    softcap = getattr(language_model.config, "final_logit_softcapping", None)
    bias = None if output.bias is None else output.bias.detach()
    return LanguageHead(output.weight.detach(), bias, autocast, softcap)


def _classifier_of(language_model: PreTrainedModel) -> PreTrainedModel:
    """A sequence classifier on the same backbone; its scalar head is zero."""
    config = language_model.config
    config.num_labels = 1
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=config._attn_implementation
        )
    setattr(classifier, classifier.base_model_prefix, language_model.base_model)
    width = classifier.score.in_features
    classifier.score = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(classifier.score.weight)
    # One configuration object: the kernel of the attention is chosen in it.
    classifier.config = config
    return classifier
