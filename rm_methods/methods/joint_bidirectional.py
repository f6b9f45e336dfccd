"""Joint preference model on the student's backbone without its causal mask: reads `[prompt | first | second]`.

    loss and preference as joint_encoder

After LLM2Vec (BehnamGhader et al. 2024, arXiv 2404.05961): remove the mask, train by masked next-token prediction on
the text of the training pairs, then on preferences.  As a teacher of `interaction_distillation` it needs no second
tokenizer and is as strong as its student.  Our choices: full fine-tuning instead of LoRA, and the logit is read at the
row's last token.

It may start from a model of the controlled world that was trained to fill masks in comparisons of two responses
(`rm-methods train-world-model --kind joint`).  Then each row ends with a mask, where the logit is read, and the first
logit is the one of that model: "First" against "Second" in place of the mask.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.methods.joint_method import DecoderJointMethod
from rm_methods.methods.masked_language import mask_token
from rm_methods.preferences.world.conversations import VERDICTS
from rm_methods.reward_models.backbones import check_token_ids, load_language_model
from rm_methods.reward_models.joint_model import NAME, JointModel
from rm_methods.reward_models.joint_reader import DecoderReader
from rm_methods.reward_models.loading import pretrained_model, pretrained_tokenizer

BACKBONE = "backbone"
_RECORD = "training.json"
_SETTING = "joint_bidirectional.start"


class Method(DecoderJointMethod):
    causal = False

    def reader(self, pairs, inputs):
        reader = super().reader(pairs, inputs)
        if self.settings["start"] == BACKBONE:
            return reader
        return DecoderReader(reader.chat, mask_token(reader.tokenizer))

    def model(self, pairs, reader, inputs):
        if self.settings["start"] == BACKBONE:
            return super().model(pairs, reader, inputs)
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        folder = _start_folder(self.settings["start"])
        tokenizer = pretrained_tokenizer(folder, setting=_SETTING)
        check_token_ids(self.settings["start"], tokenizer, reader.tokenizer, setting=_SETTING)
        classifier, _ = pretrained_model(
            AutoModelForSequenceClassification, folder, setting=_SETTING, new_head=True, num_labels=1
        )
        classifier.config.pad_token_id = reader.pad_id
        language_model, _ = pretrained_model(AutoModelForCausalLM, folder, setting=_SETTING)
        output = language_model.get_output_embeddings().weight
        first, second = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in VERDICTS)
        with torch.no_grad():
            classifier.score.weight.copy_(output[first : first + 1] - output[second : second + 1])
        autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
        return JointModel(classifier, True, autocast, causal=False, answer=mask_token(reader.tokenizer))

    def adaptation(self, pairs, reader, inputs):
        # A model that fills masks has had this training, on other texts.
        if not self.settings["masked_language_epochs"] or self.settings["start"] != BACKBONE:
            return None
        language_model = load_language_model(inputs.backbone, inputs.config["backbone"], inputs.seed)
        language_model.set_attn_implementation(NAME)
        return self.masked_language_modeling(
            language_model, reader, inputs, decoder=True, mask_id=mask_token(reader.tokenizer)
        )


def _start_folder(name: str) -> Path:
    """The folder that the setting `start` names.

    Raises:
        UserError: not a joint language model.
    """
    folder = Path(name)
    record = folder / _RECORD
    if not record.is_file() or read_json(record).get("kind") != "joint":
        raise UserError(
            f"{_SETTING} = '{name}': not a joint language model. Use 'backbone', or a folder that "
            "`rm-methods train-world-model --kind joint` wrote."
        )
    return folder
