"""The common part of the joint preference models, which read both responses at once, in both orders of each pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from rm_methods.methods.contract import Adaptation, Inputs, Loss, TrainedMethod
from rm_methods.methods.masked_language import MaskedLanguageModel, MaskedLanguageModeling
from rm_methods.reward_models.backbones import load_classifier, load_tokenizer
from rm_methods.reward_models.joint_model import JointModel
from rm_methods.reward_models.joint_reader import DecoderReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def joint_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean over both orders of the negative log-likelihood that the chosen response is the better one, fp32 [pairs].

    Args:
        logits: fp32 [pairs, 2], that the first response is better: chosen first, rejected first.
    """
    return (F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1])) / 2


class JointMethod(TrainedMethod):
    """Joint preference model; a subclass decides its reader and its model."""

    model_is_made_whole = True

    def training(self, training, seed):
        """The experiment's section with the budget of the settings: a teacher has a separate one."""
        budget = {key: self.settings[key] for key in ("epochs", "learning_rate", "tokens_per_microbatch")}
        return training | budget | {"layout": "plain", "overlong_pairs": "truncate", "trained_layers": None}

    def loss(self, model, batch):
        return Loss(joint_loss(model(batch).rewards))

    def masked_language_modeling(
        self, language_model: PreTrainedModel, reader, inputs: Inputs, *, decoder: bool, mask_id: int
    ) -> Adaptation:
        """Training by masking on the text of the training pairs, for the epochs of the settings."""
        settings = self.settings
        training = inputs.config["training"]
        language_model.config.use_cache = False
        autocast = torch.bfloat16 if training["precision"] == "bf16" else None
        special = [reader.pad_id, *reader.tokenizer.all_special_ids]
        loss = MaskedLanguageModeling(
            mask_id,
            special,
            vocabulary=len(reader.tokenizer),
            seed=inputs.seed,
            probability=settings["masked_share"],
        )
        budget = {
            "epochs": settings["masked_language_epochs"],
            "learning_rate": settings["masked_language_learning_rate"],
        }
        return Adaptation(MaskedLanguageModel(language_model, decoder, autocast), loss, training | budget)


class DecoderJointMethod(JointMethod):
    """Joint preference model on the student's backbone, read at the row's last token.

    Attributes:
        causal: whether a token sees only the tokens before it; set by the subclass.
    """

    causal: bool

    def reader(self, pairs, inputs):
        max_length = inputs.config["training"]["max_length"] or inputs.config["backbone"]["max_length"]
        return DecoderReader(load_tokenizer(inputs.backbone, max_length))

    def model(self, pairs, reader, inputs):
        autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
        classifier = load_classifier(inputs.backbone, inputs.config["backbone"], inputs.seed)
        return JointModel(classifier, True, autocast, causal=self.causal)
