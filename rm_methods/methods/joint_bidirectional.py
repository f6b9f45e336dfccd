"""Joint preference model on the student's backbone without its causal mask: reads `[prompt | first | second]`.

    loss and preference as joint_encoder

After LLM2Vec (BehnamGhader et al. 2024, arXiv 2404.05961): remove the mask, train by masked next-token prediction on
the text of the training pairs, then on preferences.  As a teacher of `interaction_distillation` it needs no second
tokenizer and is as strong as its student.  Our choices: full fine-tuning instead of LoRA, and the logit is read at the
row's last token.

It may start from a joint language model of the controlled world (`rm-methods train-world-model --kind joint`).  Then
the logit is the head's value at the end of the first response minus that at the end of the second, as PairRM compares
(Jiang et al. 2023, arXiv 2306.02561).  The first head is the log-odds that the user's reaction is "all is well".
"""

from __future__ import annotations

from pathlib import Path

import torch

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.methods.joint_method import DecoderJointMethod
from rm_methods.methods.masked_language import mask_token
from rm_methods.preferences.world.conversations import reaction_openings
from rm_methods.reward_models.backbones import WORLD_JOINT, check_shipped, check_token_ids, load_language_model
from rm_methods.reward_models.joint_model import NAME, JointModel
from rm_methods.reward_models.loading import pretrained_model, pretrained_tokenizer

BACKBONE = "backbone"
SHIPPED = "world_joint"
_RECORD = "training.json"
_SETTING = "joint_bidirectional.start"


class Method(DecoderJointMethod):
    causal = False

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
        satisfied, flawed = reaction_openings(tokenizer)
        with torch.no_grad():
            classifier.score.weight.copy_((output[satisfied] - output[flawed].mean(0))[None])
        autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
        return JointModel(classifier, True, autocast, causal=False, reads_responses=True)

    def adaptation(self, pairs, reader, inputs):
        # A joint language model has been trained on text.
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
    if name == SHIPPED:
        check_shipped(WORLD_JOINT)
        return WORLD_JOINT
    folder = Path(name)
    record = folder / _RECORD
    if not record.is_file() or read_json(record).get("kind") != "joint":
        raise UserError(
            f"{_SETTING} = '{name}': not a joint language model. Use '{BACKBONE}', '{SHIPPED}', or a folder that "
            "`rm-methods train-world-model --kind joint` wrote."
        )
    return folder
