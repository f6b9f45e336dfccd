"""What the joint preference models have in common: they read both responses at once, and are trained on both orders of each pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rm_methods.methods.contract import Adaptation, Loss, TrainedMethod
from rm_methods.methods.masked_language import MaskedLanguageModel, MaskedLanguageModeling
from rm_methods.reward_models.backbones import load_classifier, load_tokenizer
from rm_methods.reward_models.joint_model import JointModel
from rm_methods.reward_models.joint_reader import DecoderReader


def joint_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean over both orders of the negative log-likelihood that the chosen response is the better one, fp32 [pairs].

    Args:
        logits: fp32 [pairs, 2], that the first response is better: chosen first, rejected first.
    """
    return (F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1])) / 2


class JointMethod(TrainedMethod):
    """Joint preference model; what it reads with and what it is made of is the subclass's."""

    model_is_made_whole = True

    def training(self, training, seed):
        """The experiment's, with the epochs and learning rate of the settings: a teacher's budget is its own."""
        own = {key: self.settings[key] for key in ("epochs", "learning_rate", "tokens_per_microbatch")}
        return training | own | {"layout": "plain", "overlong_pairs": "truncate"}

    def loss(self, model, batch):
        return Loss(joint_loss(model(batch).rewards))

    def masked_language_modeling(self, language_model, decoder: bool, mask_id: int, reader, inputs) -> Adaptation:
        """Training on the text of the training pairs by masking, as long as the settings say."""
        settings, training = self.settings, inputs.config["training"]
        language_model.config.use_cache = False
        autocast = torch.bfloat16 if training["precision"] == "bf16" else None
        special = [reader.pad_id, *reader.tokenizer.all_special_ids]
        loss = MaskedLanguageModeling(mask_id, special, len(reader.tokenizer), inputs.seed, settings["masked_share"])
        own = {"epochs": settings["masked_language_epochs"], "learning_rate": settings["masked_language_learning_rate"]}
        return Adaptation(MaskedLanguageModel(language_model, decoder, autocast), loss, training | own)


class DecoderJointMethod(JointMethod):
    """Joint preference model on the student's own backbone, read at the row's last token.

    Attributes:
        causal: whether every token sees only those before it; set by the subclass.
    """

    causal: bool

    def reader(self, pairs, inputs):
        training, backbone = inputs.config["training"], inputs.config["backbone"]
        return DecoderReader(load_tokenizer(inputs.backbone, training["max_length"] or backbone["max_length"]))

    def model(self, pairs, reader, inputs):
        autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
        return JointModel(
            load_classifier(inputs.backbone, inputs.config["backbone"], inputs.seed), True, autocast, causal=self.causal
        )
