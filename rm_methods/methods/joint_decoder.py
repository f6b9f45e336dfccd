"""Joint preference model on a causal decoder: reads `[prompt | first | second]` from left to right and prefers one.

    loss and preference as joint_encoder

After RLHFlow's pair-preference model (Dong et al. 2024, arXiv 2405.07863), which lets a causal language model answer with a token for
the better response.  Our choices: a scalar head at the row's last token instead of two tokens, and both orders of each pair in every step.
The second response attends to the first and never the other way round; both orders together see both.
"""

from __future__ import annotations

import torch

from rm_methods.interaction.joint_training import JointMethod
from rm_methods.reward_models.backbones import load_classifier, load_tokenizer
from rm_methods.reward_models.joint_model import JointModel
from rm_methods.reward_models.joint_reader import DecoderReader


class Method(JointMethod):
    def reader(self, pairs, inputs):
        training, backbone = inputs.config["training"], inputs.config["backbone"]
        return DecoderReader(load_tokenizer(inputs.backbone, training["max_length"] or backbone["max_length"]))

    def model(self, pairs, reader, inputs):
        autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
        return JointModel(load_classifier(inputs.backbone, inputs.config["backbone"], inputs.seed), True, autocast, causal=True)
