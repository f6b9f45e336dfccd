"""Joint preference model on the student's backbone without its causal mask: reads `[prompt | first | second]`.

    loss and preference as joint_encoder

After LLM2Vec (BehnamGhader et al. 2024, arXiv 2404.05961): remove the mask, train by masked next-token prediction on
the text of the training pairs, then on preferences.  As a teacher of `interaction_distillation` it needs no second
tokenizer and is as strong as its student.  Our choices: full fine-tuning instead of LoRA, and the logit is read at the
row's last token.
"""

from __future__ import annotations

from rm_methods.methods.joint_method import DecoderJointMethod
from rm_methods.reward_models.backbones import load_language_model
from rm_methods.reward_models.joint_model import NAME


class Method(DecoderJointMethod):
    causal = False

    def adaptation(self, pairs, reader, inputs):
        if not self.settings["masked_language_epochs"]:
            return None
        language_model = load_language_model(inputs.backbone, inputs.config["backbone"], inputs.seed)
        language_model.set_attn_implementation(NAME)
        return self.masked_language_modeling(
            language_model, reader, inputs, decoder=True, mask_id=_mask_id(reader.tokenizer)
        )


def _mask_id(tokenizer) -> int:
    """The mask token, or, as in LLM2Vec, the underscore: a token that pretraining has seen as a blank to fill in."""
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    return tokenizer("_", add_special_tokens=False)["input_ids"][0]
